"""Settings of the benchmark."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mimic_pl.errors import ConfigError

ROWS = (
    "ranking",
    "trained",
    "bytes",
    "overhead",
    "memory",
    "training",
    "encoding",
    "scaling",
    "images",
    "index",
    "candidates",
    "serving",
)
"""Names of the groups of measurements."""

OF_RUN = ("trained", "candidates")
"""Those that need a run, and are left out without one."""

DEFAULT_ROWS = tuple(row for row in ROWS if row != "serving")
"""All but those that need optional packages."""


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark.

    Args:
        rows: Comma-separated groups of measurements: ranking (random states), trained (model and data of ``run``),
            bytes, overhead, memory, training, encoding, scaling, images, index, candidates (model and data of ``run``);
            and serving, if it is named (requests to ``mimic-pl serve``, as many as ``mentions``).
        quick: Use small sizes, which only show that everything runs.
        run: Folder of a training run whose model ranks its own data in the row ``trained``.
        mentions: Number of mentions to rank.
        entities: Number of entities to rank: in the row ``trained`` sampled from the run's knowledge base, by default
            all of them; in the row ``ranking`` random ones, by default 8,192.
        inflate: Grow the run's knowledge base to this number of entities with noisy copies of its entities' states.
        memory_entities: Number of entities in the row ``memory``; by default that of RichpediaMEL.
        growth: Numbers of entities in the rows ``index`` and ``candidates``; by default 10,000, 100,000 and 1,000,000.
        retrievers: Comma-separated retrievers in the row ``candidates``: names, or files of settings.
        candidates: Candidates per channel in that row; by default the retriever's own number.
        batches: Training batch sizes: the first is also measured in the published order of operations.
        encoder: Encoder of the rows ``overhead``, ``training``, ``encoding`` and ``scaling``, with random weights: a
            small one, or one of published size (CLIP ViT-B/32; minutes on a CPU).
        rounds: Number of interleaved repetitions of each comparison.
        device: Torch device to compute on.
        threads: Number of CPU threads; torch's default if not given.
        seed: Random seed.
        output: JSON file for the results.
    """

    rows: str = ",".join(DEFAULT_ROWS)
    quick: bool = False
    run: str | None = None
    mentions: int | None = None
    entities: int | None = None
    inflate: int | None = None
    memory_entities: int | None = None
    growth: list[int] | None = None
    retrievers: str = "lance"
    candidates: int | None = None
    batches: list[int] = field(default_factory=lambda: [128])
    encoder: Literal["small", "published"] = "small"
    rounds: int | None = None
    device: str = "cpu"
    threads: int | None = None
    seed: int = 43
    output: str | None = None

    def selected(self) -> list[str]:
        """The selected rows, in the order in which they are measured.

        Raises:
            ConfigError: A row is unknown, a number is not positive, or the device is not available.
        """
        names = [row.strip() for row in self.rows.split(",") if row.strip()]
        unknown = sorted(set(names) - set(ROWS))
        if unknown or not names:
            raise ConfigError(f"--rows: unknown rows {unknown}. Choose from: {', '.join(ROWS)}.")
        for name in ("mentions", "entities", "inflate", "memory_entities", "rounds", "threads", "candidates"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name} is {value}; it must be positive.")
        if min(self.batches, default=0) < 1 or min(self.growth or [1]) < 1:
            raise ConfigError("--batches and --growth must be positive numbers, for example --batches [128,1024].")
        if self.run is None and self.inflate is not None:
            raise ConfigError("--inflate needs the knowledge base of a run: give it with --run FOLDER.")
        import torch  # lazy, since --help imports this module

        if torch.device(self.device).type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(f"--device is {self.device}, but torch finds no CUDA device. Use --device cpu.")
        return [row for row in ROWS if row in names and (row not in OF_RUN or self.run is not None)]

    def size(self, full: int, quick: int) -> int:
        """Choose between the full and the quick size."""
        return quick if self.quick else full

    @property
    def num_rounds(self) -> int:
        """Number of repetitions of each comparison."""
        return self.rounds or self.size(3, 1)
