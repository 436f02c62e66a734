"""What can go wrong with a stored run, in one line each: what, where, what to do."""


class StoreError(Exception):
    """Any failure of the store. The message is one line that a user can act on."""


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
