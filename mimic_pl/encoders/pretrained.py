"""Loading weights, tokenizer and image preprocessing of pretrained checkpoints."""

from __future__ import annotations

import difflib
import inspect
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from mimic_pl.checkpoints.reader import require_no_nan
from mimic_pl.encoders.loading_errors import building, loading, reason
from mimic_pl.errors import CheckpointError, ConfigError
from mimic_pl.files import readable_bytes
from mimic_pl.home import expanded

Kind = Literal["dual encoder", "text model"]
"""``dual encoder``: a text and an image tower, as in CLIP; ``text model``: also the encoder of an encoder-decoder."""

_LARGEST_JSON = 2**28
"""Bytes; the largest tokenizers have 35 million. A larger file would fill the memory while it is parsed."""

_NO_CODE = {"trust_remote_code": False}
"""transformers would ask on the terminal whether it may run code from the checkpoint."""

_MOST_LAYERS = 1000

_UNUSED = re.compile(r"pooler|logit_|temperature")
"""Weights that MIMIC does not use, and that many checkpoints lack."""


def require_one_start(pretrained: str | None, config: object | None, what: str) -> None:
    """Check that a tower is given either a checkpoint or a configuration.

    Raises:
        ConfigError: Both or neither are given.
    """
    if (pretrained is None) == (config is None):
        raise ConfigError(
            f"{what} needs either a checkpoint or a configuration: give exactly one of them "
            f"(got the checkpoint {pretrained!r} and {'a' if config else 'no'} configuration)."
        )


def load_tower(pretrained: str, kind: Kind, weights: bool = True) -> Any:
    """Load a transformers model in float32 and, as transformers returns it, in evaluation mode.

    Args:
        pretrained: Checkpoint folder or hub name.
        kind: The kind of model that it must be.
        weights: Load its weights; otherwise they are random.

    Raises:
        ConfigError: The folder does not exist, the hub has no such model or cannot be reached, or it is of another
            kind.
        CheckpointError: The weights cannot be read, or lack parameters.
    """
    return _load(pretrained, kind, AutoModel, lambda name, _: _UNUSED.search(name) is not None, weights)


def load_pair_scorer(pretrained: str) -> Any:
    """Load a text model with a head that maps a pair of texts to one number, in float32 and in evaluation mode.

    A checkpoint without such a head, as of a sentence encoder, gets a new one with random weights.

    Args:
        pretrained: Checkpoint folder or hub name.

    Raises:
        ConfigError: As for :func:`load_tower`.
        CheckpointError: The weights cannot be read or lack parameters, or the checkpoint has a head for several labels.
    """

    def may_lack(name: str, model: Any) -> bool:
        return not name.startswith(f"{model.base_model_prefix}.") or _UNUSED.search(name) is not None

    return _load(pretrained, "text model", AutoModelForSequenceClassification, may_lack, num_labels=1)


def _load(
    pretrained: str,
    kind: Kind,
    factory: Any,
    may_lack: Callable[[str, Any], bool],
    weights: bool = True,
    **settings: Any,
) -> Any:
    """Load a model, whose checkpoint may lack some weights by name, with some settings of its configuration changed."""
    name = _located(pretrained)
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").exists():
        found = ", ".join(sorted(file.name for file in folder.iterdir())[:5]) or "nothing"
        raise ConfigError(
            f"The folder {pretrained!r} has no config.json: it is not a checkpoint in Hugging Face format. It contains "
            f"{found}."
        )
    if not folder.is_dir() and timm.is_model(pretrained):
        raise ConfigError(
            f"{pretrained!r} is the name of a timm vision model. Pass it as TextVisionEncoder's 'vision'; "
            "'pretrained' and 'text' take checkpoints of transformers, such as 'openai/clip-vit-base-patch32' or "
            "'bert-base-uncased'."
        )
    with loading(f"The configuration of the checkpoint {pretrained!r}"):
        config = AutoConfig.from_pretrained(name, **settings, **_NO_CODE)
        _require_few_layers(config)
    require_kind(config, kind, repr(pretrained))
    if not weights:
        with building(f"the config.json of the checkpoint {pretrained!r}"):
            return factory.from_config(config, dtype=torch.float32).eval()
    with loading(f"The model of the checkpoint {pretrained!r}"):
        # Always float32: in half precision, updates at the published learning rate are rounded away.
        model, found_keys = factory.from_pretrained(
            name, config=config, dtype=torch.float32, output_loading_info=True, **_NO_CODE
        )
    missing = sorted(weight for weight in found_keys["missing_keys"] if not may_lack(weight, model))
    if missing:
        raise CheckpointError(
            f"The checkpoint {pretrained!r} lacks {len(missing)} weights of its model, such as {missing[0]}, which "
            "would be random. It is incomplete, or of another model: get it again."
        )
    own = {_pattern(weight) for weight in model.state_dict()}
    dropped = sorted(weight for weight in found_keys["unexpected_keys"] if _pattern(weight) in own)
    if dropped:
        raise CheckpointError(
            f"The checkpoint {pretrained!r} has {len(dropped)} weights of layers that its config.json does not have, "
            f"such as {dropped[0]}. Get both files from one checkpoint."
        )
    require_no_nan(model.state_dict(), f"the checkpoint {pretrained!r}")
    return model


def _pattern(weight: str) -> str:
    """A weight's name without the numbers of its layers."""
    return re.sub(r"\d+", "#", weight)


def _require_few_layers(config: Any) -> None:
    """Check the numbers of layers: each is built, whatever the weights are."""
    parts = [config, *(getattr(config, name, None) for name in ("text_config", "vision_config"))]
    layers = max((int(getattr(part, "num_hidden_layers", None) or 0) for part in parts), default=0)
    if layers > _MOST_LAYERS:
        raise ValueError(f"num_hidden_layers is {layers}, more than {_MOST_LAYERS}")


def require_kind(config: Any, kind: Kind, name: str) -> None:
    """Check what a configuration's model is, by the methods and inputs of its class.

    Raises:
        ConfigError: It is another kind of model.
    """
    classes = MODEL_MAPPING.get(type(config), ())
    model = classes if isinstance(classes, type) else classes[0] if classes else None
    found = kind if model is None else _kind_of(model)  # transformers itself says that there is none
    if found == kind:
        return
    needed, example = ("a text model", "bert-base-uncased")
    if kind == "dual encoder":
        needed, example = ("a model with a text and an image tower", "openai/clip-vit-base-patch32")
    advice = {
        "dual encoder": "Use CLIPEncoder, with this name as 'pretrained'.",
        "text model": "Use TextVisionEncoder, with this name as 'text' and a timm model as 'vision'.",
        "vision model": "Use TextVisionEncoder, with the timm model of this architecture as 'vision'.",
    }.get(found, "It cannot be used as an encoder.")
    raise ConfigError(f"{name} is a {found} ({config.model_type}); expected {needed}, such as {example!r}. {advice}")


def _kind_of(model: type) -> str:
    """The kind of a model, by the methods and inputs of its class."""
    has_images, has_texts = hasattr(model, "get_image_features"), hasattr(model, "get_text_features")
    reads = model.main_input_name  # type: ignore[attr-defined]
    if has_images:
        # BLIP-2 has both methods, but its text features are those of a language model.
        separate = has_texts and reads == "input_ids"
        return "dual encoder" if separate else "vision-language model without separate towers"
    if has_texts:
        return "model with a text tower and without an image tower"
    if reads == "pixel_values":
        return "vision model"
    if reads != "input_ids":
        return f"model of {reads}"
    if "pixel_values" in inspect.signature(model.forward).parameters:  # type: ignore[attr-defined]
        return "vision-language model without separate towers"
    return "text model"


def create_vision(name: str, pretrained: bool, arguments: dict[str, Any]) -> Any:
    """Create a timm model without a classifier.

    Args:
        name: Name of the model.
        pretrained: Load timm's pretrained weights.
        arguments: Additional arguments of :func:`timm.create_model`.

    Raises:
        ConfigError: timm does not know the model or the arguments, or cannot get the weights.
        CheckpointError: The weights cannot be read.
    """
    scheme, separator, path = name.partition(":")
    known = separator or timm.is_model(name.partition(".")[0])
    if not known:
        similar = difflib.get_close_matches(name.rpartition("/")[2].replace("-", "_"), timm.list_models(), n=3)
        hint = f"Similar names: {', '.join(similar)}." if similar else "timm.list_models() lists all of them."
        where = " A timm checkpoint on the hub is written hf-hub:NAME, one in a folder local-dir:PATH."
        raise ConfigError(f"timm has no vision model {name!r}. {hint}{where if '/' in name else ''}")
    if scheme == "local-dir":
        name = f"{scheme}:{_located(path, local=True)}"
    given = f" with {arguments}" if arguments else ""
    with loading(f"timm's vision model {name!r}{given}"):
        try:
            return timm.create_model(name, pretrained=pretrained, num_classes=0, **arguments)
        except (TypeError, AssertionError, RuntimeError) as error:
            if "state_dict" in str(error):
                raise
            tags = timm.list_pretrained(f"{scheme.partition('.')[0]}.*") if "tag" in str(error) else []
            hint = f" Its tags: {', '.join(tags)}." if tags else ""
            raise ConfigError(f"timm cannot create the vision model {name!r}{given}: {reason(error)}{hint}") from error
        except KeyError as error:
            if not separator:
                raise
            raise ConfigError(
                f"{name!r} is not a timm checkpoint: its config.json lacks {error}. A checkpoint of transformers is "
                "not one; name the timm model of its architecture, such as vit_base_patch16_224."
            ) from error


def load_tokenizer(pretrained: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint.

    Raises:
        ConfigError: The checkpoint has none, or it needs a package that is not installed.
        CheckpointError: It cannot be read.
    """
    with loading(f"The tokenizer of the checkpoint {pretrained!r}"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(_located(pretrained), **_NO_CODE)
        entries = len(tokenizer.get_vocab())
    if entries <= len(tokenizer.all_special_ids):
        # If the files are missing, transformers returns an empty tokenizer of the model's type.
        raise ConfigError(
            f"The checkpoint {pretrained!r} has no tokenizer files (tokenizer.json, or vocab.json and merges.txt). "
            "Save the tokenizer next to the weights."
        )
    return tokenizer


def load_image_processor(pretrained: str) -> Any:
    """Load the image processor of a checkpoint, in transformers' variant for Pillow.

    Raises:
        ConfigError: The checkpoint has none.
        CheckpointError: It cannot be read.
    """
    try:
        with loading(f"The image processor of the checkpoint {pretrained!r}"):
            path, backend = _located(pretrained), {"backend": "pil"}
            return AutoImageProcessor.from_pretrained(path, **backend, **_NO_CODE)  # type: ignore[no-untyped-call]
    except ConfigError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        raise ConfigError(
            f"The encoder's checkpoint {pretrained!r} does not say how its images are normalised: it needs a "
            "preprocessor_config.json with image_mean and image_std. Save the checkpoint with its image processor. "
            f"(transformers: {reason(error.__cause__)})"
        ) from error


def _located(pretrained: str, local: bool = False) -> str:
    """The path or hub name to load from.

    Args:
        pretrained: As given: a hub name, or a path, in which ``~`` is the home directory.
        local: It must be a folder.

    Raises:
        ConfigError: It looks like a path, but there is no such folder.
        CheckpointError: A file in the folder is not a regular file, or too large.
    """
    path = expanded(pretrained)
    looks_local = local or path.is_absolute() or pretrained.startswith((".", "~")) or len(path.parts) > 2
    if path.is_dir():
        _require_files(path)
        return str(path)
    if looks_local:
        raise ConfigError(
            f"The encoder's checkpoint folder {pretrained!r} {'is a file' if path.exists() else 'does not exist'} "
            f"(looked in {path.resolve()}). Give an existing folder in Hugging Face format, or a hub name such as "
            "'openai/clip-vit-base-patch32'."
        )
    return pretrained


def _require_files(folder: Path) -> None:
    """Check that no file blocks or fills the memory when it is opened."""
    for file in sorted(folder.iterdir()):
        try:
            found = file.stat()
        except OSError:
            continue
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            raise CheckpointError(f"{file} is a pipe or a device, not a file. Get the checkpoint again.")
        if file.suffix == ".json" and found.st_size > _LARGEST_JSON:
            raise CheckpointError(
                f"{file} has {readable_bytes(found.st_size)}, more than any tokenizer or configuration "
                f"({readable_bytes(_LARGEST_JSON)}). Get the checkpoint again."
            )
