"""Former place of `stabilitylab.attach.huggingface`. Kept so that existing imports work."""

from stabilitylab.attach.huggingface import StabilityCallback

__all__ = ["StabilityCallback"]
