"""From scores to probabilities, with a temperature and a score of NIL, and their file beside the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mimic_pl.checkpoints.atomic_io import write_run_file
from mimic_pl.construction import Recorded
from mimic_pl.errors import ConfigError, DataError
from mimic_pl.ranges import COUNT, POSITIVE, Range, in_range, require_ranges

FILE = "calibration.json"
"""Name of the file in the folder of a run or of an exported model."""

VERSION = 1
"""Version of the file's format."""

_RANGES = {"temperature": POSITIVE, "nil_score": Range(whole=False)}


class RelativeParameters(NamedTuple):
    """T and b for scores relative to the mean of their list.

    Attributes:
        temperature: T.
        nil_score: b, relative to the mean of the first k scores.
    """

    temperature: float
    nil_score: float


class Calibration(Recorded):
    """Probabilities of a mention's top entities and of NIL.

        P(entity i) = exp(s_i / T) / Z,  P(NIL) = exp(b / T) / Z,  Z = exp(b / T) + sum over the top k of exp(s_j / T)

    NIL, "none of those scored", is the most probable answer if b is above the first score.

    A loss that takes the softmax over entities is blind to a constant that is added to all scores of a mention, so
    their level may differ between mentions for no reason, and no b suits all of them. For such a model s and b are
    taken relative to the mean of the first k scores, with a T and b of their own, where the list has as many: a list
    that is shorter (of a filter, of a small knowledge base) has no such mean.

    Args:
        temperature: T.
        nil_score: b, on the scale of the overall scores.
        top_k: k. The sum is over the first k entities of a list, or all of a shorter one; the entities that follow
            have no influence, and probability 0.
        weights: Fingerprint of the model's weights that the scores are from (see
            :func:`~mimic_pl.ranking.fingerprint`); ``None`` if the scores are not those of a model alone.
        source: What it was fitted on, as plain values by name: split, mentions, date, ...
        relative: T and b relative to the mean of the first k scores; without, those above are for all lists.

    Raises:
        ConfigError: A value is out of range.

    Example:
        >>> probabilities, nil = Calibration(temperature=2.0, nil_score=1.0, top_k=2)(torch.tensor([[3.0, 1.0]]))
        >>> [round(value, 3) for value in (*probabilities[0].tolist(), nil.item())]
        [0.576, 0.212, 0.212]
    """

    @in_range(**_RANGES, top_k=COUNT)
    def __init__(
        self,
        temperature: float,
        nil_score: float,
        top_k: int = 10,
        weights: str | None = None,
        source: Mapping[str, str | int | float] | None = None,
        relative: tuple[float, float] | None = None,
    ) -> None:
        if relative is not None:
            relative = RelativeParameters(*relative)
            require_ranges(_RANGES, relative._asdict(), "Calibration: relative ")
        self.relative = relative
        self.temperature = float(temperature)
        self.nil_score = float(nil_score)
        self.top_k = int(top_k)
        self.weights = weights
        self.source = dict(source or {})

    def __call__(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Compute probabilities.

        Args:
            scores: Overall scores of each mention's candidates, best first, ``[mentions, candidates]``; padded with
                -inf, whose probability is 0.

        Returns:
            Probabilities of the candidates, float64 ``[mentions, candidates]`` on the CPU, and of NIL, ``[mentions]``.
        """
        scores = scores.detach().to("cpu", torch.float64)
        scores = scores.masked_fill(torch.arange(scores.shape[1]) >= self.top_k, -torch.inf)
        temperature = scores.new_full((len(scores), 1), self.temperature)
        nil_score = torch.full_like(temperature, self.nil_score)
        if self.relative is not None and scores.shape[1] >= self.top_k:
            level = level_of(scores, self.top_k)
            full = level.isfinite()
            temperature = temperature.masked_fill(full, self.relative.temperature)
            nil_score = torch.where(full, self.relative.nil_score + level, nil_score)
        # Shifted, since scores may be huge compared with T.
        values = torch.cat([scores, nil_score], dim=1)
        probabilities = ((values - values.amax(dim=1, keepdim=True)) / temperature).softmax(dim=1)
        return probabilities[:, :-1], probabilities[:, -1]

    def __eq__(self, other: object) -> bool:
        """Whether all values are equal."""
        return isinstance(other, Calibration) and self._content() == other._content()

    def __repr__(self) -> str:
        """The parameters."""
        relative = "" if self.relative is None else f", relative=({self.relative[0]:g}, {self.relative[1]:g})"
        return f"Calibration({self.temperature:g}, {self.nil_score:g}, top_k={self.top_k}{relative})"

    def require_weights(self, weights: str) -> None:
        """Check that the scores come from the model that the calibration was fitted on.

        Args:
            weights: ``fingerprint(model.encoder, model.matcher)`` of the model.

        Raises:
            ConfigError: The weights differ.
        """
        if self.weights is not None and self.weights != weights:
            checkpoint = self.source.get("checkpoint")
            of = f" ({checkpoint})" if checkpoint else ""
            raise ConfigError(
                f"The calibration was fitted on other weights{of} than those of this model, so its "
                "probabilities would be wrong. Fit it for these weights (mimic-pl calibrate --run RUN), or delete "
                f"{FILE}."
            )

    def save(self, folder: str | Path) -> Path:
        """Write ``calibration.json`` into a folder, atomically.

        Raises:
            MachineError: The disk is full, or the folder is not writable; an earlier file is intact.
        """
        path = Path(folder) / FILE
        text = json.dumps({"version": VERSION, **self._content()}, indent=2, ensure_ascii=False)
        write_run_file(path, (text + "\n").encode())
        return path

    @classmethod
    def load(cls, folder: str | Path) -> Calibration:
        """Read ``calibration.json`` of a folder.

        Raises:
            ConfigError: There is none.
            DataError: It is damaged, or was written by another version.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise ConfigError(f"{folder} has no calibration. Fit one: mimic-pl calibrate --run {folder}")
        advice = "Fit it again with mimic-pl calibrate, or delete the file to do without probabilities."
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = content.pop("version")
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise DataError(f"{path} is not a calibration ({error!r:.100}). {advice}") from error
        if version != VERSION:
            raise DataError(f"{path} has version {version!r:.20} of its format; this is version {VERSION}. {advice}")
        try:
            return cls._of(content)
        except (ConfigError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not a calibration ({error!s:.200}). {advice}") from error

    @classmethod
    def find(cls, folder: str | Path) -> Calibration | None:
        """The calibration in a folder; ``None`` without the file.

        Raises:
            DataError: It is damaged, or was written by another version.
        """
        return cls.load(folder) if (Path(folder) / FILE).is_file() else None

    def _content(self) -> dict[str, Any]:
        names = ("temperature", "nil_score", "top_k", "weights", "source")
        relative = None if self.relative is None else self.relative._asdict()
        return {**{name: getattr(self, name) for name in names}, "relative": relative}

    @classmethod
    def _of(cls, content: Mapping[str, Any]) -> Calibration:
        source, weights = content["source"], content["weights"]
        plain = isinstance(source, dict) and all(isinstance(own, str | int | float) for own in source.values())
        if not plain or not isinstance(weights, str | None):
            raise TypeError("source must map names to plain values, and weights be text")
        for name in ("temperature", "nil_score", "top_k"):
            if content[name] is None:  # which means "left out" to a range
                raise TypeError(f"{name} is null")
        relative = content["relative"]
        if relative is not None:
            relative = RelativeParameters(**relative)
        return cls(**{**content, "relative": relative})


def level_of(scores: Tensor, top_k: int) -> Tensor:
    """Mean of the first ``top_k`` scores of each list, ``[mentions, 1]``; -inf where there are fewer.

    Args:
        scores: ``[mentions, n]``, n at least ``top_k``; padded with -inf.
        top_k: Number of scores.
    """
    return scores[:, :top_k].mean(dim=1, keepdim=True)
