"""Image preprocessing of a checkpoint: how it resizes and normalises images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image
from timm.data.transforms_factory import create_transform

from mimic_pl.errors import CheckpointError, ConfigError
from mimic_pl.processor import ImageProcessor
from mimic_pl.quoting import quoted

ImageResize = Literal["square", "model"]
"""How images are resized: ``square`` as published, or as the ``model`` was trained.

- ``square``: directly to the model's square, with Lanczos, ignoring the aspect ratio;
- ``model``: with the interpolation and crop of the checkpoint's preprocessing: for CLIP, the shorter side to 224 pixels
  with bicubic interpolation and then the middle square; for SigLIP, bilinear or bicubic directly to the square.
"""

_LARGEST = 4096
"""Largest side of a preprocessed image, in pixels."""


class TransformersResize:
    """Resizes and crops as an image processor of transformers does.

    Args:
        processor: The checkpoint's image processor (in the variant for Pillow).
        mean: Mean per channel to which it normalises.
        std: Standard deviation per channel.
    """

    def __init__(self, processor: Any, mean: Sequence[float], std: Sequence[float]) -> None:
        self.processor = processor
        self.mean, self.std = (np.reshape(values, (-1, 1, 1)) for values in (mean, std))

    def __call__(self, image: Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Resize an RGB image to uint8 ``[3, S, S]``."""
        normalized = np.asarray(self.processor(image, return_tensors="np")["pixel_values"], np.float64)[0]
        if normalized.ndim != 3:
            return np.zeros(normalized.shape, np.uint8)  # patches; rejected by their shape
        # Not every processor lets its normalisation be switched off.
        return np.rint(255 * (normalized * self.std + self.mean)).clip(0, 255).astype(np.uint8)


class TimmResize:
    """Resizes and crops as timm's transform for evaluation does.

    Args:
        settings: The model's data configuration (see :func:`timm.data.resolve_data_config`).
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        names = ("input_size", "interpolation", "mean", "crop_pct", "crop_mode")
        # What timm prepares for its prefetcher is neither converted to floats nor normalised.
        self.transform = create_transform(**{name: settings[name] for name in names}, use_prefetcher=True)

    def __call__(self, image: Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Resize an RGB image to uint8 ``[3, S, S]``."""
        return np.asarray(self.transform(image))


def transformers_preprocessing(processor: Any, image_size: int | None, how: ImageResize) -> ImageProcessor:
    """The preprocessing of an image processor of transformers.

    Args:
        processor: The checkpoint's image processor.
        image_size: Side of the model's input; ``None`` for a model that takes any, whose processor decides.
        how: How images are resized.

    Raises:
        ConfigError: Its statistics are invalid, or its own resizing is requested but does not produce squares of this
            size.
    """
    _require_small(processor)
    mean, std = _statistics(processor)
    if image_size is None:
        size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
        image_size = size["height"] or size["shortest_edge"]
    resize = TransformersResize(processor, mean, std) if how == "model" else None
    return ImageProcessor(image_size, mean, std, resize)


def _require_small(processor: Any) -> None:
    """Check the sizes of a processor's images before it creates one: a huge one would fill the memory."""
    sizes = [getattr(processor, name, None) for name in ("size", "crop_size", "pad_size")]
    sides = [side or 0 for size in sizes if size is not None for side in dict(size).values()]
    largest = max([*sides, getattr(processor, "max_num_patches", None) or 0])
    if largest > _LARGEST:
        raise CheckpointError(
            f"The encoder's preprocessor_config.json resizes images to {largest} pixels or patches, more than "
            f"{_LARGEST}. It is damaged: get the checkpoint again."
        )


def _statistics(processor: Any) -> tuple[Any, Any]:
    """Mean and standard deviation per channel to which an image processor normalises pixels / 255.

    They are those of its settings, unless it scales to [-1, 1] before, or divides by the deviation twice, as some do.

    Raises:
        ConfigError: It does not normalise to finite numbers.
    """
    with np.errstate(all="ignore"):
        black, white = (_middle_pixel(processor, Image.new("RGB", (64, 64), (level,) * 3)) for level in (0, 255))
        std = 1 / (white - black)
        mean = -black * std
    given = processor.image_mean, processor.image_std
    if not np.isfinite((mean, std)).all():
        raise ConfigError(
            f"Images cannot be normalised with image_mean {quoted(given[0])} and image_std {quoted(given[1])} of the "
            "encoder's preprocessor_config.json. Set both to finite numbers, and image_std above 0."
        )
    if np.shape(given) == (2, 3) and np.allclose(given, (mean, std), atol=1e-5):
        return given
    return mean.tolist(), std.tolist()


def _middle_pixel(processor: Any, image: Image.Image) -> np.ndarray[Any, np.dtype[np.float64]]:
    values = np.asarray(processor(image, return_tensors="np")["pixel_values"], np.float64)[0]
    # NaFlex: patches, each of which has its pixels one after the other.
    return values[:, values.shape[1] // 2, values.shape[2] // 2] if values.ndim == 3 else values.reshape(-1, 3)[0]


def timm_preprocessing(settings: dict[str, Any], how: ImageResize) -> ImageProcessor:
    """The preprocessing of a timm model.

    Args:
        settings: The model's data configuration.
        how: How images are resized.

    Raises:
        ConfigError: The model's images are not square RGB images.
    """
    channels, height, width = settings["input_size"]
    if channels != 3 or height != width:
        raise ConfigError(
            f"The vision model takes images of {channels} channels and {height} x {width} pixels, but mimic-pl "
            "provides square RGB images. Set vision_args.img_size, or choose another model."
        )
    resize = TimmResize(settings) if how == "model" else None
    return ImageProcessor(height, settings["mean"], settings["std"], resize)
