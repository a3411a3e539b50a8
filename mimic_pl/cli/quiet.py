"""Messages of the libraries below that tell a user of mimic-pl nothing to act on."""

from __future__ import annotations

import logging
import os
import threading
import warnings

_WARNINGS = (
    r".*does not have many workers which may be a bottleneck.*",  # two processes on a small machine are the default
    r".*is smaller than the logging interval.*",  # epochs are logged whatever their length
    r".*Checkpoint directory .* exists and is not empty.*",  # a resumed run continues in its folder
    r".*isinstance\(treespec, LeafSpec\).*",  # torch's own deprecation inside Lightning
    r".*It is recommended to use `self\.log\(.*sync_dist=True.*",  # ranks are summed over processes by the metrics
    r".*LightningCLI's args parameter is intended to run from within Python.*",
    r".*callbacks used to create the checkpoint need to be provided.*",  # evaluation alone needs none of them
    r".*`trainer\.init_module`.*",
)


class _WithoutTips(logging.Filter):
    """Drops Lightning's advertisements for hosted services."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return "litlogger" not in message and "litmodels" not in message


_told_by_thread = threading.excepthook


def _tell_of_thread(args: threading.ExceptHookArgs) -> None:
    # TensorBoard's writer keeps its error, and raises it where the next value is logged.
    if not isinstance(args.exc_value, OSError) or type(args.thread).__name__ != "_AsyncWriterThread":
        _told_by_thread(args)


def quiet_libraries() -> None:
    """Silence them, in this process and in those it starts."""
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    # A filter on a logger sees only what is logged to it by name, so it sits where Lightning's records end up.
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_WithoutTips())
    threading.excepthook = _tell_of_thread
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
