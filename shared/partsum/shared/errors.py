"""Every error that partsum raises on purpose.

    PartsumError                what the user can mend; the message says how
    ├── ConfigError             a run.toml that cannot be used
    ├── TaskError               a task that cannot be loaded or does not match
    ├── WidthError              a model that cannot be cut as asked
    ├── DataError               a data set that is missing or is not the same one
    ├── WireError               bytes that are not what was announced
    ├── UpdateRefusedError      an update that must not be merged
    ├── RefusedError            the other side said no, and why
    ├── StateError              a run folder that cannot be used
    └── HandoffError            DeepSpeed did not finish

The message is for a person: what was wrong, with the value, where, and what to do.
"""

EXIT_OK = 0
EXIT_FAILED = 1  # the run or the daemon ended with an error
EXIT_USAGE = 2  # a flag or a config that cannot be used; nothing was started
EXIT_UNREACHABLE = 3  # no coordinator answers at the address
EXIT_STOPPED = 130  # ended by Ctrl-C or SIGTERM, cleanly


class PartsumError(Exception):
    """Something that the user can mend."""

    exit_code = EXIT_FAILED


class ConfigError(PartsumError):
    """A run.toml that cannot be used."""

    exit_code = EXIT_USAGE


class TaskError(PartsumError):
    """A task that cannot be loaded, or that is not the coordinator's."""

    exit_code = EXIT_USAGE


class WidthError(PartsumError):
    """A model that cannot be cut as asked."""

    exit_code = EXIT_USAGE


class DataError(PartsumError):
    """A data set that is missing, or that is not the coordinator's."""


class WireError(PartsumError):
    """Bytes that are not what was announced."""


REFUSALS = (
    *("shape", "dtype", "missing", "extra", "damaged", "not_finite", "integers"),
    *("base", "samples", "size", "norm", "encoding", "not_evaluated"),
)
"""Kinds of reasons to refuse an update."""


class UpdateRefusedError(PartsumError):
    """An update that must not be merged.

    ``kind`` is the metric label, one of `REFUSALS`.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        assert kind in REFUSALS, kind
        self.kind = kind


class RefusedError(PartsumError):
    """The coordinator will not have this peer; where ``retry``, not yet."""

    def __init__(self, message: str, retry: bool = False) -> None:
        super().__init__(message)
        self.retry = retry


class StateError(PartsumError):
    """A run folder that cannot be used."""


class HandoffError(PartsumError):
    """DeepSpeed did not finish."""
