"""StabilityLab: detect, time and fix the training instability of self-supervised vision transformers.

with stabilitylab.record(model, optimizer, run="my_run") as rec:
    ...
    loss.backward()
    rec.step(loss=loss, lr=lr)
    optimizer.step()

run = stabilitylab.open_run("my_run")    # tables, results and plots of any run, even while it is being written
run.signal("grad_norm"), run.analyze().lag, run.plot("spikes")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stabilitylab.version import __version__

if TYPE_CHECKING:
    from stabilitylab import cause, datasets
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
    from stabilitylab.run.catalog import compare, open_run, runs
    from stabilitylab.run.handle import Run

__all__ = [
    "ConfigError",
    "LogFormatError",
    "NoDataError",
    "PluginWarning",
    "RecordError",
    "Run",
    "RunBroken",
    "RunBusy",
    "RunExists",
    "RunNotFound",
    "StabilityLabError",
    "StoreError",
    "StoreWarning",
    "__version__",
    "cause",
    "compare",
    "datasets",
    "open_run",
    "record",
    "runs",
]

_PUBLIC = {  # the rest are errors
    "record": "stabilitylab.attach.loop",
    "open_run": "stabilitylab.run.catalog",
    "runs": "stabilitylab.run.catalog",
    "compare": "stabilitylab.run.catalog",
    "Run": "stabilitylab.run.handle",
}


def __getattr__(name: str) -> Any:
    """Import public names on first access, so that ``import stabilitylab`` does not import torch."""
    if name in ("cause", "datasets"):
        return import_module(f"stabilitylab.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'stabilitylab' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC.get(name, "stabilitylab.errors")), name)


def __dir__() -> list[str]:
    return __all__
