"""Which implementation of a unit's pairwise arithmetic runs: torch's operations or a fused Triton kernel."""

from __future__ import annotations

import importlib.util
import os
from typing import Literal

import torch
from torch import Tensor

from mimic_pl.errors import ConfigError

Kernel = Literal["auto", "torch", "triton"]
"""``"torch"`` runs anywhere. ``"triton"`` is one fused kernel. ``"auto"`` is Triton where it can run, else torch."""

_FLOAT32_CAPABILITIES = (9, 10)
"""Hopper and Blackwell for data centres, whose 227 kB of shared memory hold float32 tiles; elsewhere these would spill
to slow memory."""


def uses_triton(kernel: Kernel, tensor: Tensor) -> bool:
    """Whether a fused kernel takes this tensor.

    Triton is an optional part of torch (its wheels for Linux bring it along), so nothing here imports it. The kernels
    are for NVIDIA GPUs, for 16-bit types from compute capability 8.0 on, for float32 on those of data centres from 9.0
    on, and not for float64, in which they would not compute.

    Args:
        kernel: The choice.
        tensor: One of the tensors that the kernel would read.

    Raises:
        ConfigError: ``"triton"`` where it cannot run, or a choice that does not exist.
    """
    if kernel == "torch":
        return False
    if kernel not in ("auto", "triton"):
        raise ConfigError(f'kernel = {kernel!r} is unknown. It is one of "auto", "torch" and "triton".')
    obstacle = _obstacle(tensor)
    if obstacle and kernel == "triton":
        raise ConfigError(f'kernel = "triton" cannot run: {obstacle} Use kernel = "auto" or "torch".')
    return not obstacle and (kernel == "triton" or tensor.is_cuda)


def _obstacle(tensor: Tensor) -> str:
    """Why Triton cannot take the tensor; empty if it can."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed (it comes with torch's CUDA wheels for Linux)."
    if tensor.dtype == torch.float64:
        return "the fused kernels do not compute in float64."
    if tensor.is_cuda:
        if torch.version.hip is not None:
            return "the fused kernels are written for NVIDIA GPUs."
        capability = torch.cuda.get_device_capability(tensor.device)
        if capability < (8, 0):
            return f"the GPU has compute capability {capability}, the fused kernels need (8, 0)."
        if tensor.dtype == torch.float32 and capability[0] not in _FLOAT32_CAPABILITIES:
            return f"the GPU has compute capability {capability}, too little shared memory for the kernels in float32."
        return ""
    if tensor.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return ""  # Triton's interpreter: for tests
    return f"the tensors are on the device {str(tensor.device)!r}, and Triton compiles for GPUs (move them to CUDA)."
