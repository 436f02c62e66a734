"""Former place of `stabilitylab.attach.lightning`. Kept so that existing imports work."""

from stabilitylab.attach.lightning import StabilityCallback

__all__ = ["StabilityCallback"]
