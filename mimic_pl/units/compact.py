"""A unit that stands for the overall score: one short vector per mention and per entity, to find candidates with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mimic_pl.features import FeatureDims, Features
from mimic_pl.loss_inputs import LossInputs, at_least_float32
from mimic_pl.ranges import COUNT, POSITIVE, in_range
from mimic_pl.units.base import State, Unit


class CompactVector(Unit):
    """One unit-length vector per side, trained to order entities as the overall score does (after FAST-MEL).

        S = exp(tau) (f_m . f_e),  f = W [t^G ; v^G] / |W [t^G ; v^G]|,  tau learned

    It is distilled: its loss is the Kullback-Leibler divergence of the softmax over the batch's entities of S from that
    of the overall score. It has no part in the overall score, and no gradient leaves it, so that all other scores are
    what they are without it. A retriever with ``unit`` set to its name searches by these vectors alone, which are a
    fraction of all units' vectors.

    Args:
        dims: Widths of the features.
        width: Length of the vectors.
        scale: Initial exp(tau).
        temperature: Divides both scores in the loss; higher ones give more weight to entities that are not the first.
    """

    reads_padding = False
    in_overall = False
    scoring_only = ("log_scale",)

    @in_range(width=COUNT, scale=POSITIVE, temperature=POSITIVE)
    def __init__(self, dims: FeatureDims, width: int = 128, scale: float = 1 / 0.07, temperature: float = 1.0) -> None:
        super().__init__(dims)
        self.temperature = temperature
        with torch.random.fork_rng(devices=[]):  # the weights of all other modules start as they do without this one
            self.projection = nn.Linear(dims.text + dims.image, width)
        self.log_scale = nn.Parameter(torch.tensor(float(scale)).log())

    def mention(self, features: Features) -> State:
        """State: ``vector``, ``[mentions, width]``."""
        return self._state(features)

    def entity(self, features: Features) -> State:
        """State: ``vector``, ``[entities, width]``."""
        return self._state(features)

    def score(self, mentions: State, entities: State) -> Tensor:
        """S, ``[mentions, entities]``."""
        return self.log_scale.exp() * (mentions["vector"] @ entities["vector"].T)

    def pairs(self, mentions: State, entities: State) -> Tensor:
        """S of aligned pairs, ``[pairs]``."""
        return self.log_scale.exp() * (mentions["vector"] * entities["vector"]).sum(dim=-1)

    def query_vector(self, mentions: State) -> Tensor:
        """The vector times exp(tau): its product is S, ``[mentions, width]``."""
        return self.log_scale.exp() * mentions["vector"]

    def key_vector(self, entities: State) -> Tensor:
        """The vector, ``[entities, width]``."""
        return entities["vector"]

    def loss(self, inputs: LossInputs) -> Tensor:
        """KL(softmax(overall / T) || softmax(S / T)) T^2, the mean over mentions, a scalar.

        The factor keeps the size of the gradient independent of the temperature T.
        """
        scores = inputs.local.scores  # mentions are independent: no communication between processes
        own, overall = (
            (at_least_float32(scores[name]) / self.temperature).log_softmax(dim=1) for name in (self.name, "overall")
        )
        divergence = nn.functional.kl_div(own, overall.detach(), reduction="batchmean", log_target=True)
        return inputs.local_weight * self.temperature**2 * divergence

    def _state(self, features: Features) -> State:
        joined = torch.cat([features.text_global, features.image_global], dim=-1)
        return {"vector": nn.functional.normalize(self.projection(joined.detach()), dim=-1)}
