"""Readable messages for a device that fails or is full."""

from __future__ import annotations

import pytest
import torch

from dq.dist.errors.device import explain_device


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "data.samples"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), "of a GPU on"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "of a GPU on"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate"
                      " memory: you tried to allocate 4 bytes"), "workers_per_gpu"),
        (MemoryError(), "MemoryError"),
        (torch.AcceleratorError("CUDA error: unspecified launch failure\nCompile"), "--resume"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "failed (uncorrectable"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "failed (cuDNN"),
        (RuntimeError("CUDA error: device-side assert triggered\nmore"), "num_classes"),
    ],
)  # fmt: skip
def test_messages_of_torch(error: BaseException, words: str) -> None:
    sentence = explain_device(error)
    assert sentence is not None
    assert words in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
        RuntimeError("Expected all tensors to be on the same device, but found cuda:0 and cpu"),
        RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"),
        ValueError("CUDA error: out of memory"),
    ],
)
def test_others_keep_their_own_message(error: BaseException) -> None:
    assert explain_device(error) is None
