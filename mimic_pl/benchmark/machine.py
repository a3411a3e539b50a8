"""The machine's limit: time per pair of its matrix products and exponentials alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from mimic_pl.benchmark.timing import Timing, Work
from mimic_pl.units import CMFU, VDLU, Matcher, States


class Arithmetic(NamedTuple):
    """Minimum operations per pair.

    Attributes:
        products: Multiplications and additions of matrix products.
        exponentials: Number of exponentials.
    """

    products: int
    exponentials: int


def arithmetic(matcher: Matcher, mentions: States, entities: States) -> Arithmetic:
    """Operations per pair in the formulation used by ranking, from the sizes of the states.

    TGLU: products of the tokens and their exponentials, mean weights times V, and products with the context and of the
    global vectors. VDLU: five products in each direction. CMFU: one product. Dozens of scalar operations are ignored.
    """
    products = exponentials = 0
    for name, entity in entities.items():
        unit = matcher.units[name]
        if isinstance(unit, CMFU):
            products += 2 * entity["fused"].shape[-1]
        elif isinstance(unit, VDLU):
            products += 10 * 2 * entity["pooled"].shape[-1]
        else:
            entity_tokens, width = entity["query"].shape[1:]
            mention_tokens = mentions[name]["key"].shape[1]
            exponentials += entity_tokens * mention_tokens
            products += 2 * width * (entity_tokens * mention_tokens + mention_tokens + 1)
            products += 2 * entity["global"].shape[-1]
    return Arithmetic(products, exponentials)


def machine_works(device: str, quick: bool = False) -> dict[str, Work]:
    """Works that measure the machine's time per operation of a float32 matrix product, and per exponential.

    The product is of large square matrices. The exponentials, of values that stay in the caches, are to base e and to
    base 2, which is faster in torch on a CPU.
    """
    cuda = torch.device(device).type == "cuda"
    side = 8192 if cuda else 256 if quick else 1024
    left, right, into = (torch.rand(side, side, device=device) for _ in range(3))
    numbers = torch.rand(1 << (21 if cuda else 17), device=device)
    powers = torch.empty_like(numbers)
    repeats = 20 if quick else 400

    def exponentials(function: Any) -> Work:
        def run() -> None:
            for _ in range(repeats):
                function(numbers, out=powers)

        return Work(run, repeats * len(numbers))

    return {
        "product": Work(lambda: torch.mm(left, right, out=into), 2 * side**3),
        "exp": exponentials(torch.exp),
        "exp2": exponentials(torch.exp2),
    }


def limit(pair: Arithmetic, times: dict[str, Timing], exponential: str = "exp2") -> Timing:
    """Seconds per pair if only its products and exponentials took time."""
    rounds = zip(times["product"].rounds, times[exponential].rounds, strict=True)
    return Timing([pair.products * product + pair.exponentials * power for product, power in rounds])
