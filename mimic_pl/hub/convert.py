"""Turns a checkpoint of the published implementation into a folder that loads anywhere."""

from __future__ import annotations

from pathlib import Path

from mimic_pl.model import MIMIC
from mimic_pl.model_folder import CardFacts, save_folder


def convert_published(checkpoint: str | Path, pretrained: str, folder: str | Path, license: str | None = None) -> Path:
    """Write a checkpoint of the published implementation as a model's folder; see :meth:`MIMIC.from_published`.

    Args:
        checkpoint: Its Lightning ``.ckpt``, or a state dict or safetensors file with the same names.
        pretrained: The CLIP checkpoint that it was trained from, for architecture, tokenizer and image preprocessing.
        folder: A new or empty folder, or one with a model to replace.
        license: Licence of the weights, as the hub abbreviates it.

    Returns:
        The folder, absolute.

    Raises:
        CheckpointError: The weights cannot be read, or are not those of the published model.
        ConfigError: The CLIP checkpoint cannot be loaded, or the folder contains something else.
        StoreError: The disk is full, or the folder is not writable.

    Example:
        >>> convert_published("official.ckpt", "openai/clip-vit-base-patch32", "converted")  # doctest: +SKIP
    """
    model = MIMIC.from_published(checkpoint, pretrained).eval()
    model.encoder.started_from = (pretrained,)
    facts = CardFacts(name="MIMIC", license=license, trained_with="the published implementation")
    return save_folder(model, folder, facts)
