"""OpenVINO computes in 8-bit integers and float32 only, on the given number of threads."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from dq.quant.recipes.presets import preset
from dq.quant.recipes.recipe import Recipe, Rule
from dq.quant.verify.layer_differences import layer_differences
from dq.quant.verify.onnxruntime_session import sums_exactly
from dq.quant.verify.openvino_session import ENGINE, OpenVinoNetwork
from tests.quant.export.test_export import Net, images, int8, int8_model, qdq, quantized

pytestmark = pytest.mark.cpu
FLOAT = onnx.TensorProto.FLOAT


def network_of(model: onnx.ModelProto, threads: int = 1) -> OpenVinoNetwork:
    network = ENGINE.open(model, threads=threads)
    assert isinstance(network, OpenVinoNetwork)
    return network


def test_every_layer_agrees_and_runs_in_integers() -> None:
    model = int8_model()
    network = network_of(model)
    # All layers except the transposed convolution with groups.
    assert (network.num_integer, network.num_float) == (6, 1)
    found = layer_differences(int8()[0], model, [images(7, 3)], engine=ENGINE)
    assert {d.site for d in found} >= set(int8()[0].activations())
    if sums_exactly():
        assert max(d.excess for d in found) < 1e-3
        assert max(d.largest for d in found) < 1.01


def test_any_number_of_images_has_the_same_result() -> None:
    network = network_of(int8_model())
    both = network.tensors(images(5))
    for number in range(2):
        alone = network.tensors(images(5)[number : number + 1])
        torch.testing.assert_close(alone[1], both[1][number : number + 1], rtol=0, atol=0)
    assert network.tensors(images(5)[:0])[1].shape == (0, 256, 5)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_and_precision_are_as_asked(threads: int) -> None:
    compiled = network_of(int8_model(), threads).request(1).get_compiled_model()
    found = {
        name: compiled.get_property(name)
        for name in ("INFERENCE_NUM_THREADS", "NUM_STREAMS", "ENABLE_CPU_PINNING")
    }
    assert found == {
        "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False
    }  # fmt: skip
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"


def test_what_is_not_quantized_is_computed_in_float32() -> None:
    # If the CPU has bf16, OpenVINO uses it by default: eight bits of mantissa.
    graph = quantized(Recipe(rules=(Rule(quantize=False),)))
    with torch.no_grad():
        wanted = graph(images(5))
    for one, other in zip(network_of(qdq(graph)).tensors(images(5)), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def linear(x: NDArray[np.float32]) -> tuple[onnx.ModelProto, NDArray[np.float32]]:
    """Return a linear layer with integer weights and float inputs, and its result."""
    generator = np.random.default_rng(0)
    integers = generator.integers(-127, 128, (x.shape[1], 64)).astype(np.int8)
    scale = generator.uniform(0.01, 0.02, 64).astype(np.float32)
    make = onnx.helper.make_node
    graph = onnx.helper.make_graph(
        [
            make("DequantizeLinear", ["integers", "scale", "zero_point"], ["real"], axis=1),
            make("MatMul", ["x", "real"], ["y"]),
        ],
        "graph",
        [onnx.helper.make_tensor_value_info("x", FLOAT, ["N", x.shape[1]])],
        [onnx.helper.make_tensor_value_info("y", FLOAT, ["N", 64])],
        [
            onnx.numpy_helper.from_array(integers, "integers"),
            onnx.numpy_helper.from_array(scale, "scale"),
            onnx.numpy_helper.from_array(np.zeros(64, np.int8), "zero_point"),
        ],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9
    )
    return model, x @ (integers * scale)


def test_inputs_of_integer_weights_stay_float() -> None:
    # By default OpenVINO rounds them to 8 bits, in groups of 32.
    x = np.random.default_rng(1).standard_normal((4, 256)).astype(np.float32)
    model, wanted = linear(x)
    (found,) = network_of(model).compute([x])
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_it_does_not_round_to_16_bits_and_does_not_clip() -> None:
    """As docs/engines.md says of OpenVINO 2026.4; the gate must find it."""
    graph = quantized(preset("int16"))
    model = qdq(graph)
    assert network_of(model).num_integer == 0
    inside = layer_differences(graph, model, [images(0)], engine=ENGINE)
    assert {d.site for d in inside} >= set(graph.activations())
    assert max(d.excess for d in inside) < 0.5
    far = 10 * images(0)
    clipped = layer_differences(graph, model, [far], engine=ENGINE)
    assert max(d.excess for d in clipped) > 100
    assert max(d.excess for d in layer_differences(graph, model, [far], integers=False)) < 0.5


def test_operator_without_a_rule_is_named() -> None:
    make = onnx.helper.make_node
    info = onnx.helper.make_tensor_value_info
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [make("DeformConv", ["x", "w", "moves"], ["y"], kernel_shape=[1, 1])],
            "graph",
            [info("x", FLOAT, ["N", 4, 8, 8]), info("moves", FLOAT, ["N", 2, 8, 8])],
            [info("y", FLOAT, ["N", 4, 8, 8])],
            [onnx.numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32), "w")],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 19)],
        ir_version=9,
    )
    with pytest.raises(ValueError, match=r"OpenVINO \S+ cannot run the model: .*DeformConv"):
        ENGINE.open(model)


def saturating_net() -> Any:
    """Return a calibrated net with the largest possible 8-bit products."""

    class Large(Net):
        def __init__(self) -> None:
            super().__init__()
            torch.nn.init.constant_(self.left.weight, 0.1)

    torch.manual_seed(0)
    from dq.quant.graph.prepare import prepare
    from tests.quant.nets import calibrate

    graph = prepare(Large().eval(), Recipe())
    calibrate(graph, [images(seed).abs() for seed in range(4)])
    return graph


def excess_of_saturating_net() -> float:
    graph = saturating_net()
    found = layer_differences(graph, qdq(graph), [images(0).abs()], engine=ENGINE)
    return max(d.excess for d in found)


@pytest.mark.slow
@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="oneDNN's names of x86's instructions"
)
def test_layers_show_sums_that_saturate_without_vnni() -> None:
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from tests.quant.verify.test_openvino_session import excess_of_saturating_net\n"
        "print(excess_of_saturating_net())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout.split()[-1]) > 5
