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


def uses_triton(kernel: Kernel, tensor: Tensor) -> bool:
    """Whether a fused kernel takes this tensor.

    Triton is an optional part of torch (its wheels for Linux bring it along), so nothing here imports it. The kernels
    are for NVIDIA GPUs from compute capability 8.0 on (bfloat16 and TF32 tensor cores) and for all floating-point types
    but float64, which no tensor core serves in the way they are written.

    Args:
        kernel: The choice.
        tensor: One of the tensors that the kernel would read.

    Raises:
        ConfigError: ``"triton"`` where it can not run, or a choice that does not exist.
    """
    if kernel == "torch":
        return False
    if kernel not in ("auto", "triton"):
        raise ConfigError(f'kernel = {kernel!r} is unknown. It is one of "auto", "torch" and "triton".')
    obstacle = _obstacle(tensor)
    if obstacle and kernel == "triton":
        raise ConfigError(f'kernel = "triton" can not run: {obstacle} Use kernel = "auto" or "torch".')
    return not obstacle and (kernel == "triton" or tensor.is_cuda)


def _obstacle(tensor: Tensor) -> str:
    """Why Triton can not take the tensor; empty if it can."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed (it comes with torch's CUDA wheels for Linux)."
    if tensor.dtype == torch.float64:
        return "the fused kernels do not compute in float64."
    if tensor.is_cuda:
        if torch.version.hip is not None:
            return "the fused kernels are written for NVIDIA GPUs."
        capability = torch.cuda.get_device_capability(tensor.device)
        return "" if capability >= (8, 0) else f"the GPU has compute capability {capability}, the kernels need (8, 0)."
    if tensor.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return ""  # Triton's interpreter: for tests
    return f"the tensors are on the device {str(tensor.device)!r}, and Triton compiles for GPUs (move them to CUDA)."
