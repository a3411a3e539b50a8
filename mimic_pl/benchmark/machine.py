"""The machine's own limit: how many pairs a second its matrix products and exponentials allow."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from mimic_pl.benchmark.timing import Timing, Work
from mimic_pl.units import CMFU, VDLU, Matcher, States


class Arithmetic(NamedTuple):
    """What a pair costs at least.

    Attributes:
        products: Multiplications and additions of matrix products.
        exponentials: Exponentials.
    """

    products: int
    exponentials: int


def arithmetic(matcher: Matcher, mentions: States, entities: States) -> Arithmetic:
    """Arithmetic of a pair in the formulation that ranking uses, counted from the sizes of the states.

    TGLU: the tokens' products and their exponentials, the mean weights times V, the product with the context, and that
    of the global vectors. VDLU: five products in each direction. CMFU: one. What is left are some dozens of scalar
    operations, which are not counted.
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
    """Works whose times tell what the machine does: an operation of a float32 product, and an exponential.

    The product is of large square matrices. Exponentials are taken of numbers that stay in the caches, to base e and to
    base 2, which torch computes faster on a CPU.
    """
    cuda = torch.device(device).type == "cuda"
    side = 8192 if cuda else 256 if quick else 1024
    left, right, into = (torch.rand(side, side, device=device) for _ in range(3))
    numbers = torch.rand(1 << (21 if cuda else 17), device=device)
    powers = torch.empty_like(numbers)
    again = 20 if quick else 400

    def exponentials(function: Any) -> Work:
        def run() -> None:
            for _ in range(again):
                function(numbers, out=powers)

        return Work(run, again * len(numbers))

    return {
        "product": Work(lambda: torch.mm(left, right, out=into), 2 * side**3),
        "exp": exponentials(torch.exp),
        "exp2": exponentials(torch.exp2),
    }


def limit(pair: Arithmetic, times: dict[str, Timing], exponential: str = "exp2") -> Timing:
    """Seconds that a pair would take if nothing but its products and exponentials took time."""
    rounds = zip(times["product"].rounds, times[exponential].rounds, strict=True)
    return Timing([pair.products * product + pair.exponentials * power for product, power in rounds])
