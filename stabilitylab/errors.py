"""Every error that a caller can catch. The message is one line: what, where, and what to do about it."""


class StabilityLabError(Exception):
    """Base class of every error that this package raises on purpose."""


class ConfigError(StabilityLabError, ValueError):
    """A configuration, an option or an argument is invalid. The message names the value and what is allowed."""


class RecordError(StabilityLabError, RuntimeError):
    """The recorder is used in a way that cannot be right. The message names the remedy."""


class LogFormatError(StabilityLabError, ValueError):
    """A file is not a log that can be read. The message names the file and what it should look like."""


class NoDataError(StabilityLabError, ValueError):
    """A run lacks what was asked for: gradients, a signal, a metric. The message names what it has."""


class StoreError(StabilityLabError):
    """Any failure of the store."""


class RunExists(StoreError):  # noqa: N818
    """The name is taken by another run."""


class RunNotFound(StoreError):  # noqa: N818
    """No run has this name; the message lists the nearest ones."""


class RunBroken(StoreError):  # noqa: N818
    """The folder holds no readable run, or one that this version cannot read."""


class RunBusy(StoreError):  # noqa: N818
    """Another process is writing this run."""


class StoreWarning(UserWarning):
    """Rows could not be written, or were lost; training goes on."""


class PluginWarning(UserWarning):
    """An extension of another package could not be used; everything else goes on without it."""
