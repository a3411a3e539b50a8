"""MIMIC as a LightningModule: encoder, units, loss and ranking wired together (Luo et al., KDD 2023)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torchmetrics import MetricCollection

from mimic_pl.distributed import ProcessGroup
from mimic_pl.encoders import INPUTS, CLIPEncoder, Encoder, filled_up
from mimic_pl.errors import NonFiniteScoreError
from mimic_pl.features import Features, Terms
from mimic_pl.gathered_batch import GatheredBatch
from mimic_pl.indexing import make_index
from mimic_pl.losses import LossTerm, UnitConsistentLoss, same_gold
from mimic_pl.metrics import GoldMetrics, rank_metrics
from mimic_pl.published import load_weights, published_sizes, read_published
from mimic_pl.ranking import EntityIndex, IndexBuilder, Ranker, Ranking
from mimic_pl.units import CMFU, TGLU, VDLU, Matcher, MatcherFactory, States, UnitFactory, published_units
from mimic_pl.unused import unused_parameters

Side = dict[str, Tensor]
"""Tokens and images of one side as the encoder takes them, and terms where the data module has a lexicon."""


def published_optimizer(params: Any) -> torch.optim.Optimizer:
    """AdamW with the paper's settings."""
    return torch.optim.AdamW(params, lr=1e-5, betas=(0.9, 0.999), eps=1e-4, weight_decay=1e-4)


class MIMIC(LightningModule):
    """Multi-grained multimodal interaction network for entity linking.

    A batch's mentions and entities are encoded by the same encoder; every unit scores every pair; the overall score is
    the units' mean. Validation and test rank the whole knowledge base of the data module, exactly.

    To build on it, subclass and override the hook that holds your idea:

    - :meth:`encode`: from tokens and images of one side to features;
    - :meth:`configure_matcher`: the shared norms, the units and how their scores combine;
    - :meth:`compute_loss`: from the scores of a training batch to the loss;
    - :meth:`parameter_groups`: what decays and at which rate;
    - :meth:`configure_metrics`: what is computed from the ranks;
    - :meth:`rank`: from a batch of mentions to ranks and top entities.

    Args:
        encoder: Turns tokens and images into features.
        units: The interaction units by name; the published three by default. The names are those of the scores.
        matcher: Holds the units and combines their scores: their mean by default, as published, or
            :class:`~mimic_pl.units.WeightedMatcher`.
        loss: Turns the scores of a training batch into the loss; the published one by default.
        extra_losses: Further terms by name, added to the loss; none by default.
        optimizer: Makes the optimizer from parameter groups; published settings by default.
        lr_scheduler: Makes a scheduler from the optimizer, stepped each epoch; none by default, as published.
        ranker: Ranks the knowledge base in evaluation.
        index: Builds the index of the knowledge base that is ranked: in which dtype, and where it is stored.
        global_negatives: In training on several processes, the entities of all processes' batches are negatives of
            each mention, as if one process had the whole batch; off, those of its own process's batch.
        compile_encoder: Compile the encoder with :func:`torch.compile` (a minute or more before the first step; needs a
            C++ compiler).

    Example:
        >>> model = MIMIC(CLIPEncoder("openai/clip-vit-base-patch32"))  # doctest: +SKIP
        >>> model.score(mention_features, entity_features)["overall"]  # [mentions, entities]  # doctest: +SKIP
    """

    def __init__(
        self,
        encoder: Encoder,
        units: dict[str, UnitFactory] | None = None,
        matcher: MatcherFactory = Matcher,
        loss: UnitConsistentLoss | None = None,
        extra_losses: dict[str, LossTerm] | None = None,
        optimizer: OptimizerCallable = published_optimizer,
        lr_scheduler: LRSchedulerCallable | None = None,
        ranker: Ranker | None = None,
        index: IndexBuilder | None = None,
        global_negatives: bool = True,
        compile_encoder: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.make_matcher = matcher
        self.matcher = self.configure_matcher(units or published_units())
        self.loss = loss or UnitConsistentLoss()
        self.extra_losses = nn.ModuleDict(extra_losses or {})
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.ranker = ranker or Ranker()
        self.index_builder = index or IndexBuilder()
        self.global_negatives = global_negatives
        if compile_encoder:
            self.encoder.compile()  # in place: the names of the weights stay
        self.metrics = self.configure_metrics()
        self.gold_metrics = nn.ModuleDict({s: GoldMetrics(s, self.ranker.ranked(self.matcher)) for s in self.metrics})
        self.index: EntityIndex | None = None
        self._unused: dict[str, nn.Parameter] = {}

    # ---- scores -----------------------------------------------------------------------------------------------

    def configure_matcher(self, units: dict[str, UnitFactory]) -> Matcher:
        """Make the part that scores pairs.

        Training and ranking both score through it and nothing else: to combine the units otherwise than by their mean,
        configure or return a subclass of :class:`~mimic_pl.units.Matcher` with another ``combine``.
        """
        return self.make_matcher(self.encoder.dims, units)

    def encode(self, side: Side) -> Features:
        """Turn tokens and images of one side into features; training and ranking both do it here.

        Args:
            side: ``input_ids``, ``attention_mask``, ``pixel_values`` of a batch of mentions or entities, and
                ``term_ids``, ``term_weights`` where the data module has a lexicon.
        """
        features: Features = self.encoder(**{name: side[name] for name in INPUTS})
        if "term_ids" in side:
            features = features._replace(terms=Terms(side["term_ids"], side["term_weights"]))
        return features

    def score(self, mentions: Features, entities: Features) -> dict[str, Tensor]:
        """Score every pair from features: ``overall`` and each unit by name, each ``[mentions, entities]``.

        Not for overriding: ranking goes through the matcher's states instead of features.
        """
        return self.matcher.score(self.matcher.mention(mentions), self.matcher.entity(entities))

    def forward(self, mentions: Side, entities: Side) -> dict[str, Tensor]:
        """Score every pair from tokens and images; see :meth:`score`."""
        return self.score(self.encode(mentions), self.encode(entities))

    # ---- training ---------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Freeze what does not train, where DDP would wait for its gradients; the log names it.

        It stays in the optimizer's groups, so that a checkpoint goes on with any number of processes.
        """
        if stage != "fit" or not isinstance(self.trainer.strategy, DDPStrategy):
            return
        # A small batch, with nothing compiled for its shape, and random numbers that nobody misses.
        with torch.enable_grad(), torch.random.fork_rng(), torch.compiler.set_stance("force_eager"):
            loss, _ = self._training_loss(
                cast(Any, self.trainer).datamodule.training_sample(), ProcessGroup(alone=True)
            )
            self._unused = unused_parameters(self, loss)
        for parameter in self._unused.values():
            parameter.requires_grad_(False)
        if self._unused:
            rank_zero_info(f"Not trained, since the loss does not depend on them: {', '.join(self._unused)}.")

    def compute_loss(self, scores: dict[str, Tensor], batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a training batch, and its terms for the log.

        Args:
            scores: Named scores ``[batch, columns]``; column j is the gold of mention j. There are more columns than
                mentions where hard negatives are mined.
            batch: The batch as the data module made it.
        """
        total, terms = self.loss(scores, batch["gold"], batch.get("golds"), batch.get("columns"))
        return total, terms

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One step: loss of the batch's mentions against the batch's gold entities."""
        total, terms = self._training_loss(batch, ProcessGroup())
        size = len(batch["index"])
        self.log("train/loss", total, prog_bar=True, on_step=True, on_epoch=True, batch_size=size)
        self.log_dict({f"train/loss_{name}": term for name, term in terms.items()}, batch_size=size)
        return total

    def _training_loss(self, batch: dict[str, Any], processes: ProcessGroup) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and terms of a batch, whose entities are negatives of the mentions of all processes."""
        own = batch.get("columns", batch["gold"])
        shared = GatheredBatch(processes, len(batch["gold"]), len(own), self.device, self.global_negatives)
        mentions, entities = self.encode(batch["mentions"]), self.encode(batch["entities"])
        columns = shared.positions(own)
        states = shared.states(self.matcher.entity(entities))
        scores = self.matcher.score(self.matcher.mention(mentions), states)
        total, terms = self.compute_loss(scores, {**batch, "columns": columns})
        total = shared.share * total
        if self.extra_losses:
            # These look at more than a mention's own row: each process computes them for all.
            golds = batch.get("golds", batch["gold"][:, None])
            gold, golds = shared.rows(batch["gold"], golds)
            right = same_gold(gold, golds, columns)
            sides = shared.all_mentions(mentions), shared.all_entities(entities)
            scores = shared.all_scores(scores)
            for name, term in self._named_extra_losses():
                terms[name] = term(scores, *sides, right)
                total = total + shared.share_of_all * term.weight * terms[name]
        return total, terms

    def _named_extra_losses(self) -> Iterator[tuple[str, LossTerm]]:
        for name, term in self.extra_losses.items():
            yield name, cast(LossTerm, term)

    def on_fit_start(self) -> None:
        """Remember the run's seed."""
        self._seed = torch.initial_seed()

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Seed dropout by step and process, so that a resumed run draws what the undisturbed one would have drawn."""
        torch.manual_seed((self._seed + 1_000_003 * (self.global_step + 1) + self.global_rank) % 2**63)

    def configure_optimizers(self) -> Any:
        """Optimizer over :meth:`parameter_groups`, and the scheduler if there is one."""
        optimizer = self.optimizer(self.parameter_groups())
        if self.lr_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.lr_scheduler(optimizer)}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Trainable parameters, split by the published rule of what is exempt from weight decay.

        Exempt are names that contain ``bias`` or ``LayerNorm.weight``; norms under other names (CLIP's ``layer_norm1``,
        the units') do decay in the published model, and so here.
        """
        named = [(name, p) for name, p in self.named_parameters() if p.requires_grad or name in self._unused]
        exempt = [p for name, p in named if "bias" in name or "LayerNorm.weight" in name]
        decayed = [p for name, p in named if not ("bias" in name or "LayerNorm.weight" in name)]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": exempt, "weight_decay": 0.0}]
        return [group for group in groups if group["params"]]

    # ---- evaluation -------------------------------------------------------------------------------------------

    def configure_metrics(self) -> nn.ModuleDict:
        """Make the metrics: for ``val`` and ``test``, a collection over ranks for each score."""
        return nn.ModuleDict(
            {
                stage: nn.ModuleDict(
                    {
                        name: rank_metrics(f"{stage}/" if name == "overall" else f"{stage}/{name}/")
                        for name in self.ranker.ranked(self.matcher)
                    }
                )
                for stage in ("val", "test")
            }
        )

    def on_validation_epoch_start(self) -> None:
        """Encode the knowledge base with the present weights."""
        self.index = self.encode_entities()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Rank the whole knowledge base for a batch of mentions."""
        return self._evaluation_step(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of all mentions."""
        self._log_metrics("val")

    def on_test_epoch_start(self) -> None:
        """Encode the knowledge base with the present weights."""
        self.index = self.encode_entities()

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Rank the whole knowledge base for a batch of mentions."""
        return self._evaluation_step(batch, "test")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of all mentions."""
        self._log_metrics("test")

    def on_predict_epoch_start(self) -> None:
        """Encode the knowledge base with the present weights."""
        self.index = self.encode_entities()

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Rank the whole knowledge base for a batch of mentions, with or without golds."""
        ranking = self.rank(batch, "predict")
        counted = batch["index"].ge(0).nonzero()[:, 0]
        return {"ranking": ranking.at(counted), "index": batch["index"][counted]}

    def on_predict_epoch_end(self) -> None:
        """Let the index go."""
        self.index = None

    @torch.no_grad()
    def encode_entities(self) -> EntityIndex:
        """Make the index of the data module's knowledge base, as :attr:`index_builder` says.

        Raises:
            ConfigError: The Trainer was given bare loaders instead of a data module.
            StoreError: The index on disk was built by another model or from other data, or is damaged.
        """
        return make_index(self, self.trainer, self.index_builder)

    def taken_in(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch of a loader that the Trainer does not drive: on the model's device and in its precision."""
        moved = self.trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        return self.trainer.precision_plugin.convert_input(moved)

    def entity_states(self, side: Side) -> States:
        """Encode entities for the index: those that a unit cannot tell apart (all without an image) get one state."""
        size = len(side["input_ids"])
        features = self.encode(filled_up(side))
        states = self.matcher.entity(features.padded(self.encoder.text_length))
        return {unit: {key: tensor[:size] for key, tensor in state.items()} for unit, state in states.items()}

    def mention_states(self, side: Side) -> States:
        """Encode mentions to be ranked for.

        Scores are ordered, so the states are float32 whatever precision the features were computed in.
        """
        states = self.matcher.mention(self.encode(side))
        return {unit: {key: _as_float32(tensor) for key, tensor in state.items()} for unit, state in states.items()}

    def rank(self, batch: dict[str, Any], split: str) -> Ranking:
        """Rank the whole knowledge base for a batch of mentions; with several processes each has a batch of its own.

        Args:
            batch: Mentions, their golds and their positions in the split.
            split: ``val``, ``test`` or ``predict``.

        Raises:
            NonFiniteScoreError: A score is NaN or infinite; the message names the mention.
        """
        assert self.index is not None, "the index is filled at the start of the epoch"
        states = self.mention_states(batch["mentions"])
        try:
            return self.ranker(self.matcher, states, batch["gold"], self.index)
        except NonFiniteScoreError as error:
            mentions = [index for own in self.index.processes.objects(batch["index"].tolist()) for index in own]
            raise NonFiniteScoreError(self._explain(error, mentions, split)) from error

    def _evaluation_step(self, batch: dict[str, Any], stage: str) -> dict[str, Any]:
        assert self.index is not None, "the index is filled at the start of the epoch"
        counted = batch["index"].ge(0).nonzero()[:, 0]  # without those that even out the processes' turns
        ranking = self.rank(batch, stage).at(counted)
        for name, metrics in self._metrics(stage):
            metrics.update(ranking.ranks[name], num_entities=len(self.index))
        count, seen = (batch[name][counted] if name in batch else None for name in ("gold_count", "seen"))
        metrics_of_golds = self._gold_metrics(stage)
        metrics_of_golds.update(ranking.ranks, ranking.gold_ranks, count, seen, num_entities=len(self.index))
        return {"ranking": ranking, "index": batch["index"][counted]}

    def _explain(self, error: NonFiniteScoreError, ranked: list[int], split: str) -> str:
        """Name the mention and the entity whose score no ranking can order."""
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        mention = datamodule.mentions[split][ranked[error.mention]]
        entity = datamodule.entities[error.entity]
        return (
            f"The {error.score!r} score of mention {mention.id!r} ({mention.mention!r}) with entity {entity.id} "
            f"({entity.name!r}) is {error.value}. The weights have diverged, or the features overflow in this "
            "precision: lower the learning rate, clip gradients (--trainer.gradient_clip_val 1.0), or evaluate with "
            "--trainer.precision 32-true."
        )

    def _log_metrics(self, stage: str) -> None:
        for _, metrics in self._metrics(stage):
            self.log_dict(metrics.compute())
            metrics.reset()
        anywhere = partial(self.trainer.strategy.reduce_boolean_decision, all=False)
        self.log_dict(self._gold_metrics(stage).compute(anywhere))
        self._gold_metrics(stage).reset()
        self.index = None

    def _metrics(self, stage: str) -> Iterator[tuple[str, MetricCollection]]:
        for name, metrics in cast(nn.ModuleDict, self.metrics[stage]).items():
            yield name, cast(MetricCollection, metrics)

    def _gold_metrics(self, stage: str) -> GoldMetrics:
        return cast(GoldMetrics, self.gold_metrics[stage])

    # ---- published weights ------------------------------------------------------------------------------------

    @classmethod
    def from_published(cls, checkpoint: str | Path, pretrained: str, **kwargs: Any) -> MIMIC:
        """Load a checkpoint of the published implementation.

        All sizes are read from its tensors.

        Args:
            checkpoint: Its Lightning ``.ckpt``, or a state dict or safetensors file with its names.
            pretrained: The CLIP checkpoint it was trained from: the architecture, the tokenizer and the image
                preprocessing come from there, the weights from ``checkpoint``.
            **kwargs: Further arguments of the model.

        Raises:
            CheckpointError: Names are unknown or missing, or shapes do not fit; all of them are listed.
        """
        state = read_published(checkpoint)
        sizes = published_sizes(state)
        positions = state.get("encoder.clip.text_model.embeddings.position_embedding.weight")
        text_length = min(40, len(positions)) if positions is not None else 40
        encoder = CLIPEncoder(pretrained, text_length=text_length, image_dim=sizes["image_dim"])
        units: dict[str, UnitFactory] = {
            "text": lambda dims: TGLU(dims, sizes["text"]),
            "vision": lambda dims: VDLU(dims, sizes["vision"]),
            "cross_modal": lambda dims: CMFU(dims, sizes["cross_modal"]),
        }
        model = cls(encoder, units=units, **kwargs)
        load_weights(model, state, str(checkpoint))
        return model


def _as_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
