"""Branches: one state, two futures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stabilitylab.cause.branch import branch_run
from stabilitylab.config import resolve
from stabilitylab.errors import ConfigError
from stabilitylab.store.reader import open_run
from stabilitylab.studies import train_run
from stabilitylab.studies.futures import draw_futures
from stabilitylab.train.checkpoint import checkpoints, iteration_of, load_checkpoint
from stabilitylab.train.trainer import Progress


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("parent"), checkpoint_every=5, checkpoint_keep=9)


def trained(root: Path, **train: Any) -> Path:
    tiny = {
        "model": {"embed_dim": 16, "depth": 1, "num_heads": 2},
        "method": {"hidden_dim": 16, "out_dim": 8},
        "optim": {"warmup_iterations": 2},
        "train": {"iterations": 15, "batch_size": 32, "device": "cpu", **train},
        "record": {"log_grads": True},
        "eval": {"knn_every": 3},
    }
    return train_run(resolve(tiny), root, "run").path


def series(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    with open_run(path) as reader:
        names = {layer.layer_id: layer.name for layer in reader.layers()}
        return {names[layer]: found for layer, found in reader.layer_series().items()}


def test_the_branch_without_a_mitigation_is_the_run_itself_to_the_bit(parent: Path, tmp_path: Path) -> None:
    was, would = branch_run(parent, 12, ("frozen-patch",), tmp_path)
    whole, again = series(parent), series(was)
    assert whole.keys() == again.keys()
    for layer, (iteration, norm) in whole.items():
        np.testing.assert_array_equal(again[layer][0], iteration)
        np.testing.assert_array_equal(again[layer][1], norm)
    ends = [load_checkpoint(path / "checkpoints")["method"] for path in (parent, was)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    with open_run(was) as reader, open_run(parent) as before:
        assert reader.meta["branched_from"] == "run"
        assert reader.meta["branched_at"] == "10"  # the last checkpoint before 12
        assert reader.status == "finished"
        assert reader.verify() == []
        np.testing.assert_array_equal(reader.evals()["knn_top1"]["value"], before.evals()["knn_top1"]["value"])
    assert (was.name, would.name) == ("run-at10-s0-as-was", "run-at10-s0-frozen-patch")


def test_the_mitigated_future_leaves_the_same_state(parent: Path, tmp_path: Path) -> None:
    _, would = branch_run(parent, 10, ("frozen-patch",), tmp_path)
    start = torch.load(parent / "checkpoints" / "iteration-000010.pt", weights_only=True)["method"]
    end = load_checkpoint(would / "checkpoints")["method"]
    assert torch.equal(end["base_encoder.patch_embed.proj.weight"], start["base_encoder.patch_embed.proj.weight"])
    assert not torch.equal(end["projector.0.weight"], start["projector.0.weight"])
    whole, branch = series(parent), series(would)
    for layer in branch.keys() - {"patch_embed"}:
        # The first gradient after the branch is taken at the same weights, from the same batch.
        np.testing.assert_array_equal(branch[layer][1][:11], whole[layer][1][:11])
        assert not np.array_equal(branch[layer][1][12:], whole[layer][1][12:])
    assert branch["patch_embed"][0].tolist() == list(range(10))  # its past; no gradient since
    with open_run(would) as reader:
        assert reader.config["mitigation"] == ["frozen-patch"]
        told = [(e.iteration, e.detail) for e in reader.events() if e.kind == "mitigation"]
        assert told == [(10, "frozen-patch")]


def test_adams_memory_comes_along_parameter_by_parameter(parent: Path) -> None:
    from stabilitylab.config import from_dict, read_toml
    from stabilitylab.train.trainer import Trainer

    config = from_dict(read_toml(parent / "config.toml"))
    state = load_checkpoint(parent / "checkpoints", 10)
    whole, branch = Trainer(config), Trainer(config.model_copy(update={"mitigation": ("frozen-patch", "stable-adamw")}))
    whole.restore(state)
    branch.restore(state, whole.trained_names())
    mine, theirs = (dict(t.method.named_parameters()) for t in (branch, whole))
    for name in branch.trained_names():
        for key in ("exp_avg", "exp_avg_sq", "step"):
            ours = branch.optimizer.state[mine[name]][key]
            assert torch.equal(torch.as_tensor(ours), torch.as_tensor(whole.optimizer.state[theirs[name]][key])), name
    assert len(branch.trained_names()) == len(whole.trained_names()) - 2


def test_more_seeds_see_other_batches_from_the_same_state(parent: Path, tmp_path: Path) -> None:
    paths = branch_run(parent, 10, ("clip-global:0.1",), tmp_path, num_seeds=2, until=13)
    assert [path.name.split("-")[2] for path in paths] == ["s0", "s0", "s1", "s1"]
    found = [series(path)["projector"][1] for path in paths]
    assert found[0][10] == found[1][10]
    assert found[2][10] == found[3][10]
    assert found[0][10] != found[2][10]
    assert [len(norms) for norms in found] == [13] * 4
    draw_futures(paths, tmp_path / "futures.svg")
    drawn = (tmp_path / "futures.svg").read_text()
    assert drawn.count("<path") > 8


def test_both_futures_start_from_the_same_optimizer_state(parent: Path, tmp_path: Path) -> None:
    """A mitigation that never acts changes nothing, bit for bit; so does training another future first."""
    was, would = branch_run(parent, 5, ("clip-global:1e9",), tmp_path)
    before, after = series(was), series(would)
    assert before.keys() == after.keys()
    for layer, (_, norm) in before.items():
        np.testing.assert_array_equal(after[layer][1], norm)


@pytest.mark.parametrize(
    ("at", "mitigation", "message"),
    [
        (
            4,
            "frozen-patch",
            r"no checkpoint at or before iteration 4 in .* \(available: 5, 10, 15\); train with --keep",
        ),
        (99, "frozen-patch", "run run ends at iteration 15: there is nothing left to train"),
        (10, "conv-stem", "the checkpoint belongs to another architecture"),
        (10, "beta2:2", "optim.beta2 = 2.0: input should be less than 1"),
    ],
)
def test_what_cannot_be_branched_is_refused_before_anything_is_trained(
    at: int, mitigation: str, message: str, parent: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        branch_run(parent, at, (mitigation,), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_branch_is_never_overwritten(parent: Path, tmp_path: Path) -> None:
    (tmp_path / "run-at10-s0-frozen-patch").mkdir()
    (tmp_path / "run-at10-s0-frozen-patch" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"branch run-at10-s0-frozen-patch already exists in .*; move it away"):
        branch_run(parent, 10, ("frozen-patch",), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run-at10-s0-frozen-patch"]


def test_the_same_call_after_a_kill_completes_the_branches(parent: Path, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def die_in_the_second(name: str, progress: Progress) -> None:
        if name.endswith("frozen-patch") and progress.iteration >= 12:
            raise Killed

    with pytest.raises(Killed):
        branch_run(parent, 10, ("frozen-patch",), tmp_path, progress=die_in_the_second)
    trained: list[str] = []
    first, second = branch_run(parent, 10, ("frozen-patch",), tmp_path, progress=lambda name, _: trained.append(name))
    assert set(trained) == {second.name}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        first.name, second.name, f"{second.name}-killed-1",
    ]  # fmt: skip
    for path in (first, second):
        with open_run(path) as reader:
            assert (reader.status, reader.num_iterations) == ("finished", 15)
    with pytest.raises(ConfigError, match="already exists"):
        branch_run(parent, 10, ("frozen-patch",), tmp_path)
    with pytest.raises(ConfigError, match="already exists"):
        branch_run(parent, 10, ("frozen-patch",), tmp_path, until=14)


def test_checkpoints_before_spikes_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stabilitylab.studies import running

    seen = []
    monkeypatch.setattr(running, "before_spikes", lambda run_dir: seen.append(run_dir) or {4})
    run = trained(tmp_path, checkpoint_every=2, checkpoint_keep=1, keep_before_spikes=True)
    assert [iteration_of(path) for path in checkpoints(run / "checkpoints")] == [15, 4]
    assert set(seen) == {run}


def test_the_last_checkpoint_before_each_spike_is_found(tmp_path: Path) -> None:
    from stabilitylab.store.location import claim_run
    from stabilitylab.store.writer import LayerRow, RunWriter
    from stabilitylab.studies.running import before_spikes

    rng = np.random.default_rng(0)
    norm = np.exp(0.1 * rng.standard_normal(600))
    norm[[310, 455]] *= 40
    norm[196:208] *= np.exp(np.linspace(0.5, 3.7, 12))  # the checkpoint at 200 is not before this spike
    norm[208:212] *= 40
    run = claim_run(tmp_path, "planted")
    layers = [LayerRow(0, "patch_embed", 0, 1, True)]
    with RunWriter.create(run, config={}, meta={}, layers=layers) as writer:
        writer.append("layer_stats", {"iteration": np.arange(600), "layer_id": 0, "grad_norm": norm})
    (run / "checkpoints").mkdir()
    for iteration in range(100, 600, 100):
        (run / "checkpoints" / f"iteration-{iteration:06d}.pt").touch()
    # Of the last 200 iterations it is not known yet: the checkpoints that may turn out to precede a spike stay.
    assert before_spikes(run) == {100, 300, 400, 500}


def test_keeping_before_spikes_needs_gradients_and_checkpoints() -> None:
    with pytest.raises(ConfigError, match=r"train\.keep_before_spikes needs record\.log_grads"):
        resolve({"train": {"keep_before_spikes": True}})
