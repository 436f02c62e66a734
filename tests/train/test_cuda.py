"""Training on a GPU: the same numbers as on the CPU in double precision, and what only a GPU can show."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stabilitylab.cause.replay import Replay
from stabilitylab.config import Config, resolve
from stabilitylab.data.views import Draws, augment, two_views
from stabilitylab.methods import METHODS
from stabilitylab.recording.recorder import Recorder
from stabilitylab.recording.sink import NullSink
from stabilitylab.store.reader import open_run
from stabilitylab.studies import plan as planning
from stabilitylab.studies import train_run
from stabilitylab.train.checkpoint import load_checkpoint
from stabilitylab.train.evaluate import knn_predict
from stabilitylab.train.mitigations import applied
from stabilitylab.train.trainer import Trainer
from tests.recording.test_recorder import MemorySink
from tests.train.in_double import build_in_double

pytestmark = pytest.mark.gpu

DEVICE = "cuda"


@pytest.fixture(autouse=True)
def settings_of_torch() -> Iterator[None]:
    """torch's settings are those of the start again after each test."""
    before = torch.backends.cudnn.benchmark
    yield
    torch.backends.cudnn.benchmark = before
    torch.use_deterministic_algorithms(False)
    for kernels in ("flash", "mem_efficient", "cudnn"):
        getattr(torch.backends.cuda, f"enable_{kernels}_sdp")(True)
    torch.cuda.set_sync_debug_mode("default")


def config(device: str = DEVICE, **sections: dict[str, Any]) -> Config:
    values: dict[str, dict[str, Any]] = {
        "model": {"embed_dim": 16, "depth": 2, "num_heads": 2},
        "train": {"iterations": 12, "batch_size": 32, "device": device},
        "record": {"log_grads": True, "signals": ["grad_norm", "grad_max", "weight_norm"]},
        "eval": {"knn_every": 0},
    }
    return resolve({name: values.get(name, {}) | sections.get(name, {}) for name in values.keys() | sections.keys()})


def steps(settings: Config, count: int = 4) -> tuple[list[float], np.ndarray]:
    """Losses, and norms (values, layers)."""
    trainer, sink = Trainer(settings), MemorySink()
    recorder = Recorder(trainer.layers(), sink, signals=settings.record.signals, optimizer=trainer.optimizer)
    trainer.method.train()
    views = trainer.batches.iterate(0, count)
    losses = [trainer.step(recorder, i, pair).item() for i, pair in enumerate(views)]
    recorder.close()
    return losses, np.array(sink.column("layer_stats", "grad_norm"))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("arch", ["vit_nano", "resnet18"])
def test_every_method_computes_what_it_does_on_the_cpu(method: str, arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Views, loss, gradients and updates in float64. Gradients of a ResNet differ by an order of sums and no more."""
    monkeypatch.setattr(applied, "build_method", build_in_double)
    sections = {"model": {"arch": arch, "img_size": 16}, "method": {"name": method}}
    if arch == "vit_nano":
        sections["model"] |= {"embed_dim": 16, "depth": 2, "num_heads": 2}
    found, expected = (
        steps(resolve({**sections, "train": {"iterations": 12, "batch_size": 32, "device": device}}))
        for device in (DEVICE, "cpu")
    )
    # Views are drawn on the CPU and computed on the device in float32.
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-4)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-2, atol=1e-6)


def test_views_are_those_of_the_cpu() -> None:
    images = torch.rand(16, 3, 40, 50, dtype=torch.float64)
    for view in two_views("photo", 0.08):
        one, other = (augment(images.to(d), view, 24, Draws(torch.Generator().manual_seed(3))) for d in (DEVICE, "cpu"))
        torch.testing.assert_close(one.cpu(), other, rtol=1e-9, atol=1e-9)


def test_knn_is_that_of_the_cpu() -> None:
    torch.manual_seed(0)
    bank, queries, labels = torch.randn(500, 16).double(), torch.randn(300, 16).double(), torch.randint(0, 10, (500,))
    options = {"k": 20, "temperature": 0.07, "num_classes": 10}
    found = knn_predict(bank.to(DEVICE), labels.to(DEVICE), queries.to(DEVICE), **options)
    assert found.tolist() == knn_predict(bank, labels, queries, **options).tolist()


@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("method", ["mocov3", "swav", "dino"])
def test_a_step_never_waits_for_the_device(amp: str, method: str) -> None:
    settings = config(train={"amp": amp}, method={"name": method})
    trainer = Trainer(settings)
    signals = ("grad_norm", "grad_max", "weight_norm", "nonfinite", "adam_rms", "update_ratio")
    recorder = Recorder(trainer.layers(), NullSink(), signals=signals, optimizer=trainer.optimizer)
    trainer.method.train()
    for iteration, views in enumerate(trainer.batches.iterate(0, 8)):
        if iteration == 3:  # what is constant is made by then
            torch.cuda.set_sync_debug_mode("error")
        trainer.step(recorder, iteration, views)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_records_nearly_the_gradients_of_float32(amp: str) -> None:
    """fp16: of the unscaled gradients. bfloat16 has 8 bits, and the gradient of the patches is a difference."""
    model = {"embed_dim": 32, "depth": 2, "num_heads": 2}
    plain, mixed = (steps(config(train={"amp": a}, model=model), 1) for a in ("off", amp))
    assert mixed[0][0] == pytest.approx(plain[0][0], rel=0.02)
    np.testing.assert_allclose(mixed[1], plain[1], rtol={"bf16": 0.4, "fp16": 0.1}[amp])


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_compiled_encoders_train_alike(amp: str) -> None:
    eager, compiled = (steps(config(train={"amp": amp, "compile": c})) for c in (False, True))
    np.testing.assert_allclose(compiled[0], eager[0], rtol=1e-3 if amp == "off" else 0.05)
    assert np.isfinite(compiled[1]).all()


@pytest.mark.parametrize("options", [{}, {"amp": "bf16"}, {"compile": True, "amp": "bf16"}])
def test_it_learns(options: dict[str, Any], tmp_path: Path) -> None:
    settings = resolve({"train": {"iterations": 250, "device": DEVICE, **options}, "eval": {"knn_every": 250}})
    with open_run(train_run(settings, tmp_path).path) as reader:
        untrained, trained = reader.evals()["knn_top1"]["value"]
    assert trained > untrained + 0.08


@pytest.mark.parametrize(
    ("deterministic", "options"),
    [
        (True, {}),
        (True, {"model": {"arch": "resnet18", "img_size": 16, "embed_dim": None, "depth": None, "num_heads": None}}),
        (True, {"method": {"name": "swav"}}),
        (True, {"train": {"amp": "bf16", "compile": True}}),
        (True, {"train": {"amp": "fp16"}}),
        (False, {}),
        (False, {"train": {"amp": "bf16"}}),
    ],
)
def test_a_resumed_run_is_the_straight_one(deterministic: bool, options: dict[str, Any], tmp_path: Path) -> None:
    """To the last bit, or else to rounding."""
    settings = config(**options | {"train": options.get("train", {}) | {"deterministic": deterministic}})
    losses: dict[int, list[float]] = {}
    for start, stop in ((0, 12), (0, 6), (6, 12)):
        trainer = Trainer(settings)
        if start:
            trainer.restore(load_checkpoint(tmp_path))
            assert trainer.start == start
        trainer.stop = stop
        sink = MemorySink()
        trainer.train(Recorder([], sink, log_grads=False), tmp_path)
        losses[stop] = [float(x) for x in sink.column("iterations", "loss")]
        if (start, stop) == (0, 12):
            straight = losses.pop(12)
            for path in tmp_path.iterdir():
                path.unlink()
    found = losses[6] + losses[12]
    if deterministic:
        assert found == straight
    else:
        np.testing.assert_allclose(found, straight, rtol=1e-3)


def test_any_iteration_replays_bit_for_bit(tmp_path: Path) -> None:
    train = {"iterations": 30, "checkpoint_every": 10, "checkpoint_keep": 5}
    run = train_run(config(train=train | {"deterministic": True}), tmp_path, "exact").path
    assert Replay(run).check(25).exact
    run = train_run(config(train=train), tmp_path, "near").path
    check = Replay(run).check(25)
    assert check.exact or "train.deterministic" in str(check)


def test_a_plan_measures_the_peak_of_memory() -> None:
    made = planning.plan(config())
    assert made.device.startswith("cuda")
    assert (
        made.weights + made.gradients + made.optimizer < made.peak <= torch.cuda.get_device_properties(0).total_memory
    )
    assert any("peak" in line for line in planning.lines(made))


def test_the_command_line_trains_there_and_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stabilitylab", "train", "--log-grads", "--iterations", "20", "--batch-size", "32"]
    command += ["--device", DEVICE, "--amp", "bf16", "--runs-dir", str(tmp_path), "--name", "there"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    with open_run(tmp_path / "there") as reader:
        assert reader.status == "finished"
        assert reader.num_iterations == 20
