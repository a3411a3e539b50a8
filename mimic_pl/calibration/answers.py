"""Answers to mentions: an entity or NIL, with a confidence, and how good they are."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_f1_score, binary_precision, binary_recall

from mimic_pl.calibration.probabilities import Calibration
from mimic_pl.calibration.reliability import reliability
from mimic_pl.calibration.risk_coverage import risk_coverage
from mimic_pl.calibration.scored_lists import ScoredLists


class Answers(NamedTuple):
    """The most probable answer to each mention: its first candidate, or NIL.

    Attributes:
        confidence: Probability of the answer, float64 ``[mentions]``.
        answered_nil: Whether the answer is NIL, bool ``[mentions]``.
        is_nil: Whether no gold is in the knowledge base, bool ``[mentions]``.
        correct: Whether the answer is right, bool ``[mentions]``: the first candidate is a gold, or the answer is NIL
            and no gold is in the knowledge base. NIL is wrong for a mention whose gold is merely ranked too low.
    """

    confidence: Tensor
    answered_nil: Tensor
    is_nil: Tensor
    correct: Tensor


def answers_of(lists: ScoredLists, calibration: Calibration | None, top_k: int) -> Answers:
    """Answers with and without a calibration.

    Args:
        lists: Ranked lists of mentions.
        calibration: The calibration. Without one, the confidence is the softmax over the scores as they are, and the
            answer is never NIL.
        top_k: Number of entities in the softmax without calibration.
    """
    if calibration is None:
        probabilities = lists.scores[:, :top_k].double().softmax(dim=1).nan_to_num(0.0)  # NaN for an empty list
        nil = torch.zeros(len(probabilities), dtype=torch.float64)
    else:
        probabilities, nil = calibration(lists.scores)
    return answers_from(probabilities[:, 0], nil, lists.is_gold[:, 0], ~lists.known)


def answers_from(first: Tensor, nil: Tensor, first_is_gold: Tensor, is_nil: Tensor) -> Answers:
    """Answers from probabilities.

    Args:
        first: Probability of each mention's first candidate, ``[mentions]``.
        nil: Probability of NIL, ``[mentions]``.
        first_is_gold: Whether the first candidate is a gold, bool ``[mentions]``.
        is_nil: Whether no gold is in the knowledge base, bool ``[mentions]``.
    """
    answered_nil = nil > first
    correct = torch.where(answered_nil, is_nil, first_is_gold)
    return Answers(torch.maximum(first, nil), answered_nil, is_nil, correct)


_POINTS = 101
"""Maximum number of points of a written risk-coverage curve."""


def answer_curves(answers: Answers) -> dict[str, list[list[float]]]:
    """Curves of answers as plain numbers, for a file.

    Returns:
        ``reliability``, bins with answers as mean confidence, accuracy and share of the answers; ``risk_coverage``,
        points as coverage and risk.
    """
    bins = reliability(answers.confidence, answers.correct)
    filled = torch.stack([bins.confidence, bins.accuracy, bins.share], dim=1)[bins.share > 0]
    curve = risk_coverage(answers.confidence, answers.correct)
    count = len(curve.coverage)
    points = torch.linspace(0, count - 1, min(count, _POINTS)).round().long()
    risks = torch.stack([curve.coverage, curve.risk], dim=1)[points]
    return {"reliability": _rounded(filled), "risk_coverage": _rounded(risks)}


def _rounded(rows: Tensor) -> list[list[float]]:
    return [[round(value, 5) for value in row] for row in rows.tolist()]


def answer_metrics(answers: Answers) -> dict[str, float]:
    """Metrics of answers.

    Returns:
        ``mentions`` and ``nil_mentions``, their numbers; ``accuracy``, the fraction of right answers; ``ece``, the
        expected calibration error (see :func:`reliability`); ``aurc``, the area under the risk-coverage curve (see
        :func:`risk_coverage`); and if there are NIL mentions ``nil_precision``, ``nil_recall`` and ``nil_f1`` of the
        answer NIL.
    """
    found = {
        "mentions": len(answers.correct),
        "nil_mentions": int(answers.is_nil.sum()),
        "accuracy": float(answers.correct.double().mean()),
        "ece": reliability(answers.confidence, answers.correct).error,
        "aurc": risk_coverage(answers.confidence, answers.correct).area,
    }
    if answers.is_nil.any():
        sides = answers.answered_nil.long(), answers.is_nil.long()
        found["nil_precision"] = float(binary_precision(*sides))
        found["nil_recall"] = float(binary_recall(*sides))
        found["nil_f1"] = float(binary_f1_score(*sides))
    return found
