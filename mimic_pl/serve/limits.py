"""What a server accepts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mimic_pl.errors import DataError
from mimic_pl.ranges import COUNT, POSITIVE, require_ranges


@dataclass(frozen=True)
class Limits:
    """Limits of a server; a request beyond them is refused before it costs anything.

    Args:
        body: Bytes of a request (413 beyond it).
        pixels: Pixels of an image (422).
        characters: Characters of a text (422).
        mentions: Mentions of a request (422).
        candidates: Candidates per mention (422).
        queue: Mentions that wait at the same time (503).
        batch_size: Mentions that are linked at once, those of several requests together.
        seconds: Time for the header of a request, for its body (408), for waiting for its links (503), and for a client
            to read the answer; connections end that are idle for so long.

    Raises:
        ConfigError: A limit is not positive.
    """

    body: int = 32 * 1024 * 1024
    pixels: int = 25_000_000
    characters: int = 20_000
    mentions: int = 256
    candidates: int = 100
    queue: int = 1024
    batch_size: int = 64
    seconds: float = 30.0

    def __post_init__(self) -> None:
        """Check the values."""
        counts = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "seconds"}
        require_ranges(dict.fromkeys(counts, COUNT), counts, "limits.")
        require_ranges({"seconds": POSITIVE}, {"seconds": self.seconds}, "limits.")

    def require_texts(self, texts: Iterable[str]) -> None:
        """Refuse texts that are too long, or contain half of a character, which JSON can express.

        Raises:
            DataError: One does.
        """
        from mimic_pl.ranking.lance_dataset import storable  # it imports torch, which options need not wait for

        for text in texts:
            if len(text) > self.characters:
                raise DataError(f"A text has {len(text):,} characters; at most {self.characters:,} are read.")
            if not storable(text):
                raise DataError("A text contains half of a character: a surrogate without its other half.")
