"""Deprecated alias of `stabilitylab.attach.huggingface`, kept so that existing imports work."""

from stabilitylab.attach.huggingface import StabilityCallback

__all__ = ["StabilityCallback"]
