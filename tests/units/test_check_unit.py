"""Every built-in unit passes, and each violated requirement is detected and named."""

import pytest
import torch

from mimic_pl.errors import ConfigError
from mimic_pl.features import FeatureDims
from mimic_pl.units import CMFU, TGLU, VDLU, Bounds, CompactVector, GlobalCosine, Lexical, Unit, check_unit

DIMS = FeatureDims(text=12, image=10)


class Product(Unit):
    def __init__(self, dims):
        super().__init__(dims)
        self.down = torch.nn.Linear(dims.image, 4)

    def mention(self, features):
        return {"image": self.down(features.image_global)}

    def entity(self, features):
        return self.mention(features)

    def score(self, mentions, entities):
        return mentions["image"] @ entities["image"].T


@pytest.mark.parametrize(
    "unit",
    [
        TGLU(DIMS, 8),
        TGLU(DIMS, 8, mask_padding=True),
        VDLU(DIMS, 6),
        VDLU(DIMS, 6, gated=False),
        CMFU(DIMS, 8),
        GlobalCosine(DIMS),
        GlobalCosine(DIMS, modality="image"),
        CompactVector(DIMS, width=5),
        Product(DIMS),
    ],
    ids=lambda unit: type(unit).__name__,
)
def test_built_in_units_pass(unit):
    before = {name: weight.clone() for name, weight in unit.state_dict().items()}
    check_unit(unit)
    assert all(torch.equal(weight, before[name]) for name, weight in unit.state_dict().items())


def test_a_unit_with_extra_tensors():
    class Typed(Product):
        def mention(self, features):
            return {"image": self.down(features.image_global) * features.extra["kind"].sum(dim=1, keepdim=True)}

    check_unit(Typed(DIMS), extra={"kind": lambda count: torch.randn(count, 3)})
    terms = {
        "ids": lambda n: torch.stack([torch.randperm(20)[:6] for _ in range(n)]),
        "weights": lambda n: torch.rand(n, 6),
    }
    check_unit(Lexical(DIMS), extra={f"lexical.{name}": make for name, make in terms.items()})


def test_a_parameter_used_only_by_the_loss_is_allowed():
    class Auxiliary(Product):
        def __init__(self, dims):
            super().__init__(dims)
            self.head = torch.nn.Linear(dims.image, 1)

        def loss(self, inputs):
            return self.head(inputs.mentions.image_global).square().mean()

    check_unit(Auxiliary(DIMS))


class MissingRows(Product):
    def mention(self, features):
        return {"image": self.down(features.image_global), "mean": features.image_global.mean(dim=0)}


class Transposed(Product):
    def score(self, mentions, entities):
        return super().score(mentions, entities).T


class Infinite(Product):
    def score(self, mentions, entities):
        return super().score(mentions, entities) / 0


class SinglePairDiffers(Product):
    def score(self, mentions, entities):
        scores = super().score(mentions, entities)
        return scores if scores.numel() > 1 else scores * 2


class BatchDependent(Product):
    def mention(self, features):
        image = self.down(features.image_global)
        return {"image": image - image.mean(dim=0)}


class BlockDependent(Product):
    def score(self, mentions, entities):
        scores = super().score(mentions, entities)
        return scores - scores.mean(dim=1, keepdim=True) * (scores.shape[1] > 1) * (scores.shape[1] < 9)


class OtherPairs(Product):
    def pairs(self, mentions, entities):
        return (mentions["image"] * entities["image"]).sum(dim=1) + 1


class WrongBounds(Product):
    def bounds(self, mentions, entities):
        score = self.score(mentions, entities)
        return Bounds(score - 1, score - 0.5)


class NaNBounds(Product):
    def bounds(self, mentions, entities):
        score = self.score(mentions, entities)
        return Bounds(score - 1, score * float("nan"))


class Float32Scores(Product):
    def score(self, mentions, entities):
        return mentions["image"].float() @ entities["image"].float().T


class Float32Pairs(Product):
    def pairs(self, mentions, entities):
        return (mentions["image"].float() * entities["image"].float()).sum(dim=1)


class BlockDependentPairs(Product):
    def pairs(self, mentions, entities):
        scores = (mentions["image"] * entities["image"]).sum(dim=1)
        return scores if len(scores) > 7 else scores - 1


class IncompletePrepare(Product):
    def prepare(self, mentions):
        return {"norm": mentions["image"].norm(dim=1)}


class BatchDependentPrepare(Product):
    def prepare(self, mentions):
        return {**mentions, "norm": mentions["image"].norm()[None]}


class ReadsPadding(Unit):
    reads_padding = False

    def mention(self, features):
        return {"text": features.text_local.mean(dim=1)}

    entity = mention

    def score(self, mentions, entities):
        return mentions["text"] @ entities["text"].T


class Unused(Product):
    def __init__(self, dims):
        super().__init__(dims)
        self.idle = torch.nn.Linear(3, 3)


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        (MissingRows, "the state 'mean' of 6 records has shape"),
        (Transposed, r"score returns \[9, 6\] for 6 mentions and 9 entities"),
        (Infinite, "not finite"),
        (SinglePairDiffers, "one by one and together differ"),
        (BatchDependent, "one by one and together differ"),
        (BlockDependent, "in blocks and at once differ"),
        (OtherPairs, "pairs, 54 at once, and score differ by 1"),
        (BlockDependentPairs, "pairs, 7 at once, and score differ by 1"),
        (Float32Pairs, r"in float64 its pairs are torch\.float32"),
        (IncompletePrepare, r"prepare drops \['image'\] from the mentions' state"),
        (BatchDependentPrepare, r"the state 'norm' of 6 records has shape \[1\]"),
        (WrongBounds, r"outside its bounds by 0\.5"),
        (NaNBounds, "upper bound contains NaN"),
        (Float32Scores, r"in float64 its scores are torch\.float32"),
        (ReadsPadding, "different padding"),
        (Unused, r"no gradient reaches idle\.weight, idle\.bias"),
    ],
)
def test_a_violated_requirement_is_named(unit, message):
    with pytest.raises(ConfigError, match=f"The unit {unit.__name__} cannot be used: .*{message}"):
        check_unit(unit(DIMS))
