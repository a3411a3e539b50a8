"""Fitting the temperature and the score of NIL by maximum likelihood."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mimic_pl.calibration.probabilities import Calibration, level_of
from mimic_pl.calibration.scored_lists import ScoredLists
from mimic_pl.errors import ConfigError, DataError
from mimic_pl.ranges import COUNT, require_ranges

_WIDEST = 12.0
"""Bound of |log(spread of the scores / T)|, which keeps T finite where golds and others are perfectly separated."""


_CLEARLY = 1e-6
"""Smallest difference of the mean log-likelihood for which relative scores are preferred."""


class _Fitted(NamedTuple):
    temperature: float
    nil_score: float
    loss: float


def fit_calibration(
    lists: ScoredLists,
    top_k: int = 10,
    nil_share: float = 0.5,
    weights: str | None = None,
    source: Mapping[str, str | int | float] | None = None,
) -> Calibration:
    """Fit T and b by maximum likelihood.

        maximise  (1 - nil_share) sum over mentions with a gold of log P(a gold)
                  +     nil_share sum over all mentions of log P(NIL), in the list without their golds

    So each mention is used twice, once as it is and once with its golds taken out of the knowledge base: nothing is
    drawn at random. A mention without a gold in the knowledge base has the second case only. If a mention's gold is in
    the knowledge base but not among the first k, the answer is none of those scored, and its first case is
    log P(NIL), too. With several golds in a list, P(a gold) is their sum.

    If all lists have k entities, T and b are also fitted to scores relative to the mean of the first k (see
    :class:`Calibration`), and kept if that is more likely.

    Scores are shifted and divided by their spread, so that their unit does not matter, and L-BFGS works in float64 on
    log(1/T) and b/T. Adding a constant to all scores adds it to b; multiplying them multiplies T and b.

    Args:
        lists: Ranked lists of mentions that were not trained on, of at least top_k + number of golds entities.
        top_k: k.
        nil_share: Expected fraction of mentions without an entity in the knowledge base, above 0 and below 1.
        weights: See :class:`Calibration`.
        source: See :class:`Calibration`.

    Raises:
        ConfigError: ``nil_share`` or ``top_k`` is out of range, or the lists are too short.
        DataError: No mention has a gold among its first k entities.
    """
    require_ranges({"top_k": COUNT}, {"top_k": top_k}, "fit_calibration: ")
    if isinstance(nil_share, bool) or not 0 < nil_share < 1:
        raise ConfigError(f"fit_calibration: nil_share is {nil_share}; it must be a number above 0 and below 1.")
    given = lists.rows(lists.known).first(top_k)
    if not given.is_gold.any():
        raise DataError(
            f"No mention has its gold among its first {top_k} entities, so there is nothing to calibrate on. Use a "
            "labelled split of the same knowledge base, and a trained model."
        )
    removed = lists.without_golds(top_k)
    cases = ScoredLists.joined([given, removed])
    importance = torch.cat(
        [
            torch.full((len(given.scores),), 1 - nil_share, dtype=torch.float64),
            torch.full((len(removed.scores),), nil_share, dtype=torch.float64),
        ]
    )
    absolute = _maximum_likelihood(cases.scores, cases.is_gold, importance)
    relative = None
    if cases.scores.shape[1] == top_k and cases.scores.isfinite().all():
        found = _maximum_likelihood(cases.scores - level_of(cases.scores, top_k), cases.is_gold, importance)
        relative = found[:2] if found.loss < absolute.loss - _CLEARLY else None
    return Calibration(absolute.temperature, absolute.nil_score, top_k, weights, source, relative)


@torch.inference_mode(False)
@torch.enable_grad()
def _maximum_likelihood(scores: Tensor, is_gold: Tensor, importance: Tensor) -> _Fitted:
    """T and b, and the weighted mean of -log P.

    Args:
        scores: ``[cases, k]``, padded with -inf.
        is_gold: bool ``[cases, k]``; in a case without a gold the answer is NIL.
        importance: Weight of each case, float64 ``[cases]``.
    """
    scores, is_gold = scores.detach().cpu().double().clone(), is_gold.cpu().clone()
    missing = scores.isneginf()
    centre = scores[~missing].mean()
    spread = (scores[~missing] - centre).square().mean().sqrt()
    spread = spread if spread > 0 else torch.ones_like(spread)
    # Padding is masked after the product: the gradient of 0 * -inf is not a number.
    scaled = ((scores - centre) / spread).masked_fill(missing, 0.0)
    padding = torch.cat([missing, missing.new_zeros((len(missing), 1))], dim=1)
    wrong = ~torch.cat([is_gold, ~is_gold.any(dim=1, keepdim=True)], dim=1)
    importance = (importance / importance.sum()).clone()
    raw = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [raw], max_iter=500, tolerance_grad=1e-11, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def inverse_temperature() -> Tensor:
        return (_WIDEST * torch.tanh(raw[0] / _WIDEST)).exp()

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = torch.cat([inverse_temperature() * scaled, raw[1].expand(len(scaled), 1)], dim=1)
        logits = logits.masked_fill(padding, -torch.inf)
        right = logits.masked_fill(wrong, -torch.inf).logsumexp(dim=1)
        value = (importance * (logits.logsumexp(dim=1) - right)).sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    temperature = float(spread / inverse_temperature().detach())
    return _Fitted(temperature, float(centre) + float(raw[1].detach()) * temperature, float(loss().detach()))
