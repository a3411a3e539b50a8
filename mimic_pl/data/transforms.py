"""Training transforms of one side of a batch: image augmentation and modality dropout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mimic_pl.batch import Inputs
from mimic_pl.errors import ConfigError
from mimic_pl.processor import Processor
from mimic_pl.ranges import FRACTION, in_range


class Augment:
    """Applies a random transform to every image, each with its own seed.

    Args:
        transform: uint8 ``[3, S, S]`` -> uint8 ``[3, S, S]``, for example from :mod:`torchvision.transforms.v2`; it
            must use torch's default generator.
    """

    def __init__(self, transform: nn.Module) -> None:
        self.transform = transform

    def __call__(self, side: Inputs, seeds: Sequence[int]) -> None:
        """Transform ``pixels`` of a side in place; items without an image are unchanged.

        Raises:
            ConfigError: The transform changes size or type.
        """
        pixels: Tensor = side["pixels"]
        with torch.random.fork_rng(devices=[]):
            for row in side["has_image"].nonzero().flatten().tolist():
                torch.manual_seed(seeds[row])
                changed = self.transform(pixels[row])
                if changed.shape != pixels[row].shape or changed.dtype != torch.uint8:
                    raise ConfigError(
                        f"The augmentation {type(self.transform).__name__} returns {changed.dtype} "
                        f"{list(changed.shape)} for an image uint8 {list(pixels[row].shape)}. It must keep size and "
                        "type: normalisation follows later."
                    )
                pixels[row] = changed


class DropModality:
    """Modality dropout: removes the image or, equally often, the text of some mentions.

    Args:
        probability: Probability that a mention loses one of the two, from 0 to 1.
        processor: Provides the tokens of the empty text, and knows which additional features are computed from text.

    Raises:
        ConfigError: The probability is out of range.
    """

    @in_range(probability=FRACTION)
    def __init__(self, probability: float, processor: Processor) -> None:
        self.probability = probability
        self.ids, self.mask = processor.tokenizer([""])
        self.text_features = {name for name, features in processor.features.items() if features.reads_text}

    def __call__(self, side: Inputs, seeds: Sequence[int]) -> None:
        """Change ``pixels`` and ``has_image``, or tokens and features computed from text, of a side in place."""
        for row, seed in enumerate(seeds):
            drawn = float(torch.rand((), generator=torch.Generator().manual_seed(seed ^ 1)))
            if drawn < self.probability / 2:
                side["pixels"][row].zero_()
                side["has_image"][row] = False
            elif drawn < self.probability:
                side["input_ids"][row], side["attention_mask"][row] = self.ids[0], self.mask[0]
                for name, tensor in side.items():
                    if name.partition(".")[0] in self.text_features:
                        tensor[row].zero_()
