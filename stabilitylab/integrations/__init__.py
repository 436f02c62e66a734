"""Former place of the callbacks; they live in `stabilitylab.attach`. Kept so that existing imports work."""
