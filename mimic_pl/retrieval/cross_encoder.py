"""The cross-encoder: reads a mention and an entity side by side and scores the pair."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerBase
from typing_extensions import Self

from mimic_pl.construction import Recorded
from mimic_pl.encoders.loading_errors import building
from mimic_pl.encoders.pretrained import load_pair_scorer, load_tokenizer, require_kind, require_one_start
from mimic_pl.encoders.wordpiece import build_tokenizer
from mimic_pl.errors import CheckpointError, ConfigError
from mimic_pl.files import UNFINISHED_SUFFIX, checksum_of, lock_folder, sync_folder, write_error, write_file
from mimic_pl.home import expanded
from mimic_pl.links import Link
from mimic_pl.ranges import COUNT, Range, in_range
from mimic_pl.records import Entity, Mention
from mimic_pl.retrieval.pair_text import PairText

SETTINGS = "cross_encoder.json"
"""File in a saved cross-encoder's folder with the settings that are not transformers' own."""

_CONFIG = "config.json"
"""The file of transformers without which a folder cannot be loaded."""

_STAGING = f".saving{UNFINISHED_SUFFIX}"
"""Subfolder in which all files are written before they are moved into place."""

_STRETCH = 1.2
"""How much longer the longest pair of a batch may be than its shortest."""

_SAVED = (
    "mention_template",
    "entity_template",
    "mention_tokens",
    "max_tokens",
    "first_stage_weight",
    "top_k",
    "largest_margin",
)


class CrossEncoder(Recorded):
    """Scores a mention against each of its candidates with attention between both texts (BLINK's second stage).

    The text model reads ``[CLS] sentence with [ the mention ] marked [SEP] name and attributes [SEP]``, and its head
    maps the first token to a logit z. With the first stage's score s, the score of a candidate is

        S = z + alpha * s,

    the sum of two log-odds: alpha, fitted on the development split, says how far the first stage is to be trusted. It
    knows what a text pair of bounded length does not show: images, exact words, the rest of the knowledge base.

    It is a :class:`~mimic_pl.retrieval.Reranker`: ``Linker(model, knowledge_base, reranker=cross_encoder)``. Training
    is the command ``mimic-pl train-reranker``, or :class:`~mimic_pl.retrieval.CrossEncoderModule` with a Trainer.

    Args:
        pretrained: Folder or hub name of any text model of transformers to start from, or of a cross-encoder with one
            output, as saved by this class or by sentence-transformers.
        config: Instead of ``pretrained``: configuration of a new text model, with ``model_type`` (``bert``, ...).
        vocabulary: With ``config``: the words of its tokenizer.
        mention_template: Text of a mention from ``{sentence}``, in which the mention is marked, ``{mention}`` and any
            other field of its record.
        entity_template: Text of an entity from ``{name}``, ``{attr}`` and any other field of its record.
        mention_tokens: Largest number of tokens of the sentence. Of a longer one, the part around the mention is kept.
        max_tokens: Largest number of tokens of a pair; a longer entity is cut.
        first_stage_weight: The weight alpha of the first stage's score.
        top_k: Candidates that are read, the first ones. Those below keep their places: their z is the lowest of the
            others.
        largest_margin: Lists whose first two scores are further apart are not read, and keep the order of the first
            stage, which is sure of them: z = 0. Training leaves them out, too. By default all lists are read.
        batch_size: Number of pairs to score at once.

    Raises:
        ConfigError: An argument is out of range, there is no such checkpoint, or it is not of a text model.
        CheckpointError: The weights cannot be read.

    Example:
        >>> cross_encoder = CrossEncoder.from_pretrained("runs/cross_encoder")  # doctest: +SKIP
        >>> rerank(cross_encoder, linker.link(record, top_k=16))[0].entity.name  # doctest: +SKIP
    """

    @in_range(
        mention_tokens=COUNT,
        max_tokens=COUNT,
        first_stage_weight=Range(0, whole=False),
        top_k=COUNT,
        largest_margin=Range(0, whole=False, above=True),
        batch_size=COUNT,
    )
    def __init__(
        self,
        pretrained: str | None = None,
        config: dict[str, Any] | None = None,
        vocabulary: list[str] | None = None,
        mention_template: str = "{sentence}",
        entity_template: str = "{name} [SEP] {attr}",
        mention_tokens: int = 40,
        max_tokens: int = 128,
        first_stage_weight: float = 1.0,
        top_k: int = 16,
        largest_margin: float | None = None,
        batch_size: int = 64,
    ) -> None:
        require_one_start(pretrained, config, "CrossEncoder")
        if 2 * mention_tokens > max_tokens:
            raise ConfigError(
                f"CrossEncoder: mention_tokens is {mention_tokens}, more than half of max_tokens, {max_tokens}: the "
                "entity would have less room than the sentence."
            )
        if pretrained is not None:
            self.model = load_pair_scorer(pretrained)
            self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(pretrained)
        else:
            self.tokenizer = build_tokenizer(vocabulary or [])
            self.model = _new_model(config or {}, self.tokenizer)
        self.first_stage_weight = first_stage_weight
        self.top_k = top_k
        self.largest_margin = largest_margin
        self.batch_size = batch_size
        self.text = PairText(self.tokenizer, mention_template, entity_template, mention_tokens, max_tokens)
        _require_fit(self.model, self.tokenizer, max_tokens)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        found: torch.device = self.model.device
        return found

    def to(self, device: torch.device | str) -> Self:
        """Move the model to a device."""
        self.model.to(device)
        return self

    def __call__(self, mention: Mention, candidates: Sequence[Link]) -> list[float]:
        """Score the candidates of a mention; see :class:`~mimic_pl.retrieval.Reranker`."""
        if not candidates:
            return []
        first = torch.tensor([link.score for link in candidates], dtype=torch.float64)
        logits = torch.zeros(len(candidates))
        if self.reads(first[None]):
            read = self.logits([(mention, link.entity) for link in candidates[: self.top_k]])
            logits = torch.cat([read, read.min().expand(len(candidates) - len(read))])
        combined: list[float] = (logits.double() + self.first_stage_weight * first).tolist()
        return combined

    def reads(self, scores: Tensor) -> Tensor:
        """Whether lists are read, bool ``[lists]``; see ``largest_margin``.

        Args:
            scores: The first stage's, best first, ``[lists, k]``.
        """
        if self.largest_margin is None or scores.shape[1] < 2:
            return scores.new_ones(len(scores), dtype=torch.bool)
        return scores[:, 0].double() - scores[:, 1].double() <= self.largest_margin

    @torch.no_grad()
    def logits(self, pairs: Sequence[tuple[Mention, Entity]]) -> Tensor:
        """Logits of pairs of a mention and an entity, float32 ``[pairs]`` on the CPU, without gradients.

        Pairs of similar length are scored together, so that little is padded.

        Raises:
            ConfigError: A record lacks a field of its template.
        """
        logits = torch.empty(len(pairs))
        was_training = self.model.training
        self.model.eval()
        try:
            for rows, inputs in self.batches(pairs):
                logits[rows] = self.forward(inputs.to(self.device)).float().cpu()
        finally:
            self.model.train(was_training)
        return logits

    def batches(self, pairs: Sequence[tuple[Mention, Entity]]) -> Iterator[tuple[Tensor, Any]]:
        """Encoded pairs in batches of similar lengths, which need little padding.

        Yields:
            Rows of the pairs, int64 ``[batch]``, and their inputs, int64 ``[batch, tokens]`` by name.
        """
        encoded = self.encode(pairs)
        lengths = [len(ids) for ids in encoded["input_ids"]]
        rows = sorted(range(len(pairs)), key=lambda row: lengths[row])
        start = 0
        for end in range(1, len(rows) + 1):
            full = end == len(rows) or end - start == self.batch_size
            if full or lengths[rows[end]] > _STRETCH * lengths[rows[start]]:
                own = rows[start:end]
                yield torch.tensor(own), self.pad({name: [each[row] for row in own] for name, each in encoded.items()})
                start = end

    def encode(self, pairs: Sequence[tuple[Mention, Entity]]) -> dict[str, list[list[int]]]:
        """Token ids of pairs, and what else the model reads, each ``[pairs][tokens]``, not padded."""
        mentions = {id(mention): mention for mention, _ in pairs}
        texts = {key: self.text.mention(mention) for key, mention in mentions.items()}
        if not pairs:
            return {"input_ids": []}
        encoded = self.tokenizer(
            [texts[id(mention)] for mention, _ in pairs],
            [self.text.entity(entity) for _, entity in pairs],
            truncation="longest_first",  # the entity, which has more room than the sentence
            max_length=self.text.max_tokens,
        )
        return dict(encoded)

    def pad(self, encoded: dict[str, list[list[int]]]) -> Any:
        """Pad encoded pairs to the longest: tensors by name, int64 ``[pairs, tokens]``."""
        return self.tokenizer.pad(encoded, padding_side="right", return_tensors="pt")

    def forward(self, inputs: Any) -> Tensor:
        """Logits of a padded batch of pairs ``[pairs]``, with gradients."""
        logits: Tensor = self.model(**inputs).logits[:, 0]
        return logits

    # ---- files --------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Save weights (safetensors), configuration and tokenizer as transformers does, and ``cross_encoder.json``.

        The latter has the other settings, and a checksum of each file, which loading compares. An earlier
        cross-encoder there is replaced: if the process is killed, the folder either contains the earlier one, or the
        new one, or has no ``config.json`` and cannot be loaded.

        Raises:
            StoreError: Another process is writing there, the disk is full, or the folder is not writable.
        """
        folder = expanded(folder)
        settings = {
            "mention_template": self.text.mention_template.template,
            "entity_template": self.text.entity_template.template,
            "mention_tokens": self.text.mention_tokens,
            "max_tokens": self.text.max_tokens,
            "first_stage_weight": self.first_stage_weight,
            "top_k": self.top_k,
            "largest_margin": self.largest_margin,
        }
        with TemporaryDirectory() as written:
            self.model.save_pretrained(written)
            self.tokenizer.save_pretrained(written)
            contents = {file.name: file.read_bytes() for file in Path(written).iterdir()}
        checksums = {name: checksum_of(content) for name, content in sorted(contents.items())}
        contents[SETTINGS] = json.dumps({**settings, "checksums": checksums}, indent=2).encode()
        lock = lock_folder(folder / _STAGING, 0)
        try:
            for name, content in contents.items():
                write_file(folder / _STAGING / name, content)
            _move(folder / _STAGING, folder, list(contents))
        except OSError as error:
            raise write_error(error, folder / (error.filename or ""), 0) from error
        finally:
            lock.release()
            shutil.rmtree(folder / _STAGING, ignore_errors=True)

    @classmethod
    def from_pretrained(cls, pretrained: str | Path, device: torch.device | str | None = None, **kwargs: Any) -> Self:
        """Load a saved cross-encoder.

        Args:
            pretrained: Folder of :meth:`save_pretrained`; or a folder or hub name of another cross-encoder with one
                output, such as ``cross-encoder/ms-marco-MiniLM-L6-v2``.
            device: Where to put it; the CPU by default.
            **kwargs: Arguments of the class that override saved ones.

        Raises:
            ConfigError: There is no such checkpoint, or a setting is unknown.
            CheckpointError: A file is damaged.
        """
        folder = expanded(pretrained)
        saved = _read_settings(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
        for name, checksum in saved.pop("checksums", {}).items():
            _require_checksum(folder / name, checksum)
        return cls(str(pretrained), **{**saved, **kwargs}).to(device or "cpu")


def _move(staging: Path, folder: Path, names: list[str]) -> None:
    """Put complete files into place, ``config.json`` last."""
    (folder / _CONFIG).unlink(missing_ok=True)
    sync_folder(folder)
    for name in sorted(names, key=_CONFIG.__eq__):
        if name == _CONFIG:
            sync_folder(folder)
        os.replace(staging / name, folder / name)
    sync_folder(folder)


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error} Get the cross-encoder again.") from error
    if not isinstance(settings, dict) or settings.keys() != {*_SAVED, "checksums"}:
        raise CheckpointError(
            f"{path} must have checksums and the settings {', '.join(_SAVED)}, and nothing else. Get the cross-encoder "
            "again."
        )
    return settings


def _require_checksum(path: Path, checksum: str) -> None:
    try:
        found = checksum_of(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Get the cross-encoder again.") from error
    if found != checksum:
        raise CheckpointError(
            f"{path} is damaged: its checksum is {found}, and {SETTINGS} says {checksum}. Get the cross-encoder again."
        )


def _new_model(config: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> nn.Module:
    sizes = {"model_type": "none", **config, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    with building("config"):
        built = AutoConfig.for_model(**sizes, num_labels=1)
        require_kind(built, "text model", "config")
        model: nn.Module = AutoModelForSequenceClassification.from_config(built)  # type: ignore[no-untyped-call]
    return model.eval()


def _require_fit(model: Any, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
    """Check that the model has positions for that many tokens, that the tokenizer belongs to it, and can pad."""
    positions = getattr(model.config, "max_position_embeddings", None)
    # RoBERTa-like models have two positions fewer.
    usable = positions and positions - (2 if model.config.model_type in ("roberta", "xlm-roberta", "camembert") else 0)
    if usable and max_tokens > usable:
        raise ConfigError(f"CrossEncoder: max_tokens is {max_tokens}, but the model has positions for {usable} tokens.")
    if tokenizer.pad_token_id is None or not tokenizer.is_fast:
        raise ConfigError("CrossEncoder: the checkpoint needs a fast tokenizer (tokenizer.json) with a padding token.")
    if len(tokenizer) > model.config.vocab_size:
        raise CheckpointError(
            f"The tokenizer knows {len(tokenizer)} tokens, but the model only {model.config.vocab_size}. They belong "
            "to different models: get the checkpoint again."
        )
