"""A small run with known numbers, written in other tools' formats, and what an import of it must hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stabilitylab.importers.options import Options
from stabilitylab.importers.registry import import_log
from stabilitylab.importers.write import Imported
from stabilitylab.store.reader import RunReader, open_run

LAYERS = ("patch_embed", "blocks.0", "blocks.1", "norm")
STEPS = 40


def planted(steps: int = STEPS, seed: int = 0) -> dict[str, np.ndarray]:
    """layer -> norms (steps,), with a spike at step 20."""
    rng = np.random.default_rng(seed)
    norms = {layer: (1 + i) * np.exp(rng.normal(0, 0.1, steps)) for i, layer in enumerate(LAYERS)}
    for norm in norms.values():
        norm[min(20, steps - 1)] *= 8
    return norms


LOSS = 3.0 - 0.01 * np.arange(STEPS)


def bring(root: Path, path: Path, options: Options | None = None, **named: str) -> Imported:
    """The only run of a log."""
    (made,) = import_log(root, path, options, **named)  # type: ignore[arg-type]
    return made


def norms_of(run: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """layer -> (iterations, norms)."""
    with open_run(run) as reader:
        series = reader.layer_series()
        return {row.name: series[row.layer_id] for row in reader.layers()}


def assert_holds(run: Path, expected: dict[str, np.ndarray], tolerance: float = 1e-6) -> None:
    """The layers in this order, with these norms at 0, 1, 2 ..."""
    found = norms_of(run)
    assert list(found) == list(expected)
    for layer, norms in expected.items():
        np.testing.assert_array_equal(found[layer][0], np.arange(len(norms)))
        np.testing.assert_allclose(found[layer][1], norms, rtol=tolerance)


def events_of(run: Path) -> dict[str, list[str]]:
    """kind -> details, as the run keeps them."""
    found: dict[str, list[str]] = {}
    with open_run(run) as reader:
        for event in reader.events():
            found.setdefault(event.kind, []).append(event.detail)
    return found


def losses_of(reader: RunReader) -> np.ndarray:
    return reader.table("iterations")["loss"]
