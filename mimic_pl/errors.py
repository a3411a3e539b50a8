"""Exceptions. Every message says what was wrong, where, and what to do about it.

The command line prints the message as one paragraph, and the traceback as well with ``--debug`` anywhere on the command
line or ``MIMIC_PL_DEBUG=1`` in the environment. Checkpoints are loaded as plain tensors and their checksums compared:
code in one is never run, and a flipped byte is found before it changes a result. Checkpoints, indexes and caches are
written atomically. ``tests/faults/README.md`` lists every fault that is tested and what a user sees.

Each class has an exit code (:attr:`MimicError.exit_code`) that scripts can rely on:

====  ==================================================================================
code  meaning
====  ==================================================================================
0     success
1     an unexpected exception: a bug in mimic-pl, or in a custom class
2     :class:`UsageError`: the command line or a configuration file cannot be parsed
3     :class:`ConfigError`: an invalid configuration value
4     :class:`DataError`: the data set, or an output file of a run
5     :class:`CheckpointError`: weights
6     :class:`NonFiniteScoreError`: a score that is NaN or infinite
7     :class:`StoreError`: an entity index, an image cache; another process writes there
8     :class:`DeviceMemoryError`: out of device or host memory
9     :class:`NonFiniteLossError`: a training loss that is NaN or infinite
10    :class:`MachineError`: disk full, permission denied, a process that was killed
130   ended by Ctrl-C, with a checkpoint if it was training
141   the reader of the output is gone, as in ``mimic-pl test | head -1``
143   ended by SIGTERM, with a checkpoint if it was training
====  ==================================================================================
"""

import copyreg
import re
from typing import Any

from mimic_pl.escaping import printable, shortened

LONGEST = 2000
"""Maximum number of characters of a message."""


class MimicError(Exception):
    """Base of all errors that mimic-pl raises on purpose."""

    exit_code = 1

    def __str__(self) -> str:
        """The message as one paragraph of bounded length; control characters, as of names in a data set, are escaped.

        ``args`` contains the message as it was given.
        """
        text = super().__str__()
        if text.startswith("Caught "):  # by torch in a loader process, with its traceback and this message
            return text
        return re.sub(r"\s*\n\s*", " ", printable(shortened(text.strip(), LONGEST)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled without its constructor, whose arguments may be others than the message."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class ConfigError(MimicError):
    """An invalid configuration value (unknown name, wrong path, mismatched sizes)."""

    exit_code = 3


class UsageError(ConfigError):
    """A command line or a configuration file that cannot be parsed."""

    exit_code = 2


class DataError(MimicError):
    """An invalid data set (missing file, malformed JSON, unknown gold, unreadable image)."""

    exit_code = 4


class CheckpointError(MimicError):
    """Weights that cannot be used (corrupted file, embedded code, unknown or missing names, mismatched shapes, NaN)."""

    exit_code = 5


class NonFiniteScoreError(MimicError):
    """A score that is NaN or infinite, and so cannot be ranked.

    Args:
        message: The error message.
        score: Name of the score.
        mention: Row of the mention in its block.
        entity: Position of the entity.
        value: Value of the score.
    """

    exit_code = 6

    def __init__(self, message: str, score: str = "", mention: int = -1, entity: int = -1, value: float = 0.0) -> None:
        super().__init__(message)
        self.score = score
        self.mention = mention
        self.entity = entity
        self.value = value


class StoreError(MimicError):
    """An on-disk store (entity index, image cache) that cannot be used or written.

    It is corrupted, incomplete, built by another model, locked by another process, or the disk is full.
    """

    exit_code = 7


class DeviceMemoryError(MimicError):
    """Device or host memory is too small even for a small block of the work."""

    exit_code = 8


class NonFiniteLossError(MimicError):
    """A training loss that is NaN or infinite: every later step would be lost."""

    exit_code = 9


class MachineError(MimicError):
    """An error of the machine: no space on disk or in shared memory, permission denied, or a killed process."""

    exit_code = 10
