"""A simple baseline unit: cosine similarity of the global features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from mimic_pl.errors import ConfigError
from mimic_pl.features import IMAGE_PRETRAINED, TEXT_PRETRAINED, FeatureDims, Features
from mimic_pl.ranges import COUNT, POSITIVE, in_range, one_of
from mimic_pl.units.base import Side, State, Unit

Modality = Literal["both", "text", "image"]

_UNIT = 1 << 30
"""Fixed-point steps per 1: sums of whole numbers do not depend on the order."""

_SHORTEST = 1e-3
"""Centred features shorter than this are rounding errors of features that equal the mean; their cosines tend to 0."""

_NO_VARIANCE = 1e-6
"""Fraction of the largest eigenvalue that cannot be told from 0 in float32."""


class GlobalCosine(Unit):
    """Cosine of the concatenated global features with a learned scale, which sharpens it for a contrastive loss.

        S = exp(tau) cos(x_m - mu_m, x_e - mu_e),  x = [t^G ; v^G] / |[t^G ; v^G]|,  tau learned

    mu is 0, or, if ``centered``, the mean of a side: of the entities of the knowledge base, and of the mentions that
    were passed to :meth:`set_totals`, if any (otherwise mu_m = mu_e). Features of pretrained towers share a large
    common part, which says nothing about the pair and differs between the sides. The means are no part of any state, so
    that they can follow a knowledge base without encoding it again.

    With a ``projection``, W x takes the place of x in states and means, with W learned. It starts from a random
    rotation, or, with :class:`~mimic_pl.callbacks.Whitening`, from a whitening of the features, which scores better
    than the features themselves before any training.

    Args:
        dims: Widths of the features.
        scale: Initial exp(tau); 1 / 0.07 as in CLIP.
        modality: Compare the ``text`` features only, the ``image`` features only, or ``both``.
        pretrained: Compare the features of the pretrained towers, without any projection or norm: for a model that is
            not trained, or beside units that are. A missing image then has the score 0.
        centered: Subtract the means.
        projection: Number of rows of W; none by default.

    Raises:
        ConfigError: ``pretrained``, but the encoder does not return the towers' own features.
    """

    reads_padding = False
    scoring_only = ("log_scale", "mention_center", "mention_count")
    of_knowledge_base = ("entity_center",)

    entity_center: Tensor
    mention_center: Tensor
    mention_count: Tensor

    @in_range(scale=POSITIVE, modality=one_of(Modality), projection=COUNT)
    def __init__(
        self,
        dims: FeatureDims,
        scale: float = 1 / 0.07,
        modality: Modality = "both",
        pretrained: bool = False,
        centered: bool = False,
        projection: int | None = None,
    ) -> None:
        super().__init__(dims)
        self.modality = modality
        self.pretrained = pretrained
        self.centered = self.has_totals = centered
        self.log_scale = nn.Parameter(torch.tensor(float(scale)).log())
        text, image = (dims.text_pretrained, dims.image_pretrained) if pretrained else (dims.text, dims.image)
        widths = {"text": [text], "image": [image], "both": [text, image]}[modality]
        if not all(widths):
            raise ConfigError(
                "GlobalCosine with pretrained needs an encoder that returns the features of its pretrained towers "
                "(Features.extra and FeatureDims: text_pretrained, image_pretrained). This one does not: return them, "
                "or set pretrained to false."
            )
        width = sum(widths)
        self.projection: nn.Parameter | None = None
        if projection is not None:
            width = min(projection, width)
            self.projection = nn.Parameter(nn.init.orthogonal_(torch.empty(width, sum(widths))))
        if centered:
            self.register_buffer("entity_center", torch.zeros(width))
            self.register_buffer("mention_center", torch.zeros(width))
            self.register_buffer("mention_count", torch.zeros((), dtype=torch.int64))

    def mention(self, features: Features) -> State:
        """State: ``direction`` ``[mentions, width]``, x, or W x with a projection (zeros for a missing image)."""
        return {"direction": self._direction(features)}

    def entity(self, features: Features) -> State:
        """State: ``direction`` ``[entities, width]``, as of mentions."""
        return {"direction": self._direction(features)}

    def score(self, mentions: State, entities: State) -> Tensor:
        """S, ``[mentions, entities]``."""
        of_mentions, of_entities = self._compared(mentions, entities)
        return self.log_scale.exp() * (of_mentions @ of_entities.T)

    def pairs(self, mentions: State, entities: State) -> Tensor:
        """S of aligned pairs, ``[pairs]``."""
        of_mentions, of_entities = self._compared(mentions, entities)
        return self.log_scale.exp() * (of_mentions * of_entities).sum(dim=-1)

    def query_vector(self, mentions: State) -> Tensor:
        """The compared vector times exp(tau): its product is S, ``[mentions, width]``."""
        return self.log_scale.exp() * self._mention_vector(mentions)

    def key_vector(self, entities: State) -> Tensor:
        """The compared vector, ``[entities, width]``."""
        return self._entity_vector(entities)

    def totals(self, state: State) -> dict[str, Tensor]:
        """``count`` of the vectors and their ``sum`` in steps of 2^-30, ``[width]``, if ``centered``."""
        if not self.centered:
            return {}
        direction = state["direction"]
        steps = (direction.double() * _UNIT).round().long()
        return {"count": _present(direction).sum(), "sum": steps.sum(dim=0)}

    def set_totals(self, side: Side, totals: Mapping[str, Tensor]) -> None:
        """Set the mean of a side from its :meth:`totals`."""
        if not self.centered:
            return
        center = totals["sum"].double() / (_UNIT * totals["count"].clamp_min(1))
        if side == "entities":
            self.entity_center.copy_(center)
        else:
            self.mention_center.copy_(center)
            self.mention_count.copy_(totals["count"])

    def _compared(self, mentions: State, entities: State) -> tuple[Tensor, Tensor]:
        """The vectors whose products are cosines, ``[mentions, width]`` and ``[entities, width]``."""
        return self._mention_vector(mentions), self._entity_vector(entities)

    def _mention_vector(self, mentions: State) -> Tensor:
        if not self.centered:
            return self._uncentered(mentions)
        center = torch.where(self.mention_count > 0, self.mention_center, self.entity_center)
        return _shifted(mentions["direction"], center)

    def _entity_vector(self, entities: State) -> Tensor:
        return _shifted(entities["direction"], self.entity_center) if self.centered else self._uncentered(entities)

    def _uncentered(self, state: State) -> Tensor:
        return state["direction"] if self.projection is None else _unit(state["direction"])

    @torch.no_grad()
    def whiten(self, *sides: Tensor) -> None:
        """Set W to the whitening of features, each side centred on its own mean.

            W = c (L + l I)^(-1/2) V^T

        with V and L the leading eigenvectors and eigenvalues of their covariance, l its mean eigenvalue, which keeps
        noise from being blown up, and c such that the rows of W (x - mu) have a mean length of 1.

        Args:
            sides: Unit vectors x of :meth:`compared`, ``[rows, width]``, such as those of mentions and of entities.

        Raises:
            ConfigError: There is no projection, or there are too few different features to whiten.
        """
        if self.projection is None:
            raise ConfigError("GlobalCosine without a projection has nothing to whiten: set its projection.")
        present = [side[_present(side)].float() for side in sides]
        rows = torch.cat([side - side.mean(dim=0) for side in present if len(side)])
        rank, variance = min(rows.shape), rows.square().sum() / len(rows)
        if rank < len(self.projection) or variance < _SHORTEST**2:
            raise ConfigError(
                f"A projection to {len(self.projection)} dimensions cannot be whitened with {len(rows)} different "
                "features. Lower the unit's projection."
            )
        # Eigenvectors of the smaller of both products.
        few = len(rows) < rows.shape[1]
        values, axes = torch.linalg.eigh(rows @ rows.T if few else rows.T @ rows)
        values, axes = values[-len(self.projection) :], axes[:, -len(self.projection) :]
        if few:
            # Records that are alike leave axes along which nothing varies: these are 0, and not rounding errors of 1.
            axes = rows.T @ axes / values.clamp_min(values[-1] * _NO_VARIANCE).sqrt()
        whitening = (axes * (values.clamp_min(0) / len(rows) + variance / rank).rsqrt()).T
        self.projection.copy_(whitening / torch.linalg.vector_norm(rows @ whitening.T, dim=1).mean())

    def compared(self, features: Features) -> Tensor:
        """The unit vectors x ``[batch, width]``, zeros for a missing image, before the projection."""
        if self.pretrained:
            try:
                text, image = features.extra[TEXT_PRETRAINED], features.extra[IMAGE_PRETRAINED]
            except KeyError as error:
                raise ConfigError(
                    f"The encoder has not returned the features {error}, which its dims have. Return them in "
                    "Features.extra."
                ) from error
        else:
            text, image = features.text_global, features.image_global
        compared = {"text": [text], "image": [image], "both": [text, image]}[self.modality]
        return _unit(torch.cat(compared, dim=-1))

    def _direction(self, features: Features) -> Tensor:
        compared = self.compared(features)
        return compared if self.projection is None else nn.functional.linear(compared, self.projection)


def _unit(vectors: Tensor) -> Tensor:
    return nn.functional.normalize(vectors, dim=-1)


def _present(direction: Tensor) -> Tensor:
    """Which rows are not the zeros of a missing image, bool ``[rows]``."""
    return direction.square().sum(dim=-1) > 0


def _shifted(direction: Tensor, center: Tensor) -> Tensor:
    shifted = direction - center.to(direction.dtype)
    length = torch.linalg.vector_norm(shifted, dim=-1, keepdim=True).clamp_min(_SHORTEST)
    return (shifted / length).masked_fill(~_present(direction)[:, None], 0.0)
