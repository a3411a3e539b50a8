"""MIMIC as a LightningModule: encoder, units, losses and ranking (Luo et al., KDD 2023)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from typing_extensions import Self

from mimic_pl.batch import Batch, Inputs
from mimic_pl.checkpoints.published import load_weights, published_sizes, read_published
from mimic_pl.construction import Recorded
from mimic_pl.data.protocol import Records, TrainingData, data_of
from mimic_pl.distributed import ProcessGroup
from mimic_pl.encoders import INPUTS, CLIPEncoder, Encoder, content_keys, repeat_last
from mimic_pl.encoding import BatchEncoder, RecordBatches, Side
from mimic_pl.errors import CheckpointError, ConfigError, DataError, NonFiniteScoreError
from mimic_pl.evaluation import evaluation_index
from mimic_pl.features import Features, convert_floats
from mimic_pl.gathered_batch import GatheredBatch
from mimic_pl.loss_inputs import LossInputs
from mimic_pl.losses import UnitConsistentLoss, same_gold
from mimic_pl.metrics import GoldMetrics, rank_metrics
from mimic_pl.model_description import KEY, describe_model, load_model
from mimic_pl.processor import Processor
from mimic_pl.ranking import EntityIndex, Explanation, IndexBuilder, MemoryIndex, Ranker, Ranking, explain
from mimic_pl.ranking.engine import in_float32
from mimic_pl.ranking.stored_states import joined
from mimic_pl.records import Entity, Mention, as_sequence
from mimic_pl.schedulers import Interval, scheduler_config
from mimic_pl.units import (
    CMFU,
    TGLU,
    VDLU,
    Matcher,
    MatcherFactory,
    States,
    UnitFactory,
    flat,
    nested,
    published_units,
)
from mimic_pl.units.check import require_independent_pairs
from mimic_pl.unused import unused_parameters


def published_optimizer(params: Any) -> torch.optim.Optimizer:
    """AdamW with the published settings."""
    return torch.optim.AdamW(params, lr=1e-5, betas=(0.9, 0.999), eps=1e-4, weight_decay=1e-4)


_CHECKED = 16
"""Number of entities on which scores are checked before all are ranked."""


class MIMIC(Recorded, LightningModule):
    """Multi-grained multimodal interaction network for entity linking.

    Mentions and entities are encoded by the same encoder, every unit scores every pair, and the overall score is the
    mean of the units' scores. Validation and test rank the whole knowledge base of the data module exactly.

    To customize it, override a hook in a subclass:

    - :meth:`encode`: from the inputs of one side to features;
    - :meth:`configure_matcher`: shared norms, units and the combination of their scores;
    - :meth:`compute_loss`: from the scores and features of a training batch to the loss;
    - :meth:`parameter_groups`: weight decay and learning rates;
    - :meth:`configure_metrics`: metrics computed from the ranks;
    - :meth:`rank`: from a batch of mentions to ranks and top entities.

    Args:
        encoder: Encodes tokens and images to features.
        processor: Converts records to inputs: text templates, image policy, modalities, extra features. Tokenizer and
            image size are the encoder's.
        units: Interaction units by name, which is also the name of their score; the three published ones by default.
        matcher: Contains the units and combines their scores: by their mean by default, as published, or
            :class:`~mimic_pl.units.WeightedMatcher`.
        losses: Losses by name, which are summed; by default ``contrastive``, the published one. A loss is any module
            that maps :class:`~mimic_pl.LossInputs` to a scalar. See also :meth:`compute_loss`.
        optimizer: Creates the optimizer from parameter groups; published settings by default.
        lr_scheduler: Creates a scheduler from the optimizer; none by default, as published. ReduceLROnPlateau follows
            its ``monitor``; without one, ``val/mrr`` in mode ``max`` and the training loss in mode ``min``.
        lr_interval: When the scheduler is stepped: every ``epoch`` or every optimizer ``step``. By default (``auto``),
            every step for schedulers that count steps (OneCycleLR, CyclicLR, the warm-up schedules of transformers),
            and every epoch for all others.
        ranker: Ranks the knowledge base in evaluation.
        index: Builds the entity index for ranking, with a dtype and storage.
        global_negatives: In distributed training, use the entities of all processes' batches as negatives of each
            mention, as if one process had the whole batch; if False, only those of the local batch.
        compile_encoder: Compile the encoder with :func:`torch.compile` (takes a minute or more before the first step;
            needs a C++ compiler).

    Example:
        >>> model = MIMIC(CLIPEncoder("openai/clip-vit-base-patch32"))  # doctest: +SKIP
        >>> mentions = model.encode_mentions([{"mention": "Jordan", "sentence": "Jordan scored."}])  # doctest: +SKIP
        >>> entities = model.encode_entities([{"id": "Q1", "name": "Jordan", "attr": ""}])  # doctest: +SKIP
        >>> model.score(mentions, entities)["overall"]  # [mentions, entities]  # doctest: +SKIP
    """

    def __init__(
        self,
        encoder: Encoder,
        processor: Processor | None = None,
        units: dict[str, UnitFactory] | None = None,
        matcher: MatcherFactory = Matcher,
        losses: dict[str, nn.Module] | None = None,
        optimizer: OptimizerCallable = published_optimizer,
        lr_scheduler: LRSchedulerCallable | None = None,
        ranker: Ranker | None = None,
        index: IndexBuilder | None = None,
        global_negatives: bool = True,
        compile_encoder: bool = False,
        lr_interval: Interval = "auto",
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.processor = (processor or Processor()).connect(
            encoder.build_tokenizer, encoder.build_image_processor, content_keys if encoder.keeps_features else None
        )
        self.make_matcher = matcher
        self.matcher = self.configure_matcher(units or published_units())
        self.losses = nn.ModuleDict(losses or {"contrastive": UnitConsistentLoss()})
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_interval: Interval = lr_interval
        self.ranker = ranker or Ranker()
        self.index_builder = index or IndexBuilder()
        self.global_negatives = global_negatives
        if compile_encoder:
            self.encoder.compile()  # in place, which keeps the names of the weights
        self.metrics = self.configure_metrics()
        self.gold_metrics = nn.ModuleDict({s: GoldMetrics(s, self.ranker.ranked(self.matcher)) for s in self.metrics})
        self.index: EntityIndex | None = None
        self._keep_index = False
        self._pairs_checked = False
        self._unused: dict[str, nn.Parameter] = {}

    # ---- scores -----------------------------------------------------------------------------------------------

    def configure_matcher(self, units: dict[str, UnitFactory]) -> Matcher:
        """Create the matcher, which scores pairs.

        Training and ranking both score through the matcher only: to combine the units differently, configure or return
        a subclass of :class:`~mimic_pl.units.Matcher` that overrides ``combine``.
        """
        return self.make_matcher(self.encoder.dims, units)

    def encode(self, inputs: Inputs) -> Features:
        """Encode the inputs of one side to features; used by training, ranking and linking.

        Args:
            inputs: ``input_ids``, ``attention_mask``, ``pixel_values`` of a batch of mentions or entities; every other
                tensor becomes one of :attr:`Features.extra`.
        """
        if "pixel_values" not in inputs:
            raise ConfigError(
                "The pixels of the batch are not normalised. A custom data module must finish batches on the device: "
                "def on_after_batch_transfer(self, batch, dataloader_idx): return self.processor.finish(batch)"
            )
        names = (*INPUTS, "image_key") if self.encoder.keeps_features and "image_key" in inputs else INPUTS
        features: Features = self.encoder(**{name: inputs[name] for name in names})
        extra = {name: tensor for name, tensor in inputs.items() if name not in (*INPUTS, "has_image", "image_key")}
        return features._replace(extra={**features.extra, **extra}) if extra else features

    @torch.no_grad()
    def score(self, mentions: States, entities: States) -> dict[str, Tensor]:
        """Score every pair of encoded mentions and entities, without gradients.

        Args:
            mentions: Of :meth:`encode_mentions`.
            entities: Of :meth:`encode_entities`.

        Returns:
            ``overall`` and each unit by name, each ``[mentions, entities]``.
        """
        return self.matcher.score(mentions, entities)

    def forward(self, mentions: Inputs, entities: Inputs) -> dict[str, Tensor]:
        """Score every pair from the inputs of both sides, with gradients: scores by name, ``[mentions, entities]``."""
        return self.matcher.score(
            self.matcher.mention(self.encode(mentions)), self.matcher.entity(self.encode(entities))
        )

    # ---- records -> states --------------------------------------------------------------------------------------

    def encode_mentions(
        self,
        records: Iterable[Mention | Mapping[str, Any]],
        batch_size: int = 64,
        show_progress_bar: bool = False,
    ) -> States:
        """Encode mentions, with or without a Trainer.

        Args:
            records: Mentions, or dictionaries with ``mention``, ``sentence``, ``image`` and the fields of the template;
                an image is a path, bytes, a PIL image or an array.
            batch_size: Number of mentions to encode at once.
            show_progress_bar: Show a progress bar.

        Returns:
            The units' states of the mentions, float32, on the model's device, for :meth:`score` and
            :class:`~mimic_pl.Ranker`.

        Raises:
            DataError: A record is malformed, or there are no records.
            ConfigError: A record lacks a field of the text template.
        """
        return _joined(self._encoded("mentions", as_sequence(records), batch_size, show_progress_bar))

    def encode_entities(
        self,
        records: Iterable[Entity | Mapping[str, Any]],
        batch_size: int = 64,
        show_progress_bar: bool = False,
    ) -> States:
        """Encode entities, with or without a Trainer.

        Args:
            records: Entities, or dictionaries with ``id``, ``name``, ``images`` and the fields of the template.
            batch_size: Number of entities to encode at once.
            show_progress_bar: Show a progress bar.

        Returns:
            The units' states of the entities, on the model's device, for :meth:`score`. For many entities, use
            :meth:`build_index`.

        Raises:
            DataError: A record is malformed, or there are no records.
            ConfigError: A record lacks a field of the text template.
        """
        return _joined(self._encoded("entities", as_sequence(records), batch_size, show_progress_bar))

    def build_index(
        self,
        records: Iterable[Entity | Mapping[str, Any]],
        batch_size: int = 64,
        show_progress_bar: bool = False,
    ) -> EntityIndex:
        """Encode entities into an index in memory, for ranking with a :class:`~mimic_pl.Ranker`.

        Args:
            records: Entities, or dictionaries with ``id``, ``name``, ``images`` and the fields of the template.
            batch_size: Number of entities to encode at once.
            show_progress_bar: Show a progress bar.
        """
        records = as_sequence(records)
        index = MemoryIndex(self.device, capacity=len(records))
        done = 0
        for batch, states in self._encoded("entities", records, batch_size, show_progress_bar):
            size = len(batch["entities"]["input_ids"])
            index.add([Entity.of(record).id for record in records[done : done + size]], states)
            done += size
        return index

    def explain(
        self, mention: Mention | Mapping[str, Any], entity: str, index: EntityIndex, top_k: int = 5
    ) -> Explanation:
        """Explain the rank of an entity for a mention: ``print`` it to see scores, bounds and competitors.

        Args:
            mention: A mention, or a dictionary; see :meth:`encode_mentions`.
            entity: Id of the entity.
            index: All entities, for example from :meth:`build_index`.
            top_k: Number of competitors to list.

        Raises:
            DataError: The entity is not in the index.
        """
        return explain(self.matcher, self.encode_mentions([mention]), entity, index, top_k)

    def _encoded(
        self, side: Side, records: Sequence[Any], batch_size: int, show_progress_bar: bool
    ) -> Iterator[tuple[Batch, States]]:
        """Encode one side of the model batch by batch; its failed images are logged at the end."""
        of_mentions = side == "mentions"
        make: Callable[[Sequence[Any]], Inputs] = self.processor.mentions if of_mentions else self.processor.entities
        encode = self.mention_states if of_mentions else self.entity_states
        batches = RecordBatches(records, batch_size, lambda chunk: cast(Batch, {side: make(chunk)}))
        yield from self.batch_encoder()(batches, side, encode, f"Encoding {side}" if show_progress_bar else None)
        self.processor.log_failures(alone=True)

    def batch_encoder(self) -> BatchEncoder:
        """Encoding loop for batches, on the model's device and in its precision."""
        return BatchEncoder(self, self.processor, self._trainer)

    def entity_states(self, inputs: Inputs) -> States:
        """Encode entities for an index; those with equal inputs to a unit, such as missing images, get equal states."""
        size = len(inputs["input_ids"])
        features = self.encode(repeat_last(inputs))
        states = self.matcher.entity(features.padded(self.encoder.text_length))
        return {unit: {key: tensor[:size] for key, tensor in state.items()} for unit, state in states.items()}

    def mention_states(self, inputs: Inputs) -> States:
        """Encode mentions for ranking, with float32 states whatever the precision of the features."""
        states = flat(self.matcher.mention(self.encode(inputs)))
        return nested({key: convert_floats(tensor, torch.float32) for key, tensor in states.items()})

    # ---- training ---------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Freeze parameters without gradients, for which DDP would wait, and log their names.

        They stay in the optimizer's parameter groups, so that a checkpoint can be resumed with any number of processes.
        The run's seed is saved here since callbacks such as BatchSizeFinder train before ``on_fit_start``.
        """
        self._seed = torch.initial_seed()
        if stage != "fit" or not isinstance(self.trainer.strategy, DDPStrategy):
            return
        # A small batch, without compiling for its shape or advancing the random generators.
        with torch.enable_grad(), torch.random.fork_rng(), torch.compiler.set_stance("force_eager"):
            sample = self.processor.finish(self._training_data().training_sample())
            loss, _ = self._training_loss(sample, ProcessGroup(alone=True))
            self._unused = unused_parameters(self, loss)
        for parameter in self._unused.values():
            parameter.requires_grad_(False)
        if self._unused:
            rank_zero_info(f"Frozen, since the loss does not depend on them: {', '.join(self._unused)}.")

    def _training_data(self) -> TrainingData:
        datamodule = getattr(self.trainer, "datamodule", None)
        if not isinstance(datamodule, TrainingData):
            raise ConfigError(
                "Distributed training needs a data module with training_sample(), which returns a small batch. "
                "Call the Trainer with datamodule=..., for example mimic_pl.RichpediaMEL(root)."
            )
        return datamodule

    def compute_loss(self, inputs: LossInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a training batch, :attr:`losses` plus the units' losses, and its terms for logging.

        A loss may also return its terms by name, next to their sum; if two losses have terms of the same name, the
        second is logged as ``{loss}_{term}``.

        Args:
            inputs: Scores and features of the batch; with several processes, of the global batch, so that all processes
                compute the same value from them.
        """
        total = torch.zeros((), device=self.device)
        terms: dict[str, Tensor] = {}
        for name, loss in self.losses.items():
            value = loss(inputs)
            value, parts = value if isinstance(value, tuple) else (value, {name: value})
            for part, term in parts.items():
                terms[f"{name}_{part}" if part in terms else part] = term
            total = total + value
        for name, unit in self.matcher.named_units():
            term = unit.loss(inputs)
            if term is not None:
                terms[f"{name}_own"] = term
                total = total + term
        return total, terms

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute and log the loss of a batch."""
        total, terms = self._training_loss(batch, ProcessGroup())
        size = len(batch["index"])
        self.log("train/loss", total, prog_bar=True, on_step=True, on_epoch=True, batch_size=size)
        self.log_dict({f"train/loss_{name}": term for name, term in terms.items()}, batch_size=size)
        return total

    def _training_loss(self, batch: Batch, processes: ProcessGroup) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and terms of a batch, with in-batch negatives from all processes."""
        gold, own_columns = batch["gold"], batch["columns"]
        gathered = GatheredBatch(processes, len(gold), len(own_columns), self.device, self.global_negatives)
        mentions, entities = self.encode(batch["mentions"]), self.encode(batch["entities"])
        columns = gathered.positions(own_columns)
        states = gathered.states(self.matcher.entity(entities))
        scores = self.matcher.score(self.matcher.mention(mentions), states)

        def gather() -> tuple[dict[str, Tensor], Features, Features, Tensor]:
            (golds,) = gathered.rows(gold)
            sides = gathered.all_mentions(mentions), gathered.all_entities(entities)
            return gathered.all_scores(scores), *sides, same_gold(golds, columns)

        local_same_gold = same_gold(gold, columns)
        if not gathered.exchanges:  # local negatives only: the loss is local too
            total, terms = self.compute_loss(LossInputs(scores, mentions, entities, local_same_gold))
            return gathered.local_weight * total, terms
        return self.compute_loss(LossInputs(scores, mentions, entities, local_same_gold, gather, gathered.local_weight))

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout by step and process, so that a resumed run draws the same numbers as an uninterrupted one."""
        torch.manual_seed((self._seed + 1_000_003 * (self.global_step + 1) + self.global_rank) % 2**63)

    @property
    def backbone(self) -> Encoder:
        """The encoder, under the name that BackboneFinetuning expects."""
        return self.encoder

    @property
    def lr(self) -> float:
        """Learning rate of the optimizer's first parameter group, under the name that LearningRateFinder expects."""
        if self._trainer is None or not self._trainer.optimizers:
            raise AttributeError("There is no learning rate before the Trainer has created the optimizer.")
        return float(self._trainer.optimizers[0].param_groups[0]["lr"])

    @lr.setter
    def lr(self, value: float) -> None:
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] = value
        for config in self.trainer.lr_scheduler_configs:  # schedulers compute from base_lrs
            config.scheduler.base_lrs = [value] * len(config.scheduler.optimizer.param_groups)

    def configure_optimizers(self) -> Any:
        """Create the optimizer over :meth:`parameter_groups`, and the scheduler if there is one."""
        optimizer = self.optimizer(self.parameter_groups())
        if self.lr_scheduler is None:
            return optimizer
        every = (self._trainer.check_val_every_n_epoch if self._trainer is not None else None) or 1
        return {
            "optimizer": optimizer,
            "lr_scheduler": scheduler_config(self.lr_scheduler(optimizer), self.lr_interval, every),
        }

    def lr_scheduler_step(self, scheduler: Any, metric: Any | None) -> None:
        """Step a scheduler.

        Raises:
            ConfigError: It was configured for fewer steps.
        """
        try:
            super().lr_scheduler_step(scheduler, metric)
        except ValueError as error:
            raise ConfigError(
                f"{type(scheduler).__name__} cannot be stepped further: {str(error).rstrip('.')}. This training takes "
                f"{self.trainer.estimated_stepping_batches} optimizer steps in {self.trainer.max_epochs} epochs: "
                "configure the scheduler for them (--model.lr_scheduler), or set --model.lr_interval to epoch or step."
            ) from error

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Trainable parameters, split into those with and without weight decay as in the published model.

        Parameters whose names contain ``bias`` or ``LayerNorm.weight`` are exempt; norms with other names (CLIP's
        ``layer_norm1``, the units') decay in the published model, and so here.
        """
        named = [(name, p) for name, p in self.named_parameters() if p.requires_grad or name in self._unused]
        exempt = [p for name, p in named if "bias" in name or "LayerNorm.weight" in name]
        decayed = [p for name, p in named if not ("bias" in name or "LayerNorm.weight" in name)]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": exempt, "weight_decay": 0.0}]
        return [group for group in groups if group["params"]]

    # ---- evaluation -------------------------------------------------------------------------------------------

    def configure_metrics(self) -> nn.ModuleDict:
        """Create the metrics: a collection over ranks for each score, for ``val`` and ``test``."""
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
        """Encode the knowledge base with the current weights."""
        self._start_ranking()

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Rank the whole knowledge base for a batch of mentions."""
        return self._evaluation_step(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of all mentions."""
        self._log_metrics("val")

    def on_test_epoch_start(self) -> None:
        """Encode the knowledge base with the current weights."""
        self._start_ranking()

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Rank the whole knowledge base for a batch of mentions."""
        return self._evaluation_step(batch, "test")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of all mentions."""
        self._log_metrics("test")

    def on_predict_epoch_start(self) -> None:
        """Encode the knowledge base with the current weights."""
        self._start_ranking()

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Rank the whole knowledge base for a batch of mentions, with or without golds."""
        ranking = self.rank(batch, "predict")
        counted = batch["index"].ge(0).nonzero()[:, 0]
        return {"ranking": ranking.at(counted), "index": batch["index"][counted]}

    def on_predict_epoch_end(self) -> None:
        """Release the index."""
        self._end_ranking()

    @contextmanager
    def one_index(self) -> Iterator[None]:
        """Build the index only once, in the first evaluation within this context.

        For evaluations between which neither the weights nor the knowledge base change.
        """
        self._keep_index = True
        try:
            yield
        finally:
            self._keep_index = False
            self.index = None

    def _start_ranking(self) -> None:
        if self.index is None or not self._keep_index:
            with torch.no_grad():
                self.index = evaluation_index(self, self.trainer, self.index_builder)
                self._pairs_checked = False

    def _end_ranking(self) -> None:
        if not self._keep_index:
            self.index = None

    def rank(self, batch: Batch, split: str) -> Ranking:
        """Rank the whole knowledge base for a batch of mentions; with several processes, each passes its own batch.

        Args:
            batch: Mentions, their golds and their positions in the split.
            split: ``val``, ``test`` or ``predict``.

        Raises:
            NonFiniteScoreError: A score is NaN or infinite; the message names the mention.
        """
        assert self.index is not None, "the index is filled at the start of the epoch"
        states = self.mention_states(batch["mentions"])
        if not self._pairs_checked:
            self.index.processes.run_together(lambda: self._check_pairs(states), self.device)
            self._pairs_checked = True
        try:
            return self.ranker(self.matcher, states, self.index, batch["gold"])
        except NonFiniteScoreError as error:
            mentions = [
                index for local in self.index.processes.gather_objects(batch["index"].tolist()) for index in local
            ]
            raise NonFiniteScoreError(self._explain(error, mentions, split)) from error

    @torch.no_grad()
    def _check_pairs(self, mentions: States) -> None:
        """Check on a few pairs of this process that scores can be ranked."""
        assert self.index is not None
        few = self.index.order[:_CHECKED]
        if len(few):
            require_independent_pairs(in_float32(self.matcher), mentions, self.index.select(few).states)

    def _evaluation_step(self, batch: Batch, stage: str) -> dict[str, Any]:
        assert self.index is not None, "the index is filled at the start of the epoch"
        counted = batch["index"].ge(0).nonzero()[:, 0]  # without padding that evens out the batches of processes
        ranking = self.rank(batch, stage).at(counted)
        for name, metrics in self._metrics(stage):
            metrics.update(ranking.ranks[name], num_entities=len(self.index))
        count = batch["gold_count"][counted] if "gold_count" in batch else None
        seen = batch["seen"][counted] if "seen" in batch else None
        gold_metrics = self._gold_metrics(stage)
        gold_metrics.update(ranking.ranks, ranking.gold_ranks, count, seen, num_entities=len(self.index))
        return {"ranking": ranking, "index": batch["index"][counted]}

    def _explain(self, error: NonFiniteScoreError, ranked: list[int], split: str) -> str:
        """Message that names the mention and entity with the non-finite score."""
        data = data_of(self.trainer, Records)
        mention = data.mentions[split][ranked[error.mention]]
        entity = data.entities[error.entity]
        return (
            f"The {error.score!r} score of mention {mention.id!r} ({mention.mention!r}) with entity {entity.id} "
            f"({entity.name!r}) is {error.value}. The weights have diverged, or features overflow in this precision. "
            "Lower the learning rate, clip gradients (--trainer.gradient_clip_val 1.0), or evaluate with "
            "--trainer.precision 32-true."
        )

    def _log_metrics(self, stage: str) -> None:
        for _, metrics in self._metrics(stage):
            self.log_dict(metrics.compute())
            metrics.reset()
        on_any_process = partial(self.trainer.strategy.reduce_boolean_decision, all=False)
        self.log_dict(self._gold_metrics(stage).compute(on_any_process))
        self._gold_metrics(stage).reset()
        self._end_ranking()

    def _metrics(self, stage: str) -> Iterator[tuple[str, MetricCollection]]:
        for name, metrics in cast(nn.ModuleDict, self.metrics[stage]).items():
            yield name, cast(MetricCollection, metrics)

    def _gold_metrics(self, stage: str) -> GoldMetrics:
        return cast(GoldMetrics, self.gold_metrics[stage])

    # ---- checkpoints --------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the description of the model to the checkpoint."""
        checkpoint[KEY] = describe_model(self)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # without Lightning's arguments for hyperparameters
        cls,
        checkpoint_path: str | Path,
        map_location: torch.device | str | None = None,
        trust_remote_code: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Build the model that a checkpoint describes, and load its weights.

        The checkpoint contains class paths and plain arguments of all parts of the model; no code in it is executed.

        Args:
            checkpoint_path: Path of the checkpoint.
            map_location: Device of the model; the CPU by default.
            trust_remote_code: Also build classes of packages other than mimic_pl; importing them executes their code.
            **kwargs: Arguments of the model that override stored ones, such as ``ranker`` or ``optimizer``.

        Returns:
            The model in evaluation mode.

        Raises:
            CheckpointError: The file is damaged, does not describe a model, or its weights do not match it.
            ConfigError: It names a class of another package, or one that does not exist.

        Example:
            >>> model = MIMIC.load_from_checkpoint("lightning_logs/version_0/checkpoints/last.ckpt")  # doctest: +SKIP
        """
        model = load_model(checkpoint_path, trust_remote_code, **kwargs)
        if not isinstance(model, cls):
            raise CheckpointError(f"{checkpoint_path} contains a {type(model).__name__}, not a {cls.__name__}.")
        return model.to(map_location or "cpu")

    # ---- published weights ------------------------------------------------------------------------------------

    @classmethod
    def from_published(cls, checkpoint: str | Path, pretrained: str, **kwargs: Any) -> MIMIC:
        """Load a checkpoint of the published implementation.

        All sizes are read from its tensors.

        Args:
            checkpoint: Its Lightning ``.ckpt``, or a state dict or safetensors file with the same names.
            pretrained: The CLIP checkpoint that it was trained from, for architecture, tokenizer and image
                preprocessing; the weights are those of ``checkpoint``.
            **kwargs: Additional arguments of the model.

        Raises:
            CheckpointError: Names are unknown or missing, or shapes do not match; the message lists all of them.
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


def _joined(batches: Iterable[tuple[Batch, States]]) -> States:
    parts = [states for _, states in batches]
    if not parts:
        raise DataError("There are no records to encode.")
    return joined(parts)
