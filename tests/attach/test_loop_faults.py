"""Loops that go wrong, or are not what one expects: nothing is lost, nothing stays, every remedy is named."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stabilitylab
from stabilitylab import RecordError
from stabilitylab.errors import RunExists, RunNotFound
from stabilitylab.store.reader import open_run
from tests.attach.test_loop import Net, batch, series


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def iterate(model: nn.Module, rec: Any, steps: int, **numbers: Any) -> None:
    for i in range(steps):
        model.zero_grad()
        model(batch(i)).square().mean().backward()
        rec.step(**numbers)


def script(tmp_path: Path, body: str, limit: str = "") -> subprocess.CompletedProcess[str]:
    path = tmp_path / "script.py"
    path.write_text("import torch, stabilitylab\nfrom torch import nn\n" + textwrap.dedent(body))
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "STABLAB_RUNS": str(tmp_path)}
    command = f"{limit} {sys.executable} {path}"
    return subprocess.run(
        command, shell=True, env=environment, capture_output=True, text=True, timeout=250, check=False
    )


@pytest.mark.parametrize(("end", "status"), [("", "stopped"), ("raise ZeroDivisionError", "crashed")])
def test_a_script_without_with_loses_no_row(end: str, status: str, tmp_path: Path) -> None:
    body = """
    model = nn.Linear(2, 2)
    rec = stabilitylab.record(model, run="r")
    for i in range(50):
        model.zero_grad()
        model(torch.ones(1, 2)).square().mean().backward()
        rec.step()
    """
    done = script(tmp_path, body + end)
    assert bool(done.returncode) == bool(end), done.stderr
    with open_run(tmp_path / "r") as reader:
        assert (reader.status, reader.num_iterations) == (status, 50)
        assert reader.verify() == []


def test_a_recorder_that_is_forgotten_writes_what_it_has(tmp_path: Path) -> None:
    def train() -> None:
        model = Net()
        iterate(model, stabilitylab.record(model, run="r", runs_dir=tmp_path), 5)

    train()
    with open_run(tmp_path / "r") as reader:
        assert (reader.status, reader.num_iterations) == ("stopped", 5)


def test_a_loss_that_is_no_number_is_refused_before_anything_is_recorded(tmp_path: Path) -> None:
    model = Net()
    with stabilitylab.record(model, run="r", runs_dir=tmp_path) as rec:
        iterate(model, rec, 1, loss=torch.ones(1, 1))
        with pytest.raises(RecordError, match=r"loss must be one number, not a tensor of shape \(2,\)"):
            iterate(model, rec, 1, loss=torch.ones(2))
        iterate(model, rec, 1, loss=2.0)
    with open_run(tmp_path / "r") as reader:
        assert reader.table("iterations")["loss"].tolist() == [1, 2]
        assert reader.verify() == []


def test_the_loops_own_error_is_the_one_that_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net()

    def loop() -> None:
        signals = ("grad_norm", "activation_max")
        with stabilitylab.record(model, run="r", runs_dir=tmp_path, signals=signals) as rec:
            iterate(model, rec, 1)
            monkeypatch.setattr(rec._recorder, "flush", lambda **_: 1 / 0)
            raise KeyError("mine")

    with pytest.warns(UserWarning, match="last rows of r are lost"), pytest.raises(KeyError, match="mine"):
        loop()
    assert hooks_of(model) == 0
    with open_run(tmp_path / "r") as reader:
        assert reader.status == "crashed"


def test_what_cannot_start_leaves_no_hook_and_no_folder(tmp_path: Path) -> None:
    class Odd(Net):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.Module()
            self.attn.num_heads, self.attn.qkv = 2, None  # as timm's rotary attention without a fused qkv
            self.attn.proj = nn.Linear(2, 2)

    model = Odd()
    (tmp_path / "taken").mkdir()
    with pytest.raises(RunExists, match="taken"):
        stabilitylab.record(model, run="taken", runs_dir=tmp_path, signals=("grad_norm", "activation_max"))
    with pytest.raises(RecordError, match="attention_max: the model has no attention with a fused qkv"):
        stabilitylab.record(model, run="odd", runs_dir=tmp_path, signals=("attention_max",))
    with pytest.raises(RecordError, match="activation_max: the model has no module with the name of a layer"):
        stabilitylab.record(model, run="o", runs_dir=tmp_path, granularity="param", signals=("activation_max",))
    with pytest.raises(RecordError, match="config= cannot be saved as JSON"):
        stabilitylab.record(model, run="keys", runs_dir=tmp_path, config={(1, 2): 3})  # type: ignore[dict-item]
    assert hooks_of(model) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every= and flush_every= must be at least 1"),
        ({"flush_every": 0}, "every= and flush_every= must be at least 1"),
        ({"depth": ["0", "0", "1"]}, "depth= must name every layer once; check '0'"),
        ({"resume": True}, "resume= needs the name of the run"),
        ({"resume": -1, "run": "r"}, "must be True or the iteration to continue at"),
        ({"signals": ("adam_rms",)}, "adam_rms needs the second moment of Adam, which SGD does not have"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(RecordError, match=message):
        stabilitylab.record(model, torch.optim.SGD(model.parameters(), lr=1.0), runs_dir=tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_a_wrong_end_is_refused_and_the_right_one_still_works(tmp_path: Path) -> None:
    rec = stabilitylab.record(Net(), run="r", runs_dir=tmp_path)
    with pytest.raises(RecordError, match="finished, stopped or crashed, not 'done'"):
        rec.close("done")
    rec.close("stopped")
    with pytest.raises(RunNotFound, match="runs_dir="):
        stabilitylab.record(Net(), run="other", runs_dir=tmp_path / "empty", resume=True)


def test_a_step_in_which_no_recorded_layer_got_a_gradient(tmp_path: Path) -> None:
    model = nn.ModuleDict({"d": nn.Linear(2, 2), "g": nn.Linear(2, 2)})
    with stabilitylab.record(model, run="r", runs_dir=tmp_path, include="g*") as rec:
        for name in ("g", "d", "g"):
            model.zero_grad()
            model[name](torch.ones(1, 2)).sum().backward()
            rec.step()
        model.zero_grad()
        with pytest.raises(RecordError, match="found no gradient"):
            rec.step()
    with open_run(tmp_path / "r") as reader:
        assert reader.layer_series()[0][0].tolist() == [0, 2]
        assert reader.num_iterations == 3


def test_a_copy_of_the_model_keeps_no_hook_and_tells_nothing(tmp_path: Path) -> None:
    model = Net()
    with stabilitylab.record(model, run="r", runs_dir=tmp_path, signals=("grad_norm", "activation_max")) as rec:
        twin = copy.deepcopy(model)
        with torch.no_grad():
            twin.head.weight.fill_(1e6)
        twin(batch(0))
        assert hooks_of(twin) == 0
        iterate(model, rec, 2)
    assert (series(tmp_path / "r", "activation_max")["head"] < 100).all()


def test_a_model_whose_forward_pass_was_not_seen(tmp_path: Path) -> None:
    model = nn.ModuleDict({"b": nn.Linear(2, 2), "a": nn.Linear(2, 2)})
    model["b"](model["a"](torch.ones(1, 2))).sum().backward()
    with (
        pytest.warns(UserWarning, match="Set depth=, or record"),
        stabilitylab.record(model, run="r", runs_dir=tmp_path) as rec,
    ):
        rec.step()
    with open_run(tmp_path / "r") as reader:
        assert "order-unknown" in [event.kind for event in reader.events()]


def test_activations_of_tuples_and_attention_of_another_kind(tmp_path: Path) -> None:
    class Pair(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), None

    class Conv(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_heads, self.qkv = 1, nn.Conv2d(1, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.qkv(x)  # type: ignore[no-any-return]

    model = nn.ModuleDict({"pair": Pair(2, 2), "conv": Conv()})
    with stabilitylab.record(model, run="r", runs_dir=tmp_path, signals=("grad_norm", "activation_max")) as rec:
        seen, _ = model["pair"](torch.ones(1, 2))
        (seen.sum() + model["conv"](torch.ones(1, 1, 2, 2)).sum()).backward()
        rec.step()
    assert series(tmp_path / "r", "activation_max")["pair"][0] == pytest.approx(seen.abs().max().item())
    with pytest.raises(RecordError, match="attention_max"):
        stabilitylab.record(model, run="c", runs_dir=tmp_path, signals=("attention_max",))


def test_resume_at_the_checkpoint_not_at_the_last_row(tmp_path: Path) -> None:
    model = Net()
    with stabilitylab.record(model, run="r", runs_dir=tmp_path) as rec:
        iterate(model, rec, 10, loss=1.0)
    with stabilitylab.record(model, run="r", runs_dir=tmp_path, resume=5) as rec:
        iterate(model, rec, 3, loss=2.0)
    with open_run(tmp_path / "r") as reader:
        assert reader.table("iterations")["loss"].tolist() == [1] * 5 + [2] * 3
        assert reader.verify() == []
    wider = Net()
    wider.head = nn.Linear(8, 3)
    with pytest.raises(RecordError, match="recorded with other layers"):
        stabilitylab.record(wider, run="r", runs_dir=tmp_path, resume=True)


def test_a_run_killed_before_its_first_flush_can_be_resumed(tmp_path: Path) -> None:
    body = """
    import os
    rec = stabilitylab.record(nn.Sequential(nn.Linear(6, 2), nn.Linear(2, 2)), run="s")
    os.kill(os.getpid(), 9)
    """
    assert script(tmp_path, body).returncode != 0
    model = nn.Sequential(nn.Linear(6, 2), nn.Linear(2, 2))
    with stabilitylab.record(model, run="s", runs_dir=tmp_path, resume=True) as rec:
        iterate(model, rec, 2)
    assert [len(values) for values in series(tmp_path / "s").values()] == [2, 2]


def test_the_epoch_is_a_column(tmp_path: Path) -> None:
    model = Net()
    with stabilitylab.record(model, run="r", runs_dir=tmp_path) as rec:
        iterate(model, rec, 2, epoch=0.5, other=3)
    with open_run(tmp_path / "r") as reader:
        assert reader.table("iterations")["epoch"].tolist() == [0.5, 0.5]
        assert set(reader.table("scalars")["name"]) == {"other"}


def test_a_loss_that_the_loop_changes_later_is_recorded_as_it_was(tmp_path: Path) -> None:
    model = Net()
    with stabilitylab.record(model, run="r", runs_dir=tmp_path) as rec:
        loss = torch.tensor(1.0)
        iterate(model, rec, 1, loss=loss)
        loss.mul_(100)
    with open_run(tmp_path / "r") as reader:
        assert reader.table("iterations")["loss"].tolist() == [1]


def test_a_compiled_model_over_several_steps(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain_model, model = Net(), Net()
    model.load_state_dict(plain_model.state_dict())
    compiled = torch.compile(model, backend="aot_eager")
    for name, trained in (("plain", plain_model), ("compiled", compiled)):
        with stabilitylab.record(trained, run=name, runs_dir=tmp_path) as rec:  # type: ignore[arg-type]
            iterate(trained, rec, 4)  # type: ignore[arg-type]
    for name, values in series(tmp_path / "plain").items():
        np.testing.assert_allclose(series(tmp_path / "compiled")[name], values, rtol=1e-5)


def test_a_thousand_tensors_under_a_hundred_file_handles(tmp_path: Path) -> None:
    body = """
    model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(2, 2) for _ in range(500)])})
    with stabilitylab.record(model, run="r", granularity="param", flush_every=2) as rec:
        for i in range(12):
            model.zero_grad()
            sum(block(torch.ones(1, 2)).sum() for block in model["blocks"]).backward()
            rec.step(loss=float(i))
    """
    done = script(tmp_path, body, limit="ulimit -n 100;")
    assert done.returncode == 0, done.stderr
    with open_run(tmp_path / "r") as reader:
        assert reader.verify() == []
        assert len(reader.table("layer_stats")["iteration"]) == 12_000
