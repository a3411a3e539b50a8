"""Mutations of bytes: common corruptions of files, and input that is hard on parsers."""

from __future__ import annotations

import random
from collections.abc import Callable

_TOKENS = [
    b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\r\n", b'"', b"\\", b"\\ud800", b"[", b"]", b"{", b"}", b",",
    b"null", b"NaN", b"-Infinity", b"1e999", b"-1", b"0", b"99999999999999999999", b"1.5", b"true", b'""', b"[]", b"{}",
    b"../", b"%00", b"!!python/object:os.system", b"&a", b"*a", b"\x80\x02", b"\xff\xff\xff\xff\xff\xff\xff\x7f",
]  # fmt: skip


class Mutator:
    """Draws mutated copies of bytes.

    Args:
        seed: Seed of all mutations.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.mutations: list[Callable[[bytearray], bytearray]] = [
            *(self.flip, self.flip, self.overwrite, self.overwrite, self.insert, self.insert),
            *(self.cut_out, self.truncate, self.repeat, self.copy_over, self.zeros),
        ]

    def __call__(self, content: bytes) -> bytes:
        """Apply one to four mutations."""
        changed = bytearray(content)
        for _ in range(self.rng.choice((1, 1, 1, 2, 3, 4))):
            changed = self.rng.choice(self.mutations)(changed)
        return bytes(changed)

    def flip(self, content: bytearray) -> bytearray:
        if content:
            content[self.place(content)] ^= 1 << self.rng.randrange(8)
        return content

    def overwrite(self, content: bytearray) -> bytearray:
        token, at = self.rng.choice(_TOKENS), self.place(content)
        content[at : at + len(token)] = token
        return content

    def insert(self, content: bytearray) -> bytearray:
        at = self.place(content)
        content[at:at] = self.rng.choice(_TOKENS)
        return content

    def cut_out(self, content: bytearray) -> bytearray:
        del content[self.span(content)]
        return content

    def truncate(self, content: bytearray) -> bytearray:
        del content[self.place(content) :]
        return content

    def repeat(self, content: bytearray) -> bytearray:
        span = self.span(content)
        content[span.start : span.start] = content[span] * self.rng.choice((1, 1, 20))
        return content

    def copy_over(self, content: bytearray) -> bytearray:
        span, at = self.span(content), self.place(content)
        piece = content[span]
        content[at : at + len(piece)] = piece
        return content

    def zeros(self, content: bytearray) -> bytearray:
        span = self.span(content)
        content[span] = bytes(len(content[span]))
        return content

    def place(self, content: bytearray) -> int:
        return self.rng.randrange(len(content) + 1) if not content else self.rng.randrange(len(content))

    def span(self, content: bytearray) -> slice:
        start = self.place(content)
        return slice(start, start + self.rng.choice((1, 2, 8, 40, 300)))
