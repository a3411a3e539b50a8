"""Writes what an encoder is built from except its weights: configurations, tokenizers, image preprocessing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

_OF_THE_SOURCE = ("_name_or_path", "name_or_path", "is_local", "local_files_only", "dtype", "architectures")
"""Keys that say where a configuration was read from, not what it is; dtypes are those of the weights."""


def save_model_config(config: Any, folder: Path) -> None:
    """Write the ``config.json`` of a transformers model.

    Args:
        config: The model's configuration.
        folder: An existing folder.
    """
    _write(folder / "config.json", json.loads(config.to_json_string()))


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the files of a tokenizer.

    Args:
        tokenizer: The tokenizer.
        folder: An existing folder.
    """
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    _write(path, json.loads(path.read_text(encoding="utf-8")))


def save_vision_config(vision: Any, input_size: tuple[int, int, int], folder: Path) -> None:
    """Write the ``config.json`` of a timm checkpoint, from which ``local-dir:FOLDER`` is created without weights.

    Args:
        vision: The timm model.
        input_size: Channels, height and width of its images.
        folder: An existing folder.
    """
    places = ("url", "file", "hf_hub_id", "hf_hub_filename", "source", "state_dict")  # of its weights
    values = {name: value for name, value in vision.pretrained_cfg.items() if name not in places and value is not None}
    config = {
        "architecture": values.pop("architecture"),
        "num_classes": 0,
        "num_features": vision.num_features,
        # Of a checkpoint whose own config.json had some; earlier versions of timm do not keep them.
        "model_args": getattr(vision, "_model_args", {}),
        "pretrained_cfg": {**values, "num_classes": 0, "input_size": input_size},
    }
    _write(folder / "config.json", config)


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(_without_source(values), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _without_source(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_source(own) for key, own in value.items() if key not in _OF_THE_SOURCE}
    return value
