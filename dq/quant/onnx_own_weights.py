"""A weight of its own for every layer of a QDQ model, where several layers share one.

ONNX Runtime 1.32 cannot rewrite a shared weight in its exact mode (`session.x64quantprecision`),
which processors without VNNI need: their products of uint8 and int8 saturate in pairs.
"""

from __future__ import annotations

from collections import defaultdict

import onnx


def with_own_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which no two nodes read the same dequantized initializer.

    Args:
        model: As `dq.quant.export_qdq` writes it; the copy is for one session, not for a file.
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
    for node in graph.node:
        for position, name in enumerate(node.input):
            readers[name].append((node, position))
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type != "DequantizeLinear" or node.input[0] not in stored:
            continue
        for number, (reader, position) in enumerate(readers[node.output[0]][1:], start=1):
            own = onnx.NodeProto.FromString(node.SerializeToString())
            own.name = f"{node.name}/{number}"
            own.output[0] = f"{node.output[0]}/{number}"
            for place, name in enumerate(own.input):
                if name in stored:
                    tensor = onnx.TensorProto.FromString(stored[name].SerializeToString())
                    tensor.name = own.input[place] = f"{name}/{node.name}/{number}"
                    graph.initializer.append(tensor)
            reader.input[position] = own.output[0]
            nodes.append(own)
    del graph.node[:]
    graph.node.extend(nodes)
    return model
