"""Converts exceptions of transformers and timm to errors with the whole reason and advice that fits it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from safetensors import SafetensorError

from mimic_pl.errors import CheckpointError, ConfigError, MimicError
from mimic_pl.escaping import shortened

_LONGEST = 600

_DAMAGED = re.compile(
    r"PytorchStreamReader|pickle|Unable to load weights|not a valid JSON|untagged enum|expected value at line"
    r"|EOF while parsing",
    re.IGNORECASE,
)
_NO_ACCESS = re.compile(r"gated repo|401 Client|403 Client|access to model .* restricted", re.IGNORECASE)
_NOT_REACHED = re.compile(
    r"couldn't connect|offline|cannot reach|Connection error|Name or service not known|Max retries"
    r"|LocalEntryNotFound|cannot find .* in the cached files|locate the file on the Hub",
    re.IGNORECASE,
)
_NO_SUCH_MODEL = re.compile(r"not a valid model identifier|Repository Not Found|404 Client", re.IGNORECASE)
_REMOTE_CODE = re.compile(r"trust_remote_code|contains custom code", re.IGNORECASE)
_UNKNOWN_TYPE = re.compile(
    r"does not recognize this architecture|Unrecognized (model|configuration class)|`model_type` key", re.IGNORECASE
)
_NO_FILE = re.compile(r"no file named|does not appear to have (a )?file|Can't load|make sure .* contain", re.IGNORECASE)


def reason(error: BaseException) -> str:
    """The whole message of an exception on one line, ending in a full stop; the middle of a very long one is left out.

    Example:
        >>> reason(OSError("no   file"))
        'no file.'
    """
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, KeyError):
        text = f"the key {text} is missing"
    text = shortened(text, _LONGEST)
    return text if text.endswith((".", "!", "?")) else f"{text}."


_ADVICE = (
    (_REMOTE_CODE, "mimic-pl runs no code from a checkpoint. Choose one whose model is part of transformers."),
    (_UNKNOWN_TYPE, "Choose a checkpoint whose model this version of transformers can build, or update transformers."),
    (_NO_SUCH_MODEL, "Check the spelling; a folder is given by its path, such as ./models/clip."),
    (_NO_ACCESS, "Accept the model's terms on its page, then log in: hf auth login."),
    (
        _NOT_REACHED,
        "Without network access the model must already be in the cache (HF_HOME); or give the path of a folder.",
    ),
    (
        re.compile("instantiate the backend tokenizer"),
        "Save the tokenizer (tokenizer.json) next to the weights; to read another format: pip install sentencepiece "
        "tiktoken protobuf.",
    ),
    (_NO_FILE, "The folder lacks this file; get the complete checkpoint, in Hugging Face format."),
)


@contextmanager
def building(what: str) -> Iterator[None]:
    """Convert every exception of transformers or timm while they build a model from the user's sizes.

    Args:
        what: The option with the sizes.

    Raises:
        ConfigError: The sizes do not fit together.
    """
    with _converting(lambda error: ConfigError(f"No model can be built from {what}: {reason(error)}")):
        yield


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Convert every exception of transformers, tokenizers or timm while they load files.

    Their readers raise exceptions of many classes, depending on the bytes that are damaged.

    Args:
        what: What is loaded, at the beginning of a sentence.

    Raises:
        ConfigError: It cannot be loaded as it is configured.
        CheckpointError: A file is damaged.
    """
    with _converting(partial(loading_error, what)):
        yield


@contextmanager
def _converting(convert: Callable[[Exception], MimicError]) -> Iterator[None]:
    try:
        yield
    except (MimicError, MemoryError):
        raise
    except Exception as error:
        raise convert(error) from error


def loading_error(what: str, error: BaseException) -> MimicError:
    """The error to raise for an exception of transformers or timm.

    Args:
        what: What cannot be loaded, with the name of the checkpoint.
        error: The exception.
    """
    message = f"{what} cannot be loaded: {reason(error)}"
    text = " ".join(str(error).split())
    if "ignore_mismatched_sizes" in text:  # transformers logs the details
        return CheckpointError(f"{what} cannot be loaded: its weights have other shapes than its config.json says.")
    if "Weights only load failed" in text:  # followed by advice to run the code
        return CheckpointError(
            f"{what} cannot be loaded: its pytorch_model.bin is damaged, or contains objects other than tensors, which "
            "may be code and were not loaded. Get its weights as model.safetensors."
        )
    if isinstance(error, ImportError):
        return ConfigError(f"{what} cannot be loaded: {missing_package(error)}")
    if isinstance(error, (SafetensorError, EOFError)) or _DAMAGED.search(text):
        return CheckpointError(f"{message} The file is damaged, incomplete or of another model: get it again.")
    for pattern, advice in _ADVICE:
        if pattern.search(text):
            return ConfigError(f"{message} {advice}")
    if isinstance(error, OSError):
        return ConfigError(message)
    return CheckpointError(
        f"{message} One of its files is damaged or belongs to another model: get the checkpoint again."
    )


def missing_package(error: ImportError) -> str:
    """The message of an import error, with how to install the package that is missing, unless it says so."""
    message = reason(error)
    if "pip install" in message:
        return message
    named = re.search(r"requires (?:the )?`?([\w-]+)`? ", message)
    package = named.group(1).lower() if named else (error.name or "").partition(".")[0]
    return f"{message} Install it: pip install {package}" if package else message
