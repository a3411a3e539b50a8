"""What the benchmark measures, at which sizes and where."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mimic_pl.errors import ConfigError

ROWS = ("ranking", "trained", "bytes", "overhead", "memory", "training", "encoding", "scaling", "images", "index")
"""The families of measurements."""


@dataclass(frozen=True)
class Settings:
    """What is measured, at which sizes and where.

    Args:
        rows: Which families of rows, separated by commas: ranking (random states), trained (a run's model and data,
            with ``run``), bytes, overhead, memory, training, encoding, scaling, images, index.
        quick: Small sizes, which show that everything runs and measure nothing well.
        run: Folder of a training run whose model ranks its own data in the row ``trained``.
        mentions: Mentions that are ranked.
        entities: Entities that are ranked: for the row ``trained`` drawn from the run's knowledge base, by default all
            of them; for the row ``ranking`` random ones, by default 8,192.
        inflate: Fill the run's knowledge base up to so many entities, with disturbed copies of its entities' states.
        memory_entities: Entities in the index of the row ``memory``; by default as many as RichpediaMEL has.
        growth: Numbers of entities of the row ``index``; by default 10,000, 100,000 and 1,000,000.
        batches: Sizes of training batches: the first in the published order of operations too, others in ours alone.
        encoder: The encoder of the rows ``overhead``, ``training``, ``encoding`` and ``scaling``: a small one, or one
            of the published sizes (CLIP ViT-B/32; minutes on a CPU). Its weights are random.
        rounds: How often the sides of a comparison are measured, in turn.
        device: Where to compute, as torch calls it.
        threads: Threads of a CPU; torch's choice by default.
        seed: Decides what is drawn.
        output: JSON file for all that was measured.
    """

    rows: str = ",".join(ROWS)
    quick: bool = False
    run: str | None = None
    mentions: int | None = None
    entities: int | None = None
    inflate: int | None = None
    memory_entities: int | None = None
    growth: list[int] | None = None
    batches: list[int] = field(default_factory=lambda: [128])
    encoder: Literal["small", "published"] = "small"
    rounds: int | None = None
    device: str = "cpu"
    threads: int | None = None
    seed: int = 43
    output: str | None = None

    def chosen(self) -> list[str]:
        """The chosen rows, in the order in which they are measured.

        Raises:
            ConfigError: There is no such row, a number is not positive, or the device is not there.
        """
        wanted = [row.strip() for row in self.rows.split(",") if row.strip()]
        unknown = sorted(set(wanted) - set(ROWS))
        if unknown or not wanted:
            raise ConfigError(f"The benchmark has no rows {unknown}. There are: {', '.join(ROWS)}.")
        for name in ("mentions", "entities", "inflate", "memory_entities", "rounds", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name} is {value}; it must be positive.")
        if min(self.batches, default=0) < 1 or min(self.growth or [1]) < 1:
            raise ConfigError("--batches and --growth take positive numbers, for example --batches [128,1024].")
        if self.run is None and self.inflate is not None:
            raise ConfigError("--inflate is for the knowledge base of a run: name it with --run FOLDER.")
        import torch  # not at the top: help shows the settings without waiting for it

        if torch.device(self.device).type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(f"--device is {self.device}, but torch sees no CUDA device here.")
        return [row for row in ROWS if row in wanted and (row != "trained" or self.run is not None)]

    def size(self, full: int, quick: int) -> int:
        """One of two sizes."""
        return quick if self.quick else full

    @property
    def turns(self) -> int:
        """How often the sides of a comparison are measured."""
        return self.rounds or self.size(3, 1)
