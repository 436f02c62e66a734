"""StabilityLab: find, time and cure the training instability of self-supervised vision transformers.

with stabilitylab.record(model, optimizer, run="my_run") as rec:
    ...
    loss.backward()
    rec.step(loss=loss, lr=lr)
    optimizer.step()
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stabilitylab.attach.loop import record
    from stabilitylab.errors import (
        ConfigError,
        LogFormatError,
        NoDataError,
        PluginWarning,
        RecordError,
        RunBroken,
        RunBusy,
        RunExists,
        RunNotFound,
        StabilityLabError,
        StoreError,
        StoreWarning,
    )
    from stabilitylab.store.reader import open_run

__version__ = "0.1.0"
__all__ = [
    "ConfigError",
    "LogFormatError",
    "NoDataError",
    "PluginWarning",
    "RecordError",
    "RunBroken",
    "RunBusy",
    "RunExists",
    "RunNotFound",
    "StabilityLabError",
    "StoreError",
    "StoreWarning",
    "__version__",
    "open_run",
    "record",
]

_PUBLIC = {  # the rest are errors
    "record": "stabilitylab.attach.loop",
    "open_run": "stabilitylab.store.reader",
}


def __getattr__(name: str) -> Any:
    """Public names come when they are asked for: ``import stabilitylab`` does not import torch."""
    if name not in __all__:
        raise AttributeError(f"module 'stabilitylab' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC.get(name, "stabilitylab.errors")), name)


def __dir__() -> list[str]:
    return __all__
