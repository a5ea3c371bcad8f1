"""The same net prepared for QAT by other libraries: torch.ao's FX mode and torchao's PT2E."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx


def fx_qat(graph: fx.GraphModule, images: Tensor) -> Any:
    """Return the graph prepared by `torch.ao.quantization.quantize_fx.prepare_qat_fx`.

    Its default configuration for x86: fused observers, per-channel weights, folded norms.
    """
    from torch.ao.quantization import get_default_qat_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

    return prepare_qat_fx(graph.train(), get_default_qat_qconfig_mapping("x86"), (images,))


def pt2e_qat(graph: fx.GraphModule, images: Tensor) -> Any:
    """Return the graph prepared by torchao's PT2E flow with its quantizer for x86."""
    from torchao.quantization.pt2e import allow_exported_model_train_eval
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    exported = torch.export.export(graph.train(), (images,), strict=False).module()
    quantizer = X86InductorQuantizer()
    quantizer.set_global(get_default_x86_inductor_quantization_config(is_qat=True))
    prepared = prepare_qat_pt2e(exported, quantizer)
    allow_exported_model_train_eval(prepared)
    prepared.train()  # Returns nothing.
    return prepared


PEERS: Mapping[str, Callable[[fx.GraphModule, Tensor], Any]] = {"fx": fx_qat, "pt2e": pt2e_qat}
