"""Loading weights, tokenizer and image statistics of pretrained checkpoints."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from transformers import AutoModel, AutoTokenizer, CLIPImageProcessor, PreTrainedTokenizerBase

from mimic_pl.errors import CheckpointError, ConfigError


def require_one_start(pretrained: str | None, config: object | None, what: str) -> None:
    """Check that a tower is given either a checkpoint or a configuration.

    Raises:
        ConfigError: Both or neither are given.
    """
    if (pretrained is None) == (config is None):
        raise ConfigError(
            f"{what} needs either a checkpoint or a configuration: give exactly one of them "
            f"(got the checkpoint {pretrained!r} and {'a' if config else 'no'} configuration)."
        )


def load_tower(pretrained: str) -> Any:
    """Load a transformers model in float32 and, as transformers returns it, in evaluation mode.

    Args:
        pretrained: Checkpoint folder or hub name.

    Raises:
        ConfigError: The folder does not exist, or the hub has no such model or cannot be reached.
        CheckpointError: The weights cannot be read.
    """
    path = Path(pretrained).expanduser()
    looks_local = path.is_absolute() or pretrained.startswith((".", "~")) or len(path.parts) > 2
    if looks_local and not path.is_dir():
        raise ConfigError(
            f"The encoder's checkpoint folder {pretrained!r} does not exist (looked in {path.resolve()}). "
            "Give an existing folder in Hugging Face format, or a hub name such as 'openai/clip-vit-base-patch32'."
        )
    try:
        # Always float32: in half precision, updates at the published learning rate are rounded away.
        return AutoModel.from_pretrained(str(path) if looks_local else pretrained, dtype=torch.float32)
    except (SafetensorError, EOFError) as error:
        raise CheckpointError(
            f"The weights of {pretrained!r} cannot be read: {error}. The file is damaged or incomplete; download it "
            "again."
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"transformers cannot load {pretrained!r}: {_first_line(error)} Give a folder with config.json and "
            "weights, or a hub name; without network access the model must already be in the cache (HF_HOME)."
        ) from error


def create_vision(name: str, pretrained: bool, arguments: dict[str, Any]) -> Any:
    """Create a timm model without a classifier.

    Args:
        name: Name of the model.
        pretrained: Load timm's pretrained weights.
        arguments: Additional arguments of :func:`timm.create_model`.

    Raises:
        ConfigError: timm does not know the model or the arguments, or cannot get the weights.
    """
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **arguments)
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        similar = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"Similar names: {', '.join(similar)}." if similar and name not in similar else ""
        raise ConfigError(
            f"timm cannot create the vision model {name!r} with {arguments or 'no arguments'}: {_first_line(error)} "
            f"{hint} Without network access, its weights must already be in the cache, or vision_pretrained be false."
        ) from error


def _first_line(error: Exception) -> str:
    line = str(error).strip().partition("\n")[0] or type(error).__name__
    return line if line.endswith(".") else line + "."


def load_tokenizer(pretrained: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint.

    Raises:
        ConfigError: The checkpoint has none.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(pretrained)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"transformers cannot load a tokenizer from the checkpoint {pretrained!r}: {error}"
        ) from error
    if len(tokenizer.get_vocab()) <= len(tokenizer.all_special_ids):
        # If the files are missing, transformers returns an empty tokenizer of the model's type.
        raise ConfigError(
            f"The checkpoint {pretrained!r} has no tokenizer files (tokenizer.json, or vocab.json and merges.txt). "
            "Save the tokenizer next to the weights."
        )
    return tokenizer


def image_statistics(pretrained: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation with which the checkpoint's images were normalised.

    Raises:
        ConfigError: The checkpoint does not contain them.
    """
    try:
        settings, _ = CLIPImageProcessor.get_image_processor_dict(pretrained)
        return settings["image_mean"], settings["image_std"]
    except (OSError, KeyError) as error:
        raise ConfigError(
            f"The encoder's checkpoint {pretrained!r} does not say how its images are normalised: it needs a "
            "preprocessor_config.json with image_mean and image_std. Save the checkpoint with its image processor."
        ) from error
