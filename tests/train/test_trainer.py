"""What the loop does when something goes wrong, and options that change how a step is computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stabilitylab.config import resolve
from stabilitylab.experiments import train_run
from stabilitylab.methods.mocov3 import MoCoV3
from stabilitylab.store.reader import open_run


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
