"""A signal is declared once: negative values, state, other packages and older stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stabilitylab
from stabilitylab.errors import ConfigError, StoreError
from stabilitylab.recording.measurement import Measured, Measurement, Step
from stabilitylab.signals import BUILT_IN, SIGNALS, Signal
from stabilitylab.store.export import export_run
from stabilitylab.store.reader import open_run


class LastChange(Measurement):
    """Change of the gradient's first entry since the last step: negative as often as not, missing at first."""

    def __init__(self) -> None:
        self.previous: Tensor | None = None

    def measure(self, step: Step) -> Measured:
        first = torch.stack([g.flatten()[0] for g in step.grads])
        values, measured = step.nothing
        if self.previous is not None:
            values, measured = first - self.previous, step.chosen.seen
        self.previous = first
        return Measured(values, measured)


@pytest.fixture
def last_change() -> Iterator[str]:
    SIGNALS.add("last_change", Signal(name="last_change", help="", low=-float("inf"), measure=LastChange))
    yield "last_change"
    del SIGNALS._entries["last_change"]


GRADIENTS = [3.0, -1.0, -1.5, float("nan"), 2.0]


def record_changes(folder: Path, *, run: str = "changes", close: bool = True, **options: int) -> None:
    """Two layers; the gradient of the first is GRADIENTS, of the second 1 at every iteration."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    with stabilitylab.record(model, run=run, runs_dir=folder, signals=("grad_norm", "last_change"), **options) as rec:
        for gradient in GRADIENTS:
            model[0].weight.grad, model[1].weight.grad = torch.full((1, 1), gradient), torch.ones(1, 1)
            rec.step()


def test_a_signal_may_be_negative_and_keeps_its_own_state(tmp_path: Path, last_change: str) -> None:
    record_changes(tmp_path)
    with open_run(tmp_path / "changes") as run:
        iteration, value = run.layer_series(last_change)[0]
        np.testing.assert_array_equal(iteration, [1, 2, 3, 4])
        np.testing.assert_array_equal(value, [-4, -0.5, np.nan, np.nan])
        assert run.layer_series(last_change)[1][1].tolist() == [0, 0, 0, 0]
        assert run.measured_signals() == ["grad_norm", last_change]
    files = export_run(tmp_path / "changes", tmp_path / "out")
    stored = next(f for f in files if f.stem == "layer_stats")
    exported = duckdb.read_parquet(str(stored)).project(last_change).fetchall()[:3]
    assert exported == [(None,), (-4.0,), (-0.5,)]


def test_a_column_stays_where_its_package_is_not_installed(tmp_path: Path, last_change: str) -> None:
    record_changes(tmp_path)
    declared = SIGNALS._entries.pop(last_change)
    try:
        with open_run(tmp_path / "changes") as run:
            assert run.layer_series(last_change)[0][1][0] == -4
            with pytest.raises(StoreError, match=r"no signal 'lost'; the signals are grad_norm, .*last_change"):
                run.layer_series("lost")
        model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
        with stabilitylab.record(model, run="changes", runs_dir=tmp_path, resume=3) as rec:  # segments without it
            model[0].weight.grad = torch.ones(1, 1)
            rec.step()
        with open_run(tmp_path / "changes") as run:
            assert run.layer_series(last_change)[0][0].tolist() == [1, 2]
            assert run.layer_series("grad_norm")[0][0].tolist() == [0, 1, 2, 3]
    finally:
        SIGNALS._entries[last_change] = declared


def earlier_schema(run_dir: Path) -> None:
    """As if written before these columns were added."""
    with duckdb.connect(str(run_dir / "run.duckdb")) as con:
        for name in ("attention_max", "nonfinite"):
            con.execute(f"ALTER TABLE layer_stats DROP COLUMN {name}")


def test_a_store_of_an_earlier_schema_opens_and_can_be_resumed(tmp_path: Path) -> None:
    model = nn.Linear(2, 1, bias=False)
    for resume in (False, True):
        options = {"signals": ("grad_norm", "nonfinite")} if resume else {}
        with stabilitylab.record(model, run="old", runs_dir=tmp_path, resume=resume, **options) as rec:
            model(torch.ones(1, 2)).sum().backward()
            rec.step()
        if not resume:
            earlier_schema(tmp_path / "old")
            with open_run(tmp_path / "old") as run:
                assert run.measured_signals() == ["grad_norm", "grad_max"]
                assert run.layer_series("nonfinite") == {}
                assert run.query("SELECT nonfinite FROM layer_stats").fetchall() == [(None,)]
                assert run.verify() == []
    with open_run(tmp_path / "old") as run:
        assert [iteration.tolist() for iteration, _ in run.layer_series("nonfinite").values()] == [[1]]
        assert [iteration.tolist() for iteration, _ in run.layer_series("grad_norm").values()] == [[0, 1]]


def test_segments_of_an_earlier_schema_are_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stabilitylab.store import schema
    from stabilitylab.store.writer import LayerRow, RunWriter

    columns = schema.TABLES["layer_stats"]
    monkeypatch.setitem(schema.TABLES, "layer_stats", columns[:4])  # grad_norm and grad_max alone
    writer = RunWriter.create(tmp_path / "old", config={}, meta={}, layers=[LayerRow(0, "a", 0, 1)])
    writer.append("layer_stats", {"iteration": [0, 1], "layer_id": [0, 0], "grad_norm": [1.0, 2.0]})
    writer.publish(wait=True)
    monkeypatch.setitem(schema.TABLES, "layer_stats", columns)
    with open_run(tmp_path / "old") as run:  # still running
        assert run.layer_series("grad_norm")[0][1].tolist() == [1, 2]
        assert run.layer_series("weight_norm") == {}
    writer.close()
    with open_run(tmp_path / "old") as run:
        assert run.layer_series("grad_norm")[0][1].tolist() == [1, 2]
        assert run.layer_series("weight_norm") == {}


def test_declarations_are_checked() -> None:
    for name in ("Norm", "grad norm", "layer_id", "1st", ""):
        with pytest.raises(ValueError, match="lower-case"):
            Signal(name=name, help="")
    with pytest.raises(ValueError, match="not below"):
        Signal(name="x", help="", low=1, high=1)
    with pytest.raises(ConfigError, match="'grad_norm' already exists"):
        SIGNALS.add("grad_norm", Signal(name="grad_norm", help="", measure=lambda step: step.nothing))
    assert all(signal.help and not signal.help.endswith(".") for signal in SIGNALS.values())


def test_every_declared_signal_is_measured_within_its_range() -> None:
    from stabilitylab.config import ModelConfig
    from stabilitylab.models.layers import group_layers
    from stabilitylab.models.vit import build_vit
    from stabilitylab.recording.recorder import Recorder
    from tests.recording.test_recorder import MemorySink

    torch.manual_seed(0)
    model = build_vit(ModelConfig(img_size=8, embed_dim=16, depth=2, num_heads=2), channels=3)
    optimizer = torch.optim.AdamW(model.parameters())
    sink = MemorySink()
    layers = group_layers(model)
    recorder = Recorder(layers, sink, signals=tuple(SIGNALS), model=model, optimizer=optimizer)
    for t in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 8, 8)).square().sum().backward()
        recorder.step(t)
        optimizer.step()
    recorder.close()
    for name, signal in SIGNALS.items():
        values = sink.column("layer_stats", name).compressed()
        assert len(values), name
        assert ((values >= signal.low) & (values <= signal.high)).all(), name


def test_the_documentation_lists_every_signal() -> None:
    page = (Path(__file__).parents[2] / "docs" / "attach.md").read_text(encoding="utf-8")
    for name in BUILT_IN:
        assert f"| `{name}` | {SIGNALS[name].help} |" in page
