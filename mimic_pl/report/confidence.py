"""How confident a run's answers are, from its predictions."""

from __future__ import annotations

import numpy as np
import torch

from mimic_pl.calibration import Answers
from mimic_pl.calibration.answers import answers_from
from mimic_pl.evaluated_run import Predictions


def softmax_answers(predictions: Predictions) -> Answers:
    """First candidates of the test mentions as answers, which are never NIL.

    The confidence is the probability in the softmax of the overall scores *over the stored candidates*
    (``predictions.top_k`` of them, not the whole knowledge base), as the loss takes the softmax over a batch. It is
    higher with fewer candidates: only compare runs that store the same number.

    Args:
        predictions: Predictions of a run.
    """
    exponents = np.exp(predictions.top - predictions.top[:, :1])
    softmax = torch.from_numpy(1 / exponents.sum(axis=1))
    ranks = torch.from_numpy(predictions.ranks["overall"])
    return answers_from(softmax, torch.zeros_like(softmax), ranks == 1, ranks == 0)
