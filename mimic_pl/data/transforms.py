"""What training may do to one side of a batch: other renderings of its images, and items without one modality."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mimic_pl.batch import Inputs
from mimic_pl.errors import ConfigError
from mimic_pl.processor import Processor


class Augment:
    """Runs every image through a transform, each with random numbers of its own seed.

    Args:
        transform: uint8 ``[3, S, S]`` -> uint8 ``[3, S, S]``, for example of :mod:`torchvision.transforms.v2`; it draws
            from torch's generator.
    """

    def __init__(self, transform: nn.Module) -> None:
        self.transform = transform

    def __call__(self, side: Inputs, seeds: Sequence[int]) -> None:
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
        probability: Of a mention to lose one, from 0 to 1.
        processor: Makes the tokens of the empty text, and knows which further features are made of the text.

    Raises:
        ConfigError: The probability is out of its range.
    """

    def __init__(self, probability: float, processor: Processor) -> None:
        if not 0 <= probability <= 1:
            raise ConfigError(f"data.modality_dropout is {probability}; it goes from 0 to 1.")
        self.probability = probability
        self.ids, self.mask = processor.tokenizer([""])
        self.of_text = {name for name, features in processor.features.items() if features.reads_text}

    def __call__(self, side: Inputs, seeds: Sequence[int]) -> None:
        """Change ``pixels`` and ``has_image``, or tokens and what else is made of the text, of a side in place."""
        for row, seed in enumerate(seeds):
            drawn = float(torch.rand((), generator=torch.Generator().manual_seed(seed ^ 1)))
            if drawn < self.probability / 2:
                side["pixels"][row].zero_()
                side["has_image"][row] = False
            elif drawn < self.probability:
                side["input_ids"][row], side["attention_mask"][row] = self.ids[0], self.mask[0]
                for name, tensor in side.items():
                    if name.partition(".")[0] in self.of_text:
                        tensor[row].zero_()
