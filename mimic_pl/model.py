"""MIMIC as a LightningModule: encoder, units, losses and ranking (Luo et al., KDD 2023)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from mimic_pl.batch import Batch, Inputs
from mimic_pl.construction import Recorded
from mimic_pl.data.protocol import TrainingData
from mimic_pl.distributed import ProcessGroup
from mimic_pl.encoders import INPUTS, Encoder, content_keys, repeat_last
from mimic_pl.encoding import BatchEncoder, RecordBatches, Side
from mimic_pl.errors import ConfigError, DataError
from mimic_pl.evaluation import RankingEvaluation
from mimic_pl.features import IMAGE_PRETRAINED, Features, convert_floats
from mimic_pl.gathered_batch import GatheredBatch
from mimic_pl.loss_inputs import LossInputs
from mimic_pl.losses import UnitConsistentLoss, same_gold
from mimic_pl.metrics import GoldMetrics
from mimic_pl.model_folder.mixin import ModelFiles
from mimic_pl.processor import Processor
from mimic_pl.ranking import EntityIndex, Explanation, IndexBuilder, MemoryIndex, Ranker, explain, index_totals
from mimic_pl.ranking.stored_states import joined
from mimic_pl.records import Entity, Mention, as_sequence
from mimic_pl.schedulers import Interval, scheduler_config
from mimic_pl.units import (
    Matcher,
    MatcherFactory,
    States,
    UnitFactory,
    flat,
    nested,
    published_units,
)
from mimic_pl.unused import unused_parameters


def published_optimizer(params: Any) -> torch.optim.Optimizer:
    """AdamW with the published settings."""
    return torch.optim.AdamW(params, lr=1e-5, betas=(0.9, 0.999), eps=1e-4, weight_decay=1e-4)


class MIMIC(Recorded, ModelFiles, RankingEvaluation):  # type: ignore[misc]  # own load_from_checkpoint
    """Multi-grained multimodal interaction network for entity linking.

    Mentions and entities are encoded by the same encoder, every unit scores every pair, and the overall score is the
    mean of the units' scores. Validation and test rank the whole knowledge base of the data module exactly.

    To customize it, override a hook in a subclass:

    - :meth:`encode`: from the inputs of one side to features;
    - :meth:`configure_matcher`: shared norms, units and the combination of their scores;
    - :meth:`compute_loss`: from the scores and features of a training batch to the loss;
    - :meth:`parameter_groups`: weight decay and learning rates;
    - :meth:`configure_metrics`: metrics computed from the ranks;
    - :meth:`rank`: from a batch of mentions to ranks and top entities (see :mod:`mimic_pl.evaluation`).

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
        if "has_image" in inputs and IMAGE_PRETRAINED in features.extra:
            # A missing image resembles no other image, unlike the blank one of the published model.
            pretrained = features.extra[IMAGE_PRETRAINED]
            extra[IMAGE_PRETRAINED] = pretrained.masked_fill(~inputs["has_image"][:, None], 0.0)
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

        Units that are centred on the knowledge base are centred on these entities from now on.

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
        self.matcher.set_totals("entities", index_totals(self.matcher, index))
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
        """Encode mentions for ranking, with float32 states whatever the precision of the features.

        A mention has the same state alone and in a batch of any size.
        """
        size = len(inputs["input_ids"])
        states = flat(self.matcher.mention(self.encode(repeat_last(inputs, self.encoder.steady_batch))))
        return nested({key: convert_floats(tensor[:size], torch.float32) for key, tensor in states.items()})

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

        Units that have no part in the overall score are seen by their own loss only.

        A loss may also return its terms by name, next to their sum; if two losses have terms of the same name, the
        second is logged as ``{loss}_{term}``.

        Args:
            inputs: Scores and features of the batch; with several processes, of the global batch, so that all processes
                compute the same value from them.
        """
        total = torch.zeros((), device=self.device)
        terms: dict[str, Tensor] = {}
        combined = inputs.only(("overall", *self.matcher.combined))
        for name, loss in self.losses.items():
            value = loss(combined)
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


def _joined(batches: Iterable[tuple[Batch, States]]) -> States:
    parts = [states for _, states in batches]
    if not parts:
        raise DataError("There are no records to encode.")
    return joined(parts)
