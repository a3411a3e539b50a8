"""Errors by kind. Every message says what was wrong, where, and what to do about it.

The command line prints the message as one paragraph, and the traceback as well with ``--debug`` anywhere on the command
line or ``MIMIC_PL_DEBUG=1`` in the environment. Checkpoints are loaded as plain tensors and their checksums compared:
code in one is never run, and a flipped byte is found before it changes a result. Checkpoints, indexes and caches are
written atomically. ``tests/faults/README.md`` lists every fault that is tested and what a user sees.

Each kind has an exit code (:attr:`MimicError.exit_code`) that scripts can rely on:

====  ====================================================================================
code  what it says
====  ====================================================================================
0     done
1     an unexpected exception: a bug in mimic-pl, or in a custom class
2     :class:`UsageError`: the command line or a configuration file cannot be understood
3     :class:`ConfigError`: a value that cannot work
4     :class:`DataError`: the data set, or a file that a run left behind
5     :class:`CheckpointError`: weights
6     :class:`NonFiniteScoreError`: a score that is NaN or infinite
7     :class:`StoreError`: an entity index, an image cache; another process writes there
8     :class:`DeviceMemoryError`: the memory of the device or of the host
9     :class:`NonFiniteLossError`: a training loss that is NaN or infinite
10    :class:`MachineError`: no room on a disk, no permission, a process that was killed
130   ended by Ctrl-C, with a checkpoint if it was training
143   ended by SIGTERM, with a checkpoint if it was training
====  ====================================================================================
"""


class MimicError(Exception):
    """Base of all errors that mimic-pl raises on purpose."""

    exit_code = 1


class ConfigError(MimicError):
    """A configuration value that cannot work (unknown name, wrong path, sizes that do not fit)."""

    exit_code = 3


class UsageError(ConfigError):
    """A command line or a configuration file that cannot be understood."""

    exit_code = 2


class DataError(MimicError):
    """A data set that is not as it should be (missing file, malformed JSON, unknown gold, unreadable image)."""

    exit_code = 4


class CheckpointError(MimicError):
    """Weights that cannot be used (damaged file, code in it, unknown or missing names, other shapes, NaN)."""

    exit_code = 5


class NonFiniteScoreError(MimicError):
    """A score that is NaN or infinite, which no ranking can order.

    Args:
        message: What the user reads.
        score: Name of the score.
        mention: Row of the mention in its block.
        entity: Order number of the entity.
        value: What the score is.
    """

    exit_code = 6

    def __init__(self, message: str, score: str = "", mention: int = -1, entity: int = -1, value: float = 0.0) -> None:
        super().__init__(message)
        self.score = score
        self.mention = mention
        self.entity = entity
        self.value = value


class StoreError(MimicError):
    """Arrays on disk that cannot be used or written (entity index, image cache).

    They are damaged, unfinished, built by another model, being written by another process, or there is no room.
    """

    exit_code = 7


class DeviceMemoryError(MimicError):
    """The memory of the device, or of the host, does not hold even a small block of the work."""

    exit_code = 8


class NonFiniteLossError(MimicError):
    """A training loss that is NaN or infinite: every later step would be lost."""

    exit_code = 9


class MachineError(MimicError):
    """What the machine refuses: room on a disk or in shared memory, a permission; or it killed a process."""

    exit_code = 10
