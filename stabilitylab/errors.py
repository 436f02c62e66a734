"""All exceptions of the package. A message is one line that says what is wrong, where, and what to do about it."""


class StabilityLabError(Exception):
    """Base class of all errors that this package raises deliberately."""


class ConfigError(StabilityLabError, ValueError):
    """A configuration, an option or an argument is invalid. The message names the value and the allowed values."""


class RecordError(StabilityLabError, RuntimeError):
    """The recorder is used incorrectly. The message says how to fix it."""


class LogFormatError(StabilityLabError, ValueError):
    """A file is not a readable log. The message names the file and the expected content."""


class NoDataError(StabilityLabError, ValueError):
    """A run lacks the requested data, such as gradients, a signal or a metric. The message lists what it has."""


class StoreError(StabilityLabError):
    """Base class of all errors of the store."""


class RunExists(StoreError):  # noqa: N818
    """A run with this name already exists."""


class RunNotFound(StoreError):  # noqa: N818
    """There is no run with this name. The message lists the nearest names."""


class RunBroken(StoreError):  # noqa: N818
    """The folder contains no readable run, or one that this version cannot read."""


class RunBusy(StoreError):  # noqa: N818
    """Another process is writing this run."""


class StoreWarning(UserWarning):
    """Rows could not be written, or were lost. Training continues."""


class PluginWarning(UserWarning):
    """A plugin could not be used. Everything else continues without it."""
