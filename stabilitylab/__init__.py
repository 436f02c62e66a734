"""StabilityLab: find, time and cure the training instability of self-supervised vision transformers."""

__version__ = "0.1.0"
