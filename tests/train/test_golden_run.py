"""Twenty iterations on the CPU against a committed trace, and the content of the run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stabilitylab.config import Config, resolve
from stabilitylab.run.series import load_series
from stabilitylab.store.reader import open_run
from stabilitylab.studies import train_run

GOLDEN = Path(__file__).parent / "golden_run.json"


def golden_config(*mitigation: str) -> Config:
    return resolve(
        {
            "train": {"iterations": 20, "batch_size": 64, "device": "cpu"},
            # Low, so that training amplifies little of the last bits in which CPUs differ.
            "optim": {"warmup_iterations": 5, "base_lr": 5e-4},
            "record": {"log_grads": True, "flush_every": 7},
            "eval": {"knn_every": 10},
            "mitigation": list(mitigation),
        }
    )


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run(golden_config(), tmp_path_factory.mktemp("learned")).path


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run(golden_config("frozen-patch"), tmp_path_factory.mktemp("frozen")).path


def trace(run: Path) -> dict[str, list[float]]:
    with open_run(run) as reader:
        series = load_series(reader)
        found = {f"grad_norm {layer.name}": layer.grad_norm.tolist() for layer in series.layers if layer.trainable}
        found["loss"] = reader.table("iterations")["loss"].tolist()
        found["knn_top1"] = series.evals["knn_top1"].value.tolist()
    return found


def test_the_golden_run(learned: Path) -> None:
    """To renew the trace after a change that is meant: ``python -m tests.train.test_golden_run``."""
    expected = json.loads(GOLDEN.read_text())
    got = trace(learned)
    assert got.keys() == expected.keys()
    # CPUs differ in the last bits and Adam amplifies that, first in the gradients (seen: 0.1% at iteration 3,
    # 30% in the tokens' at 15; 0.3% in the loss). A wrong formula is outside from the first iterations on.
    np.testing.assert_allclose(got["loss"], expected["loss"], rtol=1e-2)
    np.testing.assert_allclose(got["knn_top1"], expected["knn_top1"], atol=0.03)
    for name in expected.keys() - {"loss", "knn_top1"}:
        np.testing.assert_allclose(got[name][:4], expected[name][:4], rtol=1e-2, err_msg=name)
        assert abs(np.log(np.divide(got[name], expected[name])).mean()) < 0.15, name


def test_the_same_seed_gives_the_same_run_to_the_bit(learned: Path, tmp_path: Path) -> None:
    assert trace(train_run(golden_config(), tmp_path).path) == trace(learned)


def test_the_store_has_one_row_per_layer_and_iteration(learned: Path) -> None:
    with open_run(learned) as reader:
        assert reader.status == "finished"
        assert reader.verify() == []
        rows = reader.query("select layer_id, iteration, count(*) from layer_stats group by all").fetchall()
        assert sorted(rows) == [(layer, t, 1) for layer in range(9) for t in range(20)]
        assert reader.table("iterations")["iteration"].tolist() == list(range(20))
        assert reader.evals()["knn_top1"]["iteration"].tolist() == [0, 10, 20]
        assert set(reader.evals()["knn_top1"]["num_samples"].tolist()) == {397}


def test_frozen_patch_leaves_the_projection_bit_identical_and_unrecorded(frozen: Path) -> None:
    from stabilitylab.train.trainer import Trainer

    config = golden_config("frozen-patch")
    start = {k: v.clone() for k, v in Trainer(config).method.state_dict().items()}
    end = torch.load(frozen / "checkpoints" / "iteration-000020.pt", weights_only=True)["method"]
    projection = [name for name in start if "patch_embed.proj" in name]
    assert len(projection) == 4  # weight and bias, of the base and of the momentum encoder
    assert all(torch.equal(start[name], end[name]) for name in projection)
    assert not torch.equal(start["base_encoder.blocks.0.mlp.fc1.weight"], end["base_encoder.blocks.0.mlp.fc1.weight"])
    with open_run(frozen) as reader:
        layers = {row.name: row for row in reader.layers()}
        assert layers["patch_embed"].trainable is False
        assert layers["patch_embed"].layer_id not in reader.layer_series()
        assert next((e.iteration, e.kind, e.detail) for e in reader.events()) == (0, "mitigation", "frozen-patch")


def test_runs_that_share_a_seed_share_initialisation_and_first_loss(learned: Path, frozen: Path) -> None:
    one, other = trace(learned)["loss"], trace(frozen)["loss"]
    # The learning rate of the first update is 0, so the first two losses are those of the same weights.
    assert one[:2] == other[:2]
    assert one[5:] != other[5:]


def test_a_nan_loss_stops_the_run_and_closes_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stabilitylab.methods.mocov3 import MoCoV3

    healthy = MoCoV3.loss
    calls = 0

    def loss(self: MoCoV3, *features: list[torch.Tensor]) -> torch.Tensor:
        nonlocal calls
        calls += 1
        value = healthy(self, *features)
        return value * float("nan") if calls == 13 else value

    monkeypatch.setattr(MoCoV3, "loss", loss)
    config = golden_config()
    config = config.model_copy(update={"train": config.train.model_copy(update={"checkpoint_every": 5})})
    run = train_run(config, tmp_path).path
    with open_run(run) as reader:
        assert reader.status == "stopped"
        assert ("nonfinite", "loss is nan") in [(e.kind, e.detail) for e in reader.events()]
        assert reader.num_iterations == 13
        assert np.isnan(reader.table("iterations")["loss"][12])
    # What was poisoned is not kept: the run can go on from where it was whole.
    kept = torch.load(max(run.glob("checkpoints/*.pt")), weights_only=True)
    assert kept["iteration"] == 10
    assert all(x.isfinite().all() for x in kept["method"].values())


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text(json.dumps(trace(train_run(golden_config(), Path(folder)).path), indent=1) + "\n")
