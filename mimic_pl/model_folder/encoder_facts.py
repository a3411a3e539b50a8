"""What an encoder turned out to be when it was built, to check that it is the same when it is built again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mimic_pl.encoders import Encoder
from mimic_pl.home import expanded


def facts_of(encoder: Encoder) -> dict[str, Any]:
    """Widths, text length, and preprocessing of images, as plain values.

    They depend on more than the constructor's arguments: on files of the checkpoint, on defaults of transformers and
    timm, and on short texts that are run through the text tower.
    """
    images = encoder.build_image_processor()
    return {
        "text_dim": encoder.dims.text,
        "image_dim": encoder.dims.image,
        "text_length": encoder.text_length,
        "reads_padding": encoder.reads_padding,
        "image_size": images.image_size,
        "image_mean": list(images.image_mean),
        "image_std": list(images.image_std),
    }


def checkpoint_names(encoder: Encoder) -> list[str]:
    """The checkpoints that an encoder's weights started from: names on the hub or of timm, or last parts of paths.

    The rest of a path says something about a machine, not about the model.
    """
    return [name if on_hub(name) else Path(name).name for name in encoder.started_from]


def on_hub(name: str) -> bool:
    """Whether a checkpoint's name is one on the hub, ``USER/MODEL``, not a folder or a timm model."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not expanded(name).exists()
