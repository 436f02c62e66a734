"""Progress lines when standard error is not a terminal."""

from __future__ import annotations

import pytest

from stabilitylab.cli import progress as module
from stabilitylab.cli.progress import TrainingProgress
from stabilitylab.train.trainer import Progress


def test_reports_that_arrive_together_show_no_speed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 1e-4, 10.0, 30.0, 300.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    shown = TrainingProgress()
    shown.update(Progress(0, 40, None, None), "quick")
    shown.update(Progress(40, 40, 4.5, 0.8), "quick")
    shown.update(Progress(0, 1000, None, None), "slow")
    shown.update(Progress(100, 1000, 4.5, None), "slow")
    shown.update(Progress(1000, 1000, 4.5, None), "slow")
    assert capsys.readouterr().err.splitlines() == [
        "quick 40/40  loss 4.500  kNN 0.800",
        "slow 100/1000  loss 4.500  5.0 it/s  3 min left",
        "slow 1000/1000  loss 4.500  3.4 it/s",
    ]
