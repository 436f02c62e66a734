"""Closing a recording that the caller did not close: at the end of the program, or after an exception."""

from __future__ import annotations

import atexit
import sys
import weakref
from collections.abc import Callable
from typing import Any


def status_of(error: BaseException | None) -> str:
    """The status of a run that ends with ``error``."""
    return "finished" if error is None else "crashed" if isinstance(error, Exception) else "stopped"


def close_at_exit(recorder: Any) -> Callable[[], None]:
    """Close the recorder when the program ends. Uses a weak reference, so the recorder can still be collected."""
    reference = weakref.ref(recorder)

    def close() -> None:
        forgotten = reference()
        if forgotten is not None:
            forgotten.close("crashed" if isinstance(getattr(sys, "last_value", None), Exception) else "stopped")

    atexit.register(close)
    return close
