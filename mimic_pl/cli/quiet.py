"""Silences library messages that are irrelevant to users of mimic-pl."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from itertools import chain

from mimic_pl.errors import LONGEST
from mimic_pl.escaping import printable, shortened

_WARNINGS = (
    r".*does not have many workers which may be a bottleneck.*",  # two workers are the default
    r".*is smaller than the logging interval.*",  # epoch averages are logged anyway
    r".*Checkpoint directory .* exists and is not empty.*",  # a resumed run continues in its folder
    r".*isinstance\(treespec, LeafSpec\).*",  # torch's own deprecation inside Lightning
    r".*It is recommended to use `self\.log\(.*sync_dist=True.*",  # ranks are summed over processes by the metrics
    r".*LightningCLI's args parameter is intended to run from within Python.*",
    r".*callbacks used to create the checkpoint need to be provided.*",  # evaluation does not need them
    r".*`trainer\.init_module`.*",
    r".*The dirpath has changed from .*",  # a new run that starts from a checkpoint of another
)


class _WithoutTips(logging.Filter):
    """Drops Lightning's advertisements for hosted services."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return "litlogger" not in message and "litmodels" not in message


class _Printable(logging.Filter):
    """Escapes control characters, as of names in a data set, and bounds the length of this package's messages."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        text = shortened(text, LONGEST) if record.name.startswith("mimic_pl") else text
        record.msg, record.args = printable(text), ()
        return True


_PRINTABLE = _Printable()

_default_excepthook = threading.excepthook


def _thread_excepthook(args: threading.ExceptHookArgs) -> None:
    # TensorBoard's writer thread stores its error, and raises it when the next value is logged.
    if not isinstance(args.exc_value, OSError) or type(args.thread).__name__ != "_AsyncWriterThread":
        _default_excepthook(args)


def quiet_libraries() -> None:
    """Silence library messages, in this process and its child processes, and make all messages printable."""
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    # The filter of a logger does not apply to child loggers, so it is added to each one that Lightning logs to.
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_WithoutTips())
    # Messages of this package reach the handler of last resort, or the root's and Lightning's.
    named = (logging.getLogger(name).handlers for name in ("", "lightning.pytorch", "lightning.fabric"))
    for handler in filter(None, (logging.lastResort, *chain.from_iterable(named))):
        handler.addFilter(_PRINTABLE)
    threading.excepthook = _thread_excepthook
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if os.environ.get("COLUMNS") == "0":  # of a terminal of unknown size, on which rich would print nothing
        del os.environ["COLUMNS"]
