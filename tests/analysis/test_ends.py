"""Which layers are first and last: a planted lag of 3 is found regardless of the layers around them."""

from __future__ import annotations

import numpy as np
import pytest

from stabilitylab.analysis.pipeline import analyze_run
from stabilitylab.analysis.series import LayerSeries, RunSeries
from stabilitylab.errors import ConfigError

LENGTH, SPIKES, LAG = 1500, range(100, 1400, 70), 3


def layer(name: str, depth: int, delay: int | None, seed: int = 0) -> LayerSeries:
    """``delay`` None: no spikes of its own."""
    norm = np.exp(np.random.default_rng(100 * seed + depth).normal(0, 0.15, LENGTH))
    for at in SPIKES if delay is not None else ():
        norm[at + (delay or 0) : at + (delay or 0) + 2] *= 12
    return LayerSeries(name, depth, np.arange(LENGTH), norm)


def silent(name: str, depth: int) -> LayerSeries:
    return LayerSeries(name, depth, np.arange(LENGTH), np.full(LENGTH, np.nan))


def network(prefix: str, depth: int) -> list[LayerSeries]:
    names = ["patch_embed", "blocks.0", "blocks.1", "head"]
    return [layer(f"{prefix}{name}", depth + i, i) for i, name in enumerate(names)]


@pytest.mark.parametrize("teacher", [False, True], ids=["", "teacher"])
@pytest.mark.parametrize("probe", [False, True], ids=["", "probe"])
@pytest.mark.parametrize("prefix", ["", "student_backbone."])
def test_the_planted_lag_is_found_between_the_first_and_last_layer_of_the_main_loss(
    teacher: bool, probe: bool, prefix: str
) -> None:
    layers = [silent("teacher.patch_embed", 0)] if teacher else []
    layers += network(prefix, len(layers))
    layers += [layer("online_classifier", len(layers), None)] if probe else []
    series = RunSeries("r", LENGTH, tuple(layers), off_path=("online_classifier",) if probe else ())
    found = analyze_run(series, spikes=False, dips=False)
    assert found.lag is not None
    assert (found.lag.source, found.lag.target) == (f"{prefix}patch_embed", f"{prefix}head")
    assert found.lag.median_iterations == LAG
    assert found.lag.verdict == "first leads"
    left_out = [note for note in found.notes if "not used as first or last layer" in note]
    assert len(left_out) == teacher + probe
    assert not teacher or any("teacher.patch_embed" in note for note in left_out)


def test_the_user_may_name_the_ends() -> None:
    series = RunSeries("r", LENGTH, tuple(network("", 0)), first="blocks.0")
    own = analyze_run(series, dips=False).lag
    assert own is not None
    assert (own.source, own.median_iterations) == ("blocks.0", 2)
    asked = analyze_run(series, dips=False, first="patch_embed", last="blocks.1").lag
    assert asked is not None
    assert (asked.source, asked.target, asked.median_iterations) == ("patch_embed", "blocks.1", 2)


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ({"first": "stem"}, "--first stem: not a trained layer of this run; the layers are teacher, patch_embed"),
        ({"first": "teacher"}, "--first teacher: this layer has no gradient; these layers have one: patch_embed"),
        ({"first": "head", "last": "head"}, "--first and --last are both head"),
    ],
)
def test_ends_that_cannot_be(ends: dict[str, str], message: str) -> None:
    series = RunSeries("r", LENGTH, (silent("teacher", 0), *network("", 1)))
    with pytest.raises(ConfigError, match=message):
        analyze_run(series, dips=False, **ends)  # type: ignore[arg-type]
