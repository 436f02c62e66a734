"""Deprecated location of the callbacks, kept so that existing imports work. They now live in `stabilitylab.attach`."""
