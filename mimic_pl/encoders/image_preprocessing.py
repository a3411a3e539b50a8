"""Image preprocessing of a checkpoint: its normalisation, and its own way of resizing."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from PIL import Image
from timm.data.transforms_factory import create_transform

from mimic_pl.errors import ConfigError
from mimic_pl.processor import ImageProcessor

ImageResize = Literal["square", "model"]
"""How images are resized: ``square`` as published, or as the ``model`` was trained.

- ``square``: directly to the model's square, with Lanczos, ignoring the aspect ratio;
- ``model``: with the interpolation and crop of the checkpoint's preprocessing: for CLIP, the shorter side to 224 pixels
  with bicubic interpolation and then the middle square; for SigLIP, bilinear or bicubic directly to the square.
"""


class TransformersResize:
    """Resizes and crops as an image processor of transformers does.

    Args:
        processor: The checkpoint's image processor (in the variant for Pillow).
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, image: Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Resize an RGB image to uint8 ``[3, S, S]``."""
        made = self.processor(image, do_rescale=False, do_normalize=False, return_tensors="np")
        pixels: np.ndarray[Any, np.dtype[np.uint8]] = np.asarray(made["pixel_values"])[0]
        return pixels


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
        ConfigError: The processor does not say how images are normalised, or does not give squares of one size.
    """
    mean, std = [0.0] * 3, [1.0] * 3
    if processor.do_normalize:
        mean, std = processor.image_mean, processor.image_std
        if mean is None or std is None:
            raise ConfigError("The encoder's preprocessor_config.json does not contain image_mean and image_std.")
    # Values become factor * pixel - offset before they are normalised, usually pixel / 255.
    factor = 255 * processor.rescale_factor if processor.do_rescale else 255.0
    offset = float(bool(getattr(processor, "rescale_offset", False)))
    if abs(factor - 1) > 1e-6 or offset:
        mean = [(value + offset) / factor for value in mean]
        std = [value / factor for value in std]
    if image_size is None:
        size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
        image_size = size["height"] or size["shortest_edge"]
    return ImageProcessor(image_size, mean, std, TransformersResize(processor) if how == "model" else None)


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
            f"The vision model takes images of {channels} channels and {height} x {width} pixels; mimic-pl's are RGB "
            "and square. Set vision_args.img_size, or choose another model."
        )
    resize = TimmResize(settings) if how == "model" else None
    return ImageProcessor(height, settings["mean"], settings["std"], resize)
