"""Failures in the training loop, and options that change how a step is computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stabilitylab.config import resolve
from stabilitylab.methods.mocov3 import MoCoV3
from stabilitylab.store.reader import open_run
from stabilitylab.studies import train_run


def short(tmp_path: Path, **sections: dict[str, object]) -> Path:
    train = {"iterations": 6, "batch_size": 32, "device": "cpu"} | sections.pop("train", {})
    values = {"train": train, "record": {"log_grads": True}, "eval": {"knn_every": 0}, **sections}
    return train_run(resolve(values), tmp_path).path


@pytest.mark.parametrize("what", ["skip", "continue"])
def test_a_nan_loss_skipped_leaves_the_weights_whole(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy, calls = MoCoV3.loss, iter(range(100))

    def loss(self: MoCoV3, *features: list[torch.Tensor]) -> torch.Tensor:
        return healthy(self, *features) * (float("nan") if next(calls) == 2 else 1.0)

    monkeypatch.setattr(MoCoV3, "loss", loss)
    run = short(tmp_path, train={"on_nan": what})
    with open_run(run) as reader:
        losses = reader.table("iterations")["loss"]
        assert (reader.status, len(losses)) == ("finished", 6)
        assert np.isnan(losses[2])
        assert np.isfinite(losses[3:]).all() == (what == "skip")
        assert next(e.iteration for e in reader.events() if e.kind == "nonfinite") == 2


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    healthy, calls = MoCoV3.loss, iter(range(100))

    def loss(self: MoCoV3, *features: list[torch.Tensor]) -> torch.Tensor:
        return healthy(self, *features) * (float("nan") if next(calls) == 3 else 1.0)

    monkeypatch.setattr(MoCoV3, "loss", loss)
    run = short(tmp_path, train={"on_nan": "continue", "checkpoint_every": 2})
    assert [p.name for p in run.glob("checkpoints/*")] == ["iteration-000002.pt"]
    with open_run(run) as reader:
        assert [e.iteration for e in reader.events() if e.kind == "checkpoint-failed"] == [4, 6]
        assert [e.iteration for e in reader.events() if e.kind == "nonfinite"] == [3]  # a stretch is one event


def test_a_gradient_that_is_not_finite_is_skipped_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stabilitylab.train.trainer import CutStep

    step, calls = CutStep.__call__, iter(range(100))

    def spoiled(self: CutStep, *args: object) -> torch.Tensor:
        loss = step(self, *args)  # type: ignore[arg-type]
        if next(calls) == 2:
            next(p for p in self.method.parameters() if p.grad is not None).grad[:] = float("nan")  # type: ignore[index]
        return loss

    monkeypatch.setattr(CutStep, "__call__", spoiled)
    run = short(tmp_path, train={"on_nan": "skip"})
    with open_run(run) as reader:
        assert np.isfinite(reader.table("iterations")["loss"]).all()
        assert [(e.iteration, e.detail) for e in reader.events() if e.kind == "nonfinite"] == [
            (2, "a gradient is not finite; the update was skipped")
        ]


def test_every_update_has_its_size_in_the_store(tmp_path: Path) -> None:
    """The last iteration's, and one that a checkpoint comes after, too."""
    run = short(
        tmp_path, train={"checkpoint_every": 2}, record={"log_grads": True, "signals": ["grad_norm", "update_ratio"]}
    )
    with open_run(run) as reader:
        for iteration, ratio in reader.layer_series("update_ratio").values():
            assert iteration.tolist() == list(range(6))
            assert (ratio[1:] > 0).all()


@pytest.mark.parametrize("log_grads", [True, False])
def test_skipped_updates_are_events_with_and_without_recorded_gradients(
    log_grads: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: scaler(device, 2.0**40, enabled=enabled))
    run = short(tmp_path, train={"amp": "fp16"}, record={"log_grads": log_grads, "every": 2})
    with open_run(run) as reader:
        skipped = [e.iteration for e in reader.events() if e.kind == "amp-skip"]
        assert skipped[:3] == [0, 1, 2]  # float16 ends at 2^16: the scale must come down first
        for iteration, _ in reader.layer_series().values():
            assert set(iteration.tolist()) == {0, 2, 4} - set(skipped)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_records_unscaled_norms(amp: str, tmp_path: Path) -> None:
    plain, mixed = short(tmp_path), short(tmp_path, train={"amp": amp})
    with open_run(plain) as a, open_run(mixed) as b:
        skipped = {e.iteration for e in b.events() if e.kind == "amp-skip"}
        kept = [t for t in range(6) if t not in skipped][:1]
        for layer, (iteration, norms) in b.layer_series().items():
            assert np.isfinite(norms).all()
            assert set(iteration.tolist()).isdisjoint(skipped)
            where = iteration.tolist().index(kept[0])
            np.testing.assert_allclose(norms[where], a.layer_series()[layer][1][kept[0]], rtol=0.2)


def test_micro_batches_through_the_trainer(tmp_path: Path) -> None:
    whole, chunks = short(tmp_path), short(tmp_path, train={"micro_batch": 5})
    with open_run(whole) as a, open_run(chunks) as b:
        losses = [reader.table("iterations")["loss"][:3] for reader in (a, b)]
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_swav_trains_with_local_crops(tmp_path: Path) -> None:
    run = short(tmp_path, method={"name": "swav"}, data={"local_crops": 2, "local_crop": [0.2, 0.4]})
    with open_run(run) as reader:
        assert np.isfinite(reader.table("iterations")["loss"]).all()
        assert "prototypes" in [row.name for row in reader.layers()]


@pytest.mark.slow
def test_compiled_is_the_same_mathematics(tmp_path: Path) -> None:
    plain, compiled = short(tmp_path), short(tmp_path, train={"compile": True})
    with open_run(plain) as a, open_run(compiled) as b:
        losses = [reader.table("iterations")["loss"][:3] for reader in (a, b)]
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
        assert [row.name for row in a.layers()] == [row.name for row in b.layers()]
