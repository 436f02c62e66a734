"""Data or state: planted bad batches and planted bad states are distinguished."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stabilitylab.cause.kicks import kick
from stabilitylab.cause.replay import Replay
from stabilitylab.cause.spike import find_spike
from stabilitylab.cause.swap import Cell, judge, swap_run
from stabilitylab.data.batches import MemoryBatches
from stabilitylab.errors import ConfigError
from stabilitylab.studies import train_run
from stabilitylab.studies.running import resume_run
from stabilitylab.train.checkpoint import checkpoints
from stabilitylab.train.large_batch import CutStep
from tests.cause.conftest import tiny_config

BAD, MARK = 43, 123.0
REPEATS = 5  # enough for intervals that do not overlap if all agree


def plant_bad_batch(patch: pytest.MonkeyPatch) -> None:
    """Batch 43 carries a mark, and the loss of a marked batch counts twenty times. Images alone do not do it:
    self-supervised losses normalise their input, and hardly any batch doubles a gradient."""
    batches, step = MemoryBatches.iterate, CutStep.__call__

    def iterate(self: MemoryBatches, start: int, stop: int) -> Iterator[list[Tensor]]:
        for t, views in enumerate(batches(self, start, stop), start):
            if t == BAD:
                views[0][0, 0, 0, 0] = MARK
            yield views

    def call(self: CutStep, views: list[Tensor], scale: Callable[[Tensor], Tensor], iteration: int) -> Tensor:
        marked = views[0][0, 0, 0, 0] == MARK
        return step(self, views, (lambda loss: 20 * scale(loss)) if marked else scale, iteration)

    patch.setattr(MemoryBatches, "iterate", iterate)
    patch.setattr(CutStep, "__call__", call)


@pytest.fixture(scope="module")
def trained_on_bad_batch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        plant_bad_batch(patch)
        return train_run(tiny_config(), tmp_path_factory.mktemp("bad"), "batch").path


@pytest.fixture
def bad_batch(trained_on_bad_batch: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with a planted bad batch, which a replay sees as well."""
    plant_bad_batch(monkeypatch)
    return trained_on_bad_batch


@pytest.fixture
def bad_state(tmp_path: Path) -> Path:
    """A run whose weights were shaken at iteration 40, between two of its processes."""
    config = tiny_config()
    run = train_run(config, tmp_path, "state").path
    for path in checkpoints(run / "checkpoints")[:4]:  # 60, 55, 50, 45
        path.unlink()
    path = checkpoints(run / "checkpoints")[0]
    state = torch.load(path, weights_only=True)
    names = [n for n in state["method"] if n.startswith("base_encoder.blocks.") and n.endswith("weight")]
    for i, name in enumerate(names):
        weights = torch.nn.Parameter(state["method"][name])
        kick([weights], 6.0, torch.Generator().manual_seed(i))
    torch.save(state, path)
    return resume_run(run).path


def test_a_bad_batch_is_told(bad_batch: Path) -> None:
    spike = find_spike(Replay(bad_batch), BAD)
    assert spike.peak == BAD
    found = swap_run(bad_batch, at=BAD, layer=spike.layer, repeats=REPEATS)
    assert found.state_at == 40
    assert found.verdict == "data", found.sentence()
    assert found.sentence().startswith(f"The spike of {spike.layer} at iteration 43 (x")


def test_a_bad_state_is_told(bad_state: Path) -> None:
    found = swap_run(bad_state, at=40, repeats=REPEATS)
    assert found.state_at == 40
    assert found.verdict == "state", found.sentence()


def test_no_spike_and_no_older_state_are_refused(recorded: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"iteration 40 of run run is not a spike: within 10 iterations, the gradient norm of "
    ):
        swap_run(recorded, at=40)
    with pytest.raises(
        ConfigError, match=r"no checkpoint at least 20 iterations before that at 20 to compare with; keep checkpoints"
    ):
        swap_run(recorded, at=22)
    with pytest.raises(ConfigError, match=r"no checkpoint at or before iteration 3"):
        swap_run(recorded, at=3)


@pytest.mark.parametrize(
    ("own_state", "own_data", "neither", "verdict"),
    [
        (8, 0, 0, "state"),
        (0, 8, 0, "data"),
        (0, 0, 0, "both needed"),
        (8, 8, 0, "either"),
        (8, 8, 8, "neither"),
        (6, 0, 0, "state"),
        (0, 6, 1, "data"),
        (8, 0, 4, "state"),
        (6, 0, 4, "inconclusive"),
        (5, 2, 0, "inconclusive"),
        (8, 4, 0, "state"),
        (4, 0, 0, "inconclusive"),
    ],
)
def test_verdicts_follow_the_intervals(own_state: int, own_data: int, neither: int, verdict: str) -> None:
    from stabilitylab.analysis.intervals import share_interval

    cells = [Cell("", "", (0.0,) * 8, k, share_interval(k, 8)) for k in (own_state, own_data, neither)]
    assert judge(*cells) == verdict


def test_a_spike_that_does_not_recur_is_refused(bad_batch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stabilitylab.cause.swap.height", lambda norms, usual: 0.1)
    with pytest.raises(ConfigError, match=r"does not recur when replayed here: the norm rises to 1.11 times"):
        swap_run(bad_batch, at=BAD)
