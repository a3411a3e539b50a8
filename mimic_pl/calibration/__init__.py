"""Calibration: probabilities of candidates, and of "none of them", from the scores of a ranking.

With the scores s_1 >= s_2 >= ... >= s_k of a mention's top k entities,

    P(entity i) = exp(s_i / T) / Z,  P(NIL) = exp(b / T) / Z,  Z = exp(b / T) + sum over j of exp(s_j / T)

NIL means that none of the k scored entities is the answer. (For models whose scores have no common level, s and b are
relative to the mean of the list: see :class:`Calibration`.) The temperature T and the score b of NIL are fitted on a
split that was not trained on, where NIL cases are had by taking golds out of the knowledge base.

- :class:`Calibration`: T, b and k; from scores to probabilities; saved as ``calibration.json`` beside the weights.
- :class:`ScoredLists`: the ranked lists of mentions, with and without their golds.
- :func:`fit_calibration`: T and b of maximum likelihood.
- :func:`answers_of`, :func:`answer_metrics`: what is answered, how confidently, and how often that is right.
- :func:`reliability`, :func:`risk_coverage`: the curves.

Example:
    >>> import torch
    >>> lists = ScoredLists(torch.tensor([[3.0, 1.0, 0.0], [2.0, 1.5, 1.0]]), torch.eye(3)[:2].bool())
    >>> calibration = fit_calibration(lists, top_k=2)
    >>> probabilities, nil = calibration(lists.scores[:, :2])
    >>> bool(torch.allclose(probabilities.sum(dim=1) + nil, torch.ones_like(nil)))
    True
"""

from mimic_pl.calibration.answers import Answers, answer_curves, answer_metrics, answers_of
from mimic_pl.calibration.fit import fit_calibration
from mimic_pl.calibration.probabilities import FILE, Calibration
from mimic_pl.calibration.reliability import Reliability, reliability
from mimic_pl.calibration.risk_coverage import RiskCoverage, risk_coverage
from mimic_pl.calibration.scored_lists import ScoredLists

__all__ = [
    "FILE",
    "Answers",
    "Calibration",
    "Reliability",
    "RiskCoverage",
    "ScoredLists",
    "answer_curves",
    "answer_metrics",
    "answers_of",
    "fit_calibration",
    "reliability",
    "risk_coverage",
]
