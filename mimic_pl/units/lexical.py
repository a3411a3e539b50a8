"""A lexical unit: overlap of the terms of mention and entity, which dense encoders capture less precisely."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mimic_pl.errors import ConfigError
from mimic_pl.features import FeatureDims, Features
from mimic_pl.ranges import POSITIVE, in_range
from mimic_pl.units.base import State, Unit


class Lexical(Unit):
    """Weighted term overlap of both texts, times a learned factor.

        S = exp(tau) sum over terms t of w_m(t) w_e(t),  tau learned

    Terms and weights are features from the processor; no term of a text is there twice, but for padding of weight 0.
    With :class:`~mimic_pl.processor.BM25Lexicon` the sum is BM25 with the mention's text as the query. Only tau is
    trained.

    Args:
        dims: Widths of the features.
        scale: Initial exp(tau).
        feature: Name of the features in the processor.
    """

    reads_padding = False
    scoring_only = ("log_scale",)

    @in_range(scale=POSITIVE)
    def __init__(self, dims: FeatureDims, scale: float = 1.0, feature: str = "lexical") -> None:
        super().__init__(dims)
        self.feature = feature
        self.log_scale = nn.Parameter(torch.tensor(float(scale)).log())

    def mention(self, features: Features) -> State:
        """State: ``ids`` and ``weights`` of the text's terms, ``[mentions, terms]``."""
        return self._state(features)

    def entity(self, features: Features) -> State:
        """State: ``ids`` and ``weights`` of the text's terms, ``[entities, terms]``."""
        return self._state(features)

    def score(self, mentions: State, entities: State) -> Tensor:
        """S, ``[mentions, entities]``."""
        ids, weights = entities["ids"], entities["weights"]
        # Only terms of mentions matter: one row each, and an empty last row for all other terms.
        known = torch.unique(mentions["ids"])
        rows = torch.searchsorted(known, ids).clamp_max(len(known) - 1)
        rows = torch.where(known[rows] == ids, rows, len(known))
        queries = weights.new_zeros(len(known) + 1, len(mentions["ids"]))
        columns = torch.arange(len(mentions["ids"]), device=ids.device)[:, None].expand_as(mentions["ids"])
        indices = torch.searchsorted(known, mentions["ids"]), columns
        queries.index_put_(indices, mentions["weights"].to(weights.dtype), accumulate=True)
        overlap = nn.functional.embedding_bag(rows, queries, per_sample_weights=weights, mode="sum")
        return self.log_scale.exp() * overlap.T

    def pairs(self, mentions: State, entities: State) -> Tensor:
        """S of aligned pairs, ``[pairs]``."""
        ids, columns = mentions["ids"].sort(dim=1)
        rows = torch.searchsorted(ids, entities["ids"].contiguous()).clamp_max(ids.shape[1] - 1)
        weights = mentions["weights"].gather(1, columns).gather(1, rows) * entities["weights"]
        return self.log_scale.exp() * weights.where(ids.gather(1, rows) == entities["ids"], 0).sum(dim=1)

    def _state(self, features: Features) -> State:
        try:
            ids, weights = (features.extra[f"{self.feature}.{name}"] for name in ("ids", "weights"))
        except KeyError as error:
            raise ConfigError(
                f"The Lexical unit needs the features {self.feature!r}, which the processor does not have. "
                f"Add them: --model.processor.features.{self.feature} mimic_pl.processor.BM25Lexicon."
            ) from error
        return {"ids": ids, "weights": weights}
