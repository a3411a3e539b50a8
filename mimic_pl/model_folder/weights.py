"""Weights as safetensors, in one file or in several, with tensors that share memory stored once."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mimic_pl.checkpoints.published import load_weights
from mimic_pl.checkpoints.reader import require_no_nan
from mimic_pl.errors import CheckpointError

MAX_SHARD = 5_000_000_000
"""Bytes of a file, as on the hub."""

_INDEX = "model.safetensors.index.json"


def write_weights(model: nn.Module, folder: Path, max_shard: int = MAX_SHARD) -> None:
    """Write a model's weights as ``model.safetensors``, or as numbered parts with an index.

    Of tensors that share memory, such as tied embeddings, one is stored, and the metadata names the others.

    Args:
        model: The model.
        folder: An existing folder.
        max_shard: Bytes of a file.

    Raises:
        CheckpointError: A weight is NaN.
        OSError: The disk is full, or the folder is not writable.
    """
    state = _without_views(model.state_dict())
    require_no_nan(state, f"the {type(model).__name__}")
    try:
        save_torch_state_dict(state, folder, max_shard_size=max_shard)
    except SafetensorError as error:  # of the file system too, with its message alone
        raise OSError(f"the weights cannot be written: {error}") from error


def read_weights(model: nn.Module, folder: Path, files: Iterable[str], source: str) -> None:
    """Load a model's weights, all of them, in the dtypes in which they were saved.

    Args:
        model: The model, with other weights.
        folder: The folder.
        files: Names of its files; those that are not weights are ignored.
        source: What to call the folder in messages.

    Raises:
        CheckpointError: A file cannot be read, or the weights are not those of the model.
    """
    state: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    try:
        for name in files:
            if name == _INDEX:
                shared |= json.loads((folder / name).read_text(encoding="utf-8"))["metadata"]
            elif name.startswith("model") and name.endswith(".safetensors"):
                with safe_open(folder / name, framework="pt") as file:
                    shared |= file.metadata() or {}
                    state |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # not a dict
    except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"The weights in {source} cannot be read: {error}. Get the folder again.") from error
    state |= {dropped: state[kept] for dropped, kept in shared.items() if kept in state and dropped not in state}
    _adopt_dtypes(model, state)
    load_weights(model, state, source)


def _without_views(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that are part of a larger one, such as queries split off a fused layer; equal parts stay shared."""
    copies: dict[tuple[Any, ...], Tensor] = {}
    for name, tensor in state.items():
        if tensor.untyped_storage().nbytes() != tensor.nbytes:
            place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            if place not in copies:
                copies[place] = tensor.detach().clone()
            state[name] = copies[place]
    return state


@torch.no_grad()
def _adopt_dtypes(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Convert parameters and buffers to the dtypes of a state dict, in place, so that shared ones stay shared."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in state and state[name].dtype != tensor.dtype:
            tensor.data = tensor.data.to(state[name].dtype)
