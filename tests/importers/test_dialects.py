"""Tables in the dialects that spreadsheets, shells and other countries write, and steps that start again each epoch.

Every file holds the same 90 norms, with one of 40 at step 60, so the run must hold exactly these.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stabilitylab.importers.registry import import_log
from stabilitylab.run.catalog import open_run as open_handle
from stabilitylab.store.reader import open_run

COUNT = 90
NORM = np.round(1 + 0.3 * np.sin(np.arange(COUNT)), 5)
NORM[60] = 40.0
LOSS = np.round(3 - np.arange(COUNT) / 60, 4)

Write = Callable[[Path], object]


def table(separator: str = ",", header: str = "step,loss,grad_norm", cell: Callable[[float], str] = str) -> str:
    rows = [separator.join([str(t), cell(LOSS[t]), cell(NORM[t])]) for t in range(COUNT)]
    return "\n".join([header.replace(",", separator), *rows]) + "\n"


def comma(value: float) -> str:
    return str(value).replace(".", ",")


def held(path: Path, folder: Path) -> dict[int, float]:
    """iteration -> norm of the only layer of the imported run."""
    (made,) = import_log(folder / "runs", path)
    assert made.layers == ("global",), made
    with open_run(made.path) as reader:
        ((iterations, norms),) = reader.layer_series("grad_norm").values()
    return dict(zip(iterations.tolist(), norms.tolist(), strict=True))


def expected(first: int = 0) -> dict[int, float]:
    return {t + first: pytest.approx(NORM[t], rel=1e-6) for t in range(COUNT)}


DIALECTS: dict[str, Write] = {
    "semicolon.csv": lambda p: p.write_text(table(";")),
    "decimal_comma.csv": lambda p: p.write_text(table(";", cell=comma)),
    "quoted_decimal_comma.csv": lambda p: p.write_text(table(cell=lambda v: f'"{comma(v)}"')),
    "bar.csv": lambda p: p.write_text(table("|")),
    "tabs.tsv": lambda p: p.write_text(table("\t", cell=comma)),
    "blanks.txt": lambda p: p.write_text(table("   ")),
    "excel.csv": lambda p: p.write_bytes(("\ufeffsep=;\r\n" + table(";").replace("\n", "\r\n")).encode()),
    "utf16.csv": lambda p: p.write_bytes(table("\t").encode("utf-16")),
    "comment.csv": lambda p: p.write_text("# host: a\n# seed: 1\n" + table()),
    "numpy.txt": lambda p: p.write_text("# " + table(" ")),
    "units.csv": lambda p: p.write_text(table(header="step [#],loss (nats),grad_norm [L2]")),
    "packed.csv.gz": lambda p: p.write_bytes(gzip.compress(table().encode())),
    "packed.jsonl.gz": lambda p: p.write_bytes(gzip.compress(records())),
    "powershell.log": lambda p: p.write_bytes("".join(lines("step {t} loss {loss} norm {norm}")).encode("utf-16")),
}


def records() -> bytes:
    rows = [{"step": t, "loss": LOSS[t], "grad_norm": NORM[t]} for t in range(COUNT)]
    return "\n".join(json.dumps(row) for row in rows).encode()


def lines(pattern: str) -> list[str]:
    return [
        pattern.format(t=t, u=t + 1, epoch=t // 30, place=t % 30, later=t // 30 + 1, at=t % 30 + 1, loss=LOSS[t],
                       norm=NORM[t]) + "\n"
        for t in range(COUNT)
    ]  # fmt: skip


@pytest.mark.parametrize("name", DIALECTS)
def test_a_dialect_gives_the_same_norms(name: str, tmp_path: Path) -> None:
    DIALECTS[name](tmp_path / name)
    assert held(tmp_path / name, tmp_path) == expected()


def test_separators_of_thousands_and_percent_signs(tmp_path: Path) -> None:
    accuracy = [f"{50 + t / 2:.1f}%" for t in range(COUNT)]
    rows = [f'"{100 * t:,}","{1000 * NORM[t]:,.2f}",{accuracy[t]}' for t in range(COUNT)]
    (tmp_path / "log.csv").write_text("\n".join(["step,grad_norm,val_acc", *rows]))
    assert held(tmp_path / "log.csv", tmp_path) == {
        100 * t: pytest.approx(1000 * NORM[t], abs=0.01) for t in range(COUNT)
    }
    (run,) = (tmp_path / "runs").iterdir()
    with open_run(run) as reader:
        assert reader.evals()["val_acc"]["value"].tolist() == [50 + t / 2 for t in range(COUNT)]


IN_EPOCH: dict[str, list[str]] = {
    "wide.csv": ["epoch,step,loss,grad_norm\n", *lines("{epoch},{place},{loss},{norm}")],
    "long.csv": ["epoch,step,layer,norm\n", *lines("{epoch},{place},global,{norm}")],
    "pairs.jsonl": lines('{{"epoch": {epoch}, "step": {place}, "grad_norm": {norm}}}'),
    "words.log": lines("Epoch {epoch}, step {place}/30, loss: {loss}, grad norm: {norm}"),
    "bar.log": lines("Epoch {epoch}:  10%|# | {place}/30 [00:01<00:01, 9it/s, train_loss={loss}, grad_norm={norm}]"),
}
FROM_ONE: dict[str, list[str]] = {
    "mmdet.log": lines("2024-01-01 00:00:00,000 - mmdet - INFO - Epoch [{later}][{at}/30]\tlr: 1.0e-03, eta: 1:00:00, "
                       "loss: {loss}, grad_norm: {norm}"),
    "mmengine.log": lines("2024/01/01 00:00:00 - mmengine - INFO - Epoch(train)  [{later}][{at:>2d}/30]  lr: 1.0e-03  "
                          "eta: 1:00:00  grad_norm: {norm}  loss: {loss}"),
    "mmdet.log.json": ['{"env_info": "Linux", "seed": 0}\n',
                       *lines('{{"mode": "train", "epoch": {later}, "iter": {at}, "grad_norm": {norm}}}')],
}  # fmt: skip


@pytest.mark.parametrize("name", [*IN_EPOCH, *FROM_ONE])
def test_steps_that_start_again_in_every_epoch_are_counted_on(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("".join(IN_EPOCH.get(name) or FROM_ONE[name]))
    assert held(tmp_path / name, tmp_path) == expected(first=int(name in FROM_ONE))


def test_a_real_restart_is_not_taken_for_an_epoch(tmp_path: Path) -> None:
    """Crashed at 60, resumed from 40, while the epoch goes on from 1: rows 40 to 59 are superseded."""
    steps = [*range(60), *range(40, COUNT)]
    rows = [f"{t // 30},{t},{NORM[t] if place >= 60 or t < 40 else 99}" for place, t in enumerate(steps)]
    (tmp_path / "log.csv").write_text("\n".join(["epoch,step,grad_norm", *rows]))
    assert held(tmp_path / "log.csv", tmp_path) == expected()


def test_evaluations_of_mmdetection_and_mmengine_belong_to_the_end_of_their_epoch(tmp_path: Path) -> None:
    """mmdetection writes the number of validation batches as ``iter``, mmengine the epoch as ``step``."""
    old, new = [], []
    for t in range(COUNT):
        old.append({"mode": "train", "epoch": t // 30 + 1, "iter": t % 30 + 1, "grad_norm": NORM[t], "loss": LOSS[t]})
        new.append({"epoch": t // 30 + 1, "iter": t + 1, "step": t + 1, "grad_norm": NORM[t], "loss": LOSS[t]})
        if t % 30 == 29:
            old.append({"mode": "val", "epoch": t // 30 + 1, "iter": 500, "bbox_mAP": t / 100})
            new.append({"coco/bbox_mAP": t / 100, "step": t // 30 + 1})
    for name, rows, metric in (("old.json", old, "bbox_mAP"), ("new.json", new, "coco/bbox_mAP")):
        (tmp_path / name).write_text("\n".join(json.dumps(row) for row in rows))
        assert held(tmp_path / name, tmp_path / name[:3]) == expected(first=1)
        run = open_handle(next((tmp_path / name[:3] / "runs").iterdir()))
        curve = run.metric(metric)
        assert curve.index.tolist() == [30, 60, 90]
        assert run.analyze().result.metric.goal == "max"


TEXT = {
    "deepspeed.log": (0, "[2024-01-01 00:00:00,000] [INFO] steps: {t} loss: {loss} grad_norm: {norm}"),
    "leading.log": (0, "[{t:05d}] loss={loss} grad_norm={norm}"),
    "torchtitan.log": (0, "[titan] INFO - step: {u:2d}  loss: {loss}  grad_norm: {norm}  memory: 1.00GiB(1.00%)"),
    "fairseq.log": (0, "| INFO | train_inner | epoch 001:  {u} / 1000 loss={loss}, num_updates={u}, gnorm={norm}"),
    "olmo.log": (0, "2024-01-01T00:00 [step={u}/90,epoch=0]\n    optim/total_grad_norm={norm}\n    train/Loss={loss}"),
    "composer.log": (0, "[batch={u}/90]:\n\t Train loss/train/total: {loss}\n\t Train l2_norm/grad/global: {norm}"),
    "dinov2.log": (0, "I20240101 00:00:00 12 dinov2 helpers.py:103] Training  [{t:>6d}/90]  eta: 1 day, 0:00:00  "
                      "total_loss: {loss} ({loss})  grad_norm: {norm} (1.0)"),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXT)
def test_a_text_log_gives_the_same_norms(name: str, tmp_path: Path) -> None:
    first, pattern = TEXT[name]
    (tmp_path / name).write_text("".join(lines(pattern)))
    assert held(tmp_path / name, tmp_path) == expected(first)


def test_lines_that_count_samples_say_so(tmp_path: Path) -> None:
    pattern = "Train Epoch: {t} [64/6400 (1%)]\tLoss: {loss} LR: 0.001"
    (tmp_path / "openclip.log").write_text("".join(lines(pattern)))
    (made,) = import_log(tmp_path / "runs", tmp_path / "openclip.log")
    assert [note.text for note in made.notes if note.kind == "axis"] == [
        "the lines count samples and not iterations, so the axis is the number of samples"
    ]


def test_lists_of_norms_are_layers(tmp_path: Path) -> None:
    rows = [{"step": t, "grad_norms": [NORM[t], 2 * NORM[t]]} for t in range(COUNT)]
    (tmp_path / "log.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (made,) = import_log(tmp_path / "runs", tmp_path / "log.jsonl")
    assert made.layers == ("0", "1")


def test_the_accuracy_of_training_batches_is_not_an_evaluation_beside_one(tmp_path: Path) -> None:
    rows = [
        {"iteration": t, "total_loss": LOSS[t], "cls_accuracy": 0.9} | ({"bbox/AP": t / 3} if t % 10 == 9 else {})
        for t in range(COUNT)
    ]
    (tmp_path / "metrics.json").write_text("\n".join(json.dumps(row) for row in rows))
    (made,) = import_log(tmp_path / "runs", tmp_path / "metrics.json")
    assert made.metrics == ("bbox/AP",)


def test_a_run_without_norms_has_no_judged_spikes(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("step,loss,val_acc\n" + "".join(lines("{t},{loss},0.5")))
    (made,) = import_log(tmp_path / "runs", tmp_path / "log.csv")
    analysis = open_handle(made.path).analyze()
    shown = repr(analysis)
    assert "spikes      not judged" in shown
    assert "by chance" not in shown
    assert not analysis.spikes.attrs["judged"]


def test_a_summary_at_step_0_in_the_end_is_no_restart(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(table() + f"0,1.5,{NORM[0]}\n")
    assert held(tmp_path / "log.csv", tmp_path) == expected()


def test_remarks_in_brackets_and_norms_behind_the_layer(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(
        "".join(lines('{{"step": {t}, "Grad Norm (L2)": {norm}, "Loss (nats)": {loss}}}'))
    )
    assert held(tmp_path / "log.jsonl", tmp_path) == expected()
    rows = lines('{{"step": {t}, "grads/a/norm": {norm}, "grads/b/norm": 1.0, "grads/a/mean": 0.1}}')
    (tmp_path / "layers.jsonl").write_text("".join(rows))
    (made,) = import_log(tmp_path / "runs", tmp_path / "layers.jsonl")
    assert made.layers == ("a", "b")
