"""A linker without training: BM25 and the cosines of pretrained features, weighted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor

from mimic_pl.batch import Batch, Inputs
from mimic_pl.callbacks.weight_calibration import fit_weights, sampled_scores
from mimic_pl.callbacks.whitening import compared, none_of, projected_units, whiten_units
from mimic_pl.encoders import CLIPEncoder, Encoder, TextVisionEncoder
from mimic_pl.encoders.text_vision import Pooling
from mimic_pl.encoding import BatchEncoder, RecordBatches, Side
from mimic_pl.errors import ConfigError, DataError
from mimic_pl.model import MIMIC
from mimic_pl.processor import BM25Lexicon, Processor
from mimic_pl.processor.processor import Modalities
from mimic_pl.ranges import COUNT, SEED, require_ranges
from mimic_pl.ranking import EntityIndex
from mimic_pl.records import Entity, Mention, as_sequence
from mimic_pl.units import GlobalCosine, Lexical, UnitFactory, WeightedMatcher

_TEXT_SCALE, _IMAGE_SCALE, _WHITENED_SCALE = 2.0, 10.0, 20.0
"""Weights of the cosines beside BM25, found on EmojiMEL's dev split: a cosine is at most 1, a BM25 score some 10."""

_NO_TEXT_TOWER: dict[str, Any] = {
    "text_config": {
        **{"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1},
        **{"num_attention_heads": 1, "intermediate_size": 8},
    },
}
_NO_VISION_TOWER: dict[str, Any] = {"vision": "test_vit", "vision_pretrained": False, "vision_args": {"img_size": 32}}
"""Stand-ins for a tower that no unit reads: as small as they can be."""


def zero_shot_model(
    text: str | None = None,
    image: str | None = None,
    lexical: bool = True,
    image_size: int | None = None,
    text_pooling: Pooling = "mean",
    text_length: int = 40,
    mention_template: str = "{mention} [SEP] {sentence}",
    entity_template: str = "{name} [SEP] {attr}",
    image_stages: list[int] | None = None,
    image_projection: int | None = None,
) -> MIMIC:
    """A model that links without training, from ordinary parts: it is indexed, saved and fitted like any other.

        S = (BM25 + 2 cos(text features) + 10 cos(image features)) / 3

    where BM25 compares words, and each cosine the global features of a pretrained tower, centred on the means of the
    mentions and of the knowledge base (see :class:`~mimic_pl.units.GlobalCosine`). A part that is not asked for is
    left out. As long as the mean of the mentions is unknown, it is taken to be that of the knowledge base: if you have
    mentions, with or without labels, :func:`center_mentions` sets it; with labels, :func:`fit_zero_shot` also fits the
    weights to your data.

    For images, features of several stages of a CNN that are whitened (:func:`whiten`) are far better than those at its
    end: with ``image_stages=[2, 3, 4]`` and ``image_projection=512``, :func:`whiten` with entities and training
    mentions, and :func:`fit_zero_shot` with the mentions of a dev split, this is the model of
    ``cli_configs/zero_shot.yaml``. The cosine of the images then counts 20 instead of 10.

    Args:
        text: Checkpoint folder or hub name of a text model, such as a sentence encoder.
        image: Name of a timm model, or ``local-dir:PATH`` or ``hf-hub:NAME``. If it equals ``text``, both are the
            towers of one dual encoder, such as CLIP.
        lexical: Use BM25.
        image_size: Side of the images, in pixels, for a model that takes any size, such as a CNN; by default the one
            that it was trained on.
        text_pooling: Pooling of the text model (see :class:`~mimic_pl.encoders.TextVisionEncoder`).
        text_length: Tokens per text.
        mention_template: Text of a mention (see :class:`~mimic_pl.processor.Processor`).
        entity_template: Text of an entity.
        image_stages: Earlier stages of the image model to compare, too (see
            :class:`~mimic_pl.encoders.TextVisionEncoder`); not of a dual encoder.
        image_projection: Numbers that the image features are reduced to, by a random rotation until :func:`whiten`
            whitens them; by default they are compared as they are.

    Raises:
        ConfigError: Nothing to compare is left, or a checkpoint cannot be used.

    Example:
        >>> model = zero_shot_model("sentence-transformers/all-MiniLM-L6-v2", "resnet50.a1_in1k")  # doctest: +SKIP
        >>> model.processor = model.processor.fit(entities)  # doctest: +SKIP
        >>> index = model.build_index(entities)  # doctest: +SKIP
    """
    units: dict[str, UnitFactory] = {}
    if lexical:
        units["lexical"] = Lexical
    if text is not None:
        units["text"] = partial(GlobalCosine, scale=_TEXT_SCALE, modality="text", pretrained=True, centered=True)
    if image is not None:
        scale = _IMAGE_SCALE if image_projection is None else _WHITENED_SCALE
        units["image"] = partial(
            GlobalCosine, scale=scale, modality="image", pretrained=True, centered=True, projection=image_projection
        )
    if not units:
        raise ConfigError(
            "A zero-shot model has nothing to compare: give a text model (text), an image model (image), or both, or "
            "set lexical to true for BM25."
        )
    reads_text = lexical or text is not None
    modalities: Modalities = "text" if image is None else "both" if reads_text else "images"
    processor = Processor(
        mention_template,
        entity_template,
        modalities=modalities,
        features={"lexical": BM25Lexicon()} if lexical else None,
    )
    with torch.random.fork_rng(devices=[]):
        # Stand-ins have random weights, which no unit reads but by which a knowledge base recognises its model.
        torch.manual_seed(0)
        encoder = _encoder(text, image, image_size, image_stages, text_pooling, text_length)
        return MIMIC(encoder, processor, units, WeightedMatcher).eval()


def _encoder(
    text: str | None,
    image: str | None,
    image_size: int | None,
    image_stages: list[int] | None,
    pooling: Pooling,
    length: int,
) -> Encoder:
    frozen: dict[str, Any] = {"freeze": True, "frozen_features": None, "text_length": length, "image_dim": 1}
    if text is not None and text == image:
        if image_size is not None:
            raise ConfigError(f"The images of {text!r} have the size that it was trained on: remove image_size.")
        if image_stages is not None:
            raise ConfigError(f"{text!r} is a dual encoder, whose stages cannot be compared: remove image_stages.")
        return CLIPEncoder(text, **frozen)
    of_text = {"text": text, "text_pooling": pooling} if text is not None else _NO_TEXT_TOWER
    with_stages = {"image_size": image_size, "image_stages": image_stages}
    of_images = {"vision": image, **with_stages} if image is not None else _NO_VISION_TOWER
    return TextVisionEncoder(**of_text, **of_images, **frozen)


def whiten(
    model: MIMIC,
    entities: Iterable[Entity | Mapping[str, Any]],
    mentions: Iterable[Mention | Mapping[str, Any]] = (),
    records: int = 2048,
    batch_size: int = 64,
    show_progress_bar: bool = False,
) -> None:
    """Whiten the features that a model's units compare, in place, before a knowledge base is indexed with it.

    It does what :class:`~mimic_pl.callbacks.Whitening` does in training. Golds are not read. Without mentions, the
    statistics are those of the entities alone. The knowledge base can only be opened with the whitened model: save it
    (:meth:`MIMIC.save_pretrained`), or whiten it with the same records again.

    Args:
        model: A model with projections, such as that of :func:`zero_shot_model` with ``image_projection``.
        entities: Entities of the knowledge base.
        mentions: A sample of the mentions to be linked, or of similar ones.
        records: Maximum number of entities and of mentions to whiten with, the first ones of each.
        batch_size: Number of records to encode at once.
        show_progress_bar: Show a progress bar.

    Raises:
        ConfigError: No unit has a projection, or there are too few different features to whiten.
        DataError: A record is malformed.
    """
    require_ranges({"records": COUNT}, {"records": records}, "")
    if not projected_units(model.matcher):
        raise ConfigError(
            "The model has no projection to whiten. Set it: zero_shot_model(image=..., image_projection=512)."
        )
    of_entities = [Entity.of(record) for record in islice(entities, records)]
    # Features such as BM25's, which are not compared here, have to be fitted to something before records are encoded.
    processor = model.processor.fit(of_entities)
    title = "Whitening" if show_progress_bar else None

    def features(given: Sequence[Any], side: Side, make: Callable[[Sequence[Any]], Inputs]) -> dict[str, Tensor]:
        batches = RecordBatches(given, batch_size, lambda chunk: cast(Batch, {side: make(chunk)}))
        encode = BatchEncoder(model, processor)
        own = [rows for _, rows in encode(batches, side, lambda inputs: compared(model, inputs), title)]
        own.append({name: none_of(unit) for name, unit in projected_units(model.matcher).items()})
        return {name: torch.cat([rows[name] for rows in own]) for name in own[0]}

    of_mentions = [Mention.of(record) for record in islice(mentions, records)]
    whiten_units(
        model.matcher,
        features(of_mentions, "mentions", processor.mentions),
        features(of_entities, "entities", processor.entities),
    )
    processor.log_failures(alone=True)


def center_mentions(
    model: MIMIC,
    mentions: Iterable[Mention | Mapping[str, Any]],
    batch_size: int = 64,
    show_progress_bar: bool = False,
) -> None:
    """Centre a model's units on the mean features of mentions, in place; their golds are not read.

    Args:
        model: Any model, fitted to the knowledge base.
        mentions: A sample of the mentions to be linked; some hundreds are enough.
        batch_size: Number of mentions to encode at once.
        show_progress_bar: Show a progress bar.
    """
    states = model.encode_mentions(mentions, batch_size, show_progress_bar)
    model.matcher.set_totals("mentions", model.matcher.totals(states))


def fit_zero_shot(
    model: MIMIC,
    mentions: Iterable[Mention | Mapping[str, Any]],
    index: EntityIndex,
    entities: int = 4096,
    seed: int = 0,
    batch_size: int = 64,
    show_progress_bar: bool = False,
) -> dict[str, float]:
    """Fit the weights of a model's units to labelled mentions, in place; no entity needs to be encoded again.

    The weights maximise the likelihood of the golds among themselves and a sample of the knowledge base, one weight per
    unit, none negative. Units that are centred on mentions are centred on these. ``mimic-pl fit`` with
    ``cli_configs/zero_shot.yaml`` does the same with the dev split
    (:class:`~mimic_pl.callbacks.WeightCalibration`).

    Args:
        model: Any model with a :class:`~mimic_pl.units.WeightedMatcher`, fitted to the knowledge base.
        mentions: Mentions with golds; those whose golds are not in the index are skipped.
        index: The knowledge base, for example from :meth:`MIMIC.build_index`.
        entities: Number of sampled entities.
        seed: Seed of the sample.
        batch_size: Number of mentions to encode at once.
        show_progress_bar: Show a progress bar.

    Returns:
        The weights by unit.

    Raises:
        ConfigError: The model's units have no weights, or an argument is out of range.
        DataError: No mention has a gold in the index.
    """
    require_ranges({"entities": COUNT, "seed": SEED}, {"entities": entities, "seed": seed}, "")
    matcher = model.matcher
    if not isinstance(matcher, WeightedMatcher):
        raise ConfigError(f"The units of a {type(matcher).__name__} have no weights. Use a WeightedMatcher.")
    known = set(index.ids)
    records = [Mention.of(record) for record in as_sequence(mentions)]
    golds = [next((gold for gold in record.golds if gold in known), None) for record in records]
    labelled = [(record, gold) for record, gold in zip(records, golds, strict=True) if gold is not None]
    if not labelled:
        raise DataError(
            f"None of the {len(records)} mentions has a gold in the knowledge base, so there is nothing to fit to. "
            "Check the mentions' golds and the entities' ids."
        )
    states = model.encode_mentions([record for record, _ in labelled], batch_size, show_progress_bar)
    order = index.order_of([gold for _, gold in labelled])
    scores, gold = sampled_scores(matcher, [states], torch.as_tensor(order), index, entities, seed)
    matcher.set_weights(fit_weights(scores, gold))
    return matcher.weights
