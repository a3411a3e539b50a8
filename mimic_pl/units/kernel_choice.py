"""Choice between torch operations and a fused Triton kernel for a unit's pairwise arithmetic."""

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
"""Data-centre Hopper and Blackwell, whose 227 kB of shared memory fit float32 tiles; elsewhere they would spill."""


def uses_triton(kernel: Kernel, tensor: Tensor) -> bool:
    """Whether to run the fused kernel on this tensor.

    Triton is optional (torch's Linux wheels include it), so this module does not import it. The kernels run on NVIDIA
    GPUs: in 16-bit dtypes from compute capability 8.0, in float32 on data-centre GPUs from 9.0, and never in float64.

    Args:
        kernel: The configured choice.
        tensor: One of the kernel's inputs.

    Raises:
        ConfigError: ``"triton"`` where it cannot run, or an unknown choice.
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
    """Why Triton cannot process the tensor; empty if it can."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed (it comes with torch's CUDA wheels for Linux)."
    if tensor.dtype == torch.float64:
        return "the fused kernels do not support float64."
    if tensor.is_cuda:
        if torch.version.hip is not None:
            return "the fused kernels are written for NVIDIA GPUs."
        capability = torch.cuda.get_device_capability(tensor.device)
        if capability < (8, 0):
            return f"the GPU has compute capability {capability}; the fused kernels need at least (8, 0)."
        if tensor.dtype == torch.float32 and capability[0] not in _FLOAT32_CAPABILITIES:
            return f"the GPU has compute capability {capability}, too little shared memory for the kernels in float32."
        return ""
    if tensor.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return ""  # Triton's interpreter, for tests
    return f"the tensors are on the device {str(tensor.device)!r}, and Triton needs a GPU (move them to CUDA)."
