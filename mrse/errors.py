"""The errors that a user is meant to read.

Every command and every component prints an `MrseError` as one message without a traceback and exits non-zero.
"""


class MrseError(Exception):
    """Something the user can mend. The message says what is wrong, where (file, row, key) and what to do."""


class ConfigError(MrseError):
    """`params.yaml` has a wrong key, type or value."""


class DataError(MrseError):
    """Input data is missing, unreadable or does not fit the data contract."""


class ValidationFailed(MrseError):
    """A critical expectation failed, too much was quarantined, or drift passed its bound."""


class TrainingFailed(MrseError):
    """The loss became non-finite, an expert collapsed, or there was nothing to learn from."""


class IndexFailed(MrseError):
    """An index could not be built, verified or swapped; the live one is untouched."""


class ServiceError(MrseError):
    """Milvus or MLflow cannot be reached, or another process holds it."""
