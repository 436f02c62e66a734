"""Impulses: a zero kick has no effect at all; a kick in a known network arrives where predicted; any loop works."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import stabilitylab as sl
from stabilitylab.cause.experiments import load_impulse, save_impulse
from stabilitylab.cause.impulses import Impulse, impulse_run, pool
from stabilitylab.cause.kicks import generator_of, kick
from stabilitylab.errors import ConfigError, NoDataError
from stabilitylab.run.experiments import load_experiments


def test_no_kick_gives_exactly_nothing(recorded: Path) -> None:
    found = impulse_run(recorded, layers=["patch_embed", "predictor"], at=[40], size=0.0, kicks=1, horizon=6)
    assert [values.shape for values in found.differences.values()] == [(1, 6, len(found.order) + 1)] * 2
    assert not any(values.any() for values in found.differences.values())
    scaled = impulse_run(recorded, layers=["predictor"], at=[40], size=0.0, of="gradient", horizon=6)
    assert not scaled.differences["predictor"].any()


def test_a_kick_is_seen_at_once_and_a_scaled_gradient_one_iteration_later(recorded: Path) -> None:
    kicked = impulse_run(recorded, layers=["blocks.0"], at=[40], kicks=2, horizon=4, metric_every=2)
    assert (kicked.differences["blocks.0"][:, 0] != 0).all()  # every layer's gradient, and the loss
    assert not np.array_equal(*kicked.differences["blocks.0"])  # two directions
    assert {t: values.shape for t, values in kicked.metric["blocks.0"].items()} == {2: (2,), 4: (2,)}
    scaled = impulse_run(recorded, layers=["blocks.0"], at=[40], size=50.0, of="gradient", horizon=4)
    assert not scaled.differences["blocks.0"][:, 0].any()  # norms are taken before the gradient is scaled
    assert (scaled.differences["blocks.0"][:, 1] != 0).any()


def test_results_are_kept_beside_the_run_and_pooled(recorded: Path, tmp_path: Path) -> None:
    settings = {"layers": ["predictor"], "at": [40, 45], "kicks": 3, "horizon": 4}
    found = impulse_run(recorded, **settings)
    assert found.kicks == 6
    (tmp_path / "run").mkdir()
    for _ in range(2):
        save_impulse(tmp_path / "run", found, settings)
    first, second = load_experiments(tmp_path / "run")
    assert (first.path.name, second.path.name) == ("impulse-001.json", "impulse-002.json")
    assert first.sentence == found.sentence()
    assert first.picture is not None
    again = load_impulse(tmp_path / "run", settings)
    np.testing.assert_array_equal(again.differences["predictor"], found.differences["predictor"])
    assert load_impulse(tmp_path / "run", settings | {"kicks": 4}) is None
    assert pool([found, again]).kicks == 12


def test_what_cannot_be_kicked_is_refused(recorded: Path) -> None:
    with pytest.raises(ConfigError, match="has no layer 'patch'; its layers: patch_embed"):
        impulse_run(recorded, layers=["patch"], at=[40], horizon=4)
    with pytest.raises(ConfigError, match=r"the experiment needs 60 from iteration 40 on"):
        impulse_run(recorded, layers=["predictor"], at=[40], horizon=60)
    with pytest.raises(ConfigError, match="of is weights or gradient, not 'weight'"):
        impulse_run(recorded, layers=["predictor"], at=[40], horizon=4, of="weight")
    with pytest.raises(ConfigError, match="needs at least one iteration"):
        impulse_run(recorded, layers=["predictor"], at=[], horizon=4)
    loop = Loop()
    with pytest.raises(ConfigError, match="needs at least one layer"):
        sl.cause.impulse(loop.step, loop.restore, loop.model, layers=[], at=[5])


def test_an_iteration_given_twice_is_one_sample() -> None:
    loop = Loop()
    found = sl.cause.impulse(loop.step, loop.restore, loop.model, layers=["fc1"], at=[5, 5], kicks=2, horizon=4)
    assert (found.at, found.kicks) == ((5,), 2)


def test_kicks_that_end_the_run_are_told_and_unequal_numbers_are_not_pooled() -> None:
    values = np.zeros((4, 3, 2))
    values[1, 2:] = np.nan
    found = Impulse(("fc1",), 0.5, "weights", (5, 6), {"fc1": values}, {})
    assert found.diverged == 1
    assert "After 1 of 4 kicks the loss became 0 or non-finite" in found.sentence()
    fewer = Impulse(("fc1",), 0.5, "weights", (5, 6), {"fc1": values[:2]}, {})
    with pytest.raises(NoDataError, match="different numbers of kicks"):
        pool([found, fewer])


class Loop:
    """A plain loop over two linear layers that do not touch: y1 = fc1(x), y2 = fc2(x), trained by SGD."""

    def __init__(self, *, forgets: bool = False) -> None:
        torch.manual_seed(0)
        self.model = nn.ModuleDict({"fc1": nn.Linear(4, 3, bias=False), "fc2": nn.Linear(4, 3, bias=False)})
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.x = torch.randn(40, 16, 4)
        self.start = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.forgets = forgets

    def restore(self, at: int) -> None:
        if not self.forgets:
            self.model.load_state_dict(self.start)
        for t in range(at):
            self.step(t)

    def step(self, t: int) -> dict[str, float]:
        self.optimizer.zero_grad()
        x = self.x[t]
        loss = ((self.model["fc1"](x)) ** 2).mean() + ((self.model["fc2"](x) - 1) ** 2).mean()
        loss.backward()
        found = {"loss": loss.item(), **sl.cause.layer_norms(self.model)}
        self.optimizer.step()
        return found


def test_a_plain_loop_of_any_kind() -> None:
    loop = Loop()
    found = sl.cause.impulse(
        loop.step, loop.restore, loop.model, layers=["fc1"], at=[5, *range(8, 22, 2)], kicks=1, size=2.0, horizon=12
    )
    own, other, loss = found.responses
    assert (own.responding, other.responding, loss.responding) == ("fc1", "fc2", "loss")
    assert own.reached
    assert own.arrival == 0
    assert not other.mean.any()  # not touched, so exactly nothing
    # The first answer, from the kick itself: |grad(w + d)| / |grad(w)| written out.
    loop.restore(5)
    w, x = loop.model["fc1"].weight.detach().clone(), loop.x[5]

    def norm(weights: torch.Tensor) -> float:
        return float((2 * (x @ weights.T).T @ x / (16 * 3)).norm())

    kick([loop.model["fc1"].weight], 2.0, generator_of(0, 0, 5, 0))
    moved = loop.model["fc1"].weight.detach()
    assert float((moved - w).norm() / w.norm()) == pytest.approx(2.0, rel=1e-5)
    assert found.differences["fc1"][0, 0, 0] == pytest.approx(np.log(norm(moved) / norm(w)), rel=1e-4)


def test_a_loop_that_does_not_restore_is_refused() -> None:
    loop = Loop(forgets=True)
    with pytest.raises(ConfigError, match="two futures from iteration 5 differ without a kick: state_fn must restore"):
        sl.cause.impulse(loop.step, loop.restore, loop.model, layers=["fc1"], at=[5])
    with pytest.raises(ConfigError, match="no trained layer 'fc3'; its layers: fc1, fc2"):
        sl.cause.impulse(loop.step, loop.restore, loop.model, layers=["fc3"], at=[5])


def test_a_step_that_gives_no_norms_is_refused() -> None:
    loop = Loop()
    step: Callable[[int], dict[str, float]] = lambda t: {"loss": loop.step(t)["loss"]}  # noqa: E731
    with pytest.raises(ConfigError, match="step_fn returned no 'fc1'"):
        sl.cause.impulse(step, loop.restore, loop.model, layers=["fc1"], at=[5])
