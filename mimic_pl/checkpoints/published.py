"""Reads checkpoints of the published implementation, and renames their tensors to this library's names."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from mimic_pl.checkpoints.kind import described, is_safetensors, weights_of
from mimic_pl.checkpoints.path import checkpoint_path
from mimic_pl.checkpoints.reader import (
    READ_ERRORS,
    load_tensors,
    read_error,
    require_checkpoint,
    require_checksums,
    require_no_nan,
)
from mimic_pl.errors import CheckpointError

_RENAMES = [
    (r"encoder\.clip\.", "encoder.clip."),
    (r"encoder\.image_cls_fc\.", "encoder.image_global."),
    (r"encoder\.image_tokens_fc\.", "encoder.image_local."),
    (r"matcher\.(text|image)_cls_layernorm\.", r"matcher.\1_global_norm."),
    (r"matcher\.(text|image)_tokens_layernorm\.", r"matcher.\1_local_norm."),
    (r"matcher\.tglu\.fc_(query|key|value)\.", r"matcher.units.text.\1."),
    (r"matcher\.tglu\.fc_cls\.", "matcher.units.text.context."),
    (r"matcher\.tglu\.layer_norm\.", "matcher.units.text.norm."),
    (r"matcher\.vdlu\.dual_ent2men\.", "matcher.units.vision.entity_to_mention."),
    (r"matcher\.vdlu\.dual_men2ent\.", "matcher.units.vision.mention_to_entity."),
    (r"(matcher\.units\.vision\..*)\.cls_fc\.", r"\1.global_."),
    (r"(matcher\.units\.vision\..*)\.tokens_fc\.", r"\1.local."),
    (r"(matcher\.units\.vision\..*)\.add_layer_norm\.", r"\1.norm_sum."),
    (r"(matcher\.units\.vision\..*)\.gate_fc\.", r"\1.gate."),
    (r"(matcher\.units\.vision\..*)\.fc\.", r"\1.mix."),
    (r"(matcher\.units\.vision\..*)\.layer_norm\.", r"\1.norm."),
    (r"matcher\.cmfu\.(text|image|gate)_fc\.", r"matcher.units.cross_modal.\1."),
    (r"matcher\.cmfu\.gate_layer_norm\.", "matcher.units.cross_modal.norm."),
]

_UNUSED = re.compile(
    # A norm that the published CMFU creates but never calls, and a buffer that older transformers versions stored.
    r"matcher\.cmfu\.context_layer_norm\.|encoder\.clip\.(text_model|vision_model)\.embeddings\.position_ids$"
)


def read_published(path: str | Path) -> dict[str, Tensor]:
    """Read a checkpoint of the published implementation and rename its tensors to this library's names.

    Args:
        path: Its Lightning ``.ckpt``, a state dict saved by ``torch.save``, alone or in a dictionary as ``state_dict``,
            ``model`` and so on, or a safetensors file. Prefixes of DistributedDataParallel and of compiled modules are
            removed. Pickles are loaded with ``weights_only=True``: code in them is never run.

    Raises:
        CheckpointError: The file is missing, unreadable or corrupted, of another kind, or contains names that the
            published model does not have, or NaN. Safetensors files and those of ``torch.save`` before torch 1.6 have
            no checksums: their corruption is detected only if it causes NaN.
    """
    state = _read_tensors(checkpoint_path(path))
    renamed, unknown = {}, []
    for name, tensor in state.items():
        if _UNUSED.match(name):
            continue
        new = name
        for pattern, replacement in _RENAMES:
            new = re.sub(rf"^{pattern}", replacement, new)
        if new == name and not name.startswith("encoder.clip."):
            unknown.append(name)
        renamed[new] = tensor
    if unknown:
        raise CheckpointError(
            f"{path} contains {len(unknown)} tensors that the published model does not have: "
            f"{', '.join(sorted(unknown))}. Is it a checkpoint of another model?"
        )
    return renamed


def published_sizes(state: dict[str, Tensor]) -> dict[str, int]:
    """Infer the model's sizes from its tensors: ``image_dim`` and each unit's hidden size by the unit's name.

    Raises:
        CheckpointError: A tensor needed for a size is missing.
    """
    sources = {
        "image_dim": "encoder.image_global.weight",
        "text": "matcher.units.text.query.weight",
        "vision": "matcher.units.vision.entity_to_mention.global_.weight",
        "cross_modal": "matcher.units.cross_modal.text.weight",
    }
    missing = [name for name in sources.values() if name not in state]
    if missing:
        raise CheckpointError(f"The checkpoint lacks tensors that give the model's sizes: {', '.join(missing)}.")
    return {size: state[name].shape[0] for size, name in sources.items()}


def load_weights(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load a complete state dict, or report everything that does not fit.

    Raises:
        CheckpointError: Names are unknown or missing, or shapes differ.
    """
    own = model.state_dict()
    unknown, missing = sorted(state.keys() - own.keys()), sorted(own.keys() - state.keys())
    differing = [
        f"{name} (checkpoint {tuple(state[name].shape)}, model {tuple(own[name].shape)})"
        for name in sorted(own.keys() & state.keys())
        if own[name].shape != state[name].shape
    ]
    problems = [
        f"{what}: {', '.join(names)}"
        for what, names in (("unknown", unknown), ("missing", missing), ("with another shape", differing))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"The weights in {source} do not fit the model. Names {'; names '.join(problems)}. "
            "Check that the encoder checkpoint and the sizes are those of the training run."
        )
    model.load_state_dict(state)


class _Placeholder:
    """Placeholder for a pickled object that is not a tensor: accepts any arguments and ignores them."""

    def __new__(cls, *args: object, **kwargs: object) -> _Placeholder:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        content = _read_safetensors(path) if is_safetensors(path) else _read_pickle(path)
    except OSError as error:
        raise read_error(path, error) from error
    state = weights_of(content)
    if state is None or not all(isinstance(value, Tensor) for value in state.values()):
        what = "a whole model or another object" if isinstance(content, _Placeholder) else described(content)
        raise CheckpointError(
            f"{path} contains no state dict, but {what}. It needs tensors by name, possibly under 'state_dict': "
            "torch.save(model.state_dict(), PATH)."
        )
    require_no_nan(state, path)
    return dict(state)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load(path.read_bytes())  # not memory-mapped: a file truncated meanwhile would crash the process
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise read_error(path, error) from error


def _read_pickle(path: Path) -> object:
    """Load a torch pickle without running code from it.

    The published checkpoints contain their configuration as objects of a library that may not be installed: all
    objects other than tensors become placeholders.
    """
    require_checkpoint(path)
    require_checksums(path)
    placeholders: list[Any] = []
    if zipfile.is_zipfile(path):
        try:
            others = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        except READ_ERRORS as error:
            raise read_error(path, error) from error
        placeholders = [(type("Placeholder", (_Placeholder,), {}), name) for name in others]
    with torch.serialization.safe_globals(placeholders):
        return load_tensors(path)
