"""What can go wrong, by kind. Every message says what was wrong, where, and what to do about it.

The command line prints the message as one paragraph and exits with :attr:`MimicError.exit_code`.
"""


class MimicError(Exception):
    """Base of all errors that mimic-pl raises on purpose."""

    exit_code = 1


class ConfigError(MimicError):
    """A configuration value that can not work (unknown name, wrong path, sizes that do not fit)."""

    exit_code = 3


class DataError(MimicError):
    """A data set that is not as it should be (missing file, malformed JSON, unknown gold, unreadable picture)."""

    exit_code = 4


class CheckpointError(MimicError):
    """Weights that do not fit the model (unknown or missing names, other shapes, unreadable file)."""

    exit_code = 5


class NonFiniteScoreError(MimicError):
    """A score that is NaN or infinite, which no ranking can order.

    Args:
        message: What the user reads.
        score: Name of the score.
        mention: Row of the mention in its block.
        entity: Position of the entity in the knowledge base.
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
    """Arrays on disk that can not be used or written (entity index, picture cache).

    They are damaged, unfinished, built by another model, being written by another process, or there is no room.
    """

    exit_code = 7


class DeviceMemoryError(MimicError):
    """The device's memory does not hold even a small block of the work."""

    exit_code = 8


class NonFiniteLossError(MimicError):
    """A training loss that is NaN or infinite: every later step would be lost."""

    exit_code = 9
