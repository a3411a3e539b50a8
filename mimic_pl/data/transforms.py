"""What training may do to one side of a batch: other renderings of its images, and items without one modality."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mimic_pl.data.dataset import Item
from mimic_pl.data.preprocessor import Preprocessor
from mimic_pl.errors import ConfigError


class Augment:
    """Runs every image through a transform, each with random numbers of its own seed.

    Args:
        transform: uint8 ``[3, S, S]`` -> uint8 ``[3, S, S]``, for example of :mod:`torchvision.transforms.v2`; it draws
            from torch's generator.
    """

    def __init__(self, transform: nn.Module) -> None:
        self.transform = transform

    def __call__(self, side: Item, seeds: Sequence[int]) -> None:
        """Change ``pixels`` of a side in place; items without an image stay as they are.

        Raises:
            ConfigError: The transform returns another size or type.
        """
        pixels: Tensor = side["pixels"]
        with torch.random.fork_rng(devices=[]):
            for row in side["has_image"].nonzero().flatten().tolist():
                torch.manual_seed(seeds[row])
                changed = self.transform(pixels[row])
                if changed.shape != pixels[row].shape or changed.dtype != torch.uint8:
                    raise ConfigError(
                        f"The augmentation {type(self.transform).__name__} makes {changed.dtype} "
                        f"{list(changed.shape)} of an image uint8 {list(pixels[row].shape)}. It must keep size and "
                        "type: normalisation follows."
                    )
                pixels[row] = changed


class DropModality:
    """Takes from some mentions their image or, as often, their text, so that neither is relied on alone.

    Args:
        share: Share of the items that lose one, from 0 to 1.
        preprocessor: Makes the tokens of the empty text.

    Raises:
        ConfigError: The share lies outside of 0 to 1.
    """

    def __init__(self, share: float, preprocessor: Preprocessor) -> None:
        if not 0 <= share <= 1:
            raise ConfigError(f"The share of mentions that lose a modality is {share}; it goes from 0 to 1.")
        self.share = share
        self.ids, self.mask = preprocessor.tokenize([""])

    def __call__(self, side: Item, seeds: Sequence[int]) -> None:
        """Change ``pixels`` and ``has_image``, or tokens and terms, of a side in place."""
        for row, seed in enumerate(seeds):
            drawn = float(torch.rand((), generator=torch.Generator().manual_seed(seed ^ 1)))
            if drawn < self.share / 2:
                side["pixels"][row].zero_()
                side["has_image"][row] = False
            elif drawn < self.share:
                side["input_ids"][row], side["attention_mask"][row] = self.ids[0], self.mask[0]
                if "term_weights" in side:
                    side["term_weights"][row].zero_()
