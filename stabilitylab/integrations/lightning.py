"""Deprecated alias of `stabilitylab.attach.lightning`, kept so that existing imports work."""

from stabilitylab.attach.lightning import StabilityCallback

__all__ = ["StabilityCallback"]
