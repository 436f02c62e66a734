"""One run, exported and written again by the real libraries, comes back with the same norms.

They need ``pip install 'stabilitylab[log-writers]'``. Nothing here needs a network.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from stabilitylab.importers.registry import recognise
from stabilitylab.store.export import export_run
from tests.importers.planted import LAYERS, assert_holds, bring, norms_of, planted
from tests.importers.test_formats import write_rows

pytestmark = pytest.mark.slow

Rows = list[dict[str, float]]


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    """A run of ours, exported, one dictionary a step."""
    norms = planted()
    grads = [[t, layer, repr(float(norms[layer][t]))] for t in range(40) for layer in LAYERS]
    made = bring(tmp_path / "first", write_rows(tmp_path / "grads.csv", ["iteration", "layer", "grad_norm"], grads))
    files = {file.stem: file for file in export_run(made.path, tmp_path / "exported")}
    found: Rows = [{} for _ in range(40)]
    query = (
        f"SELECT iteration, name, grad_norm FROM '{files['layer_stats']}' JOIN '{files['layers']}' USING (layer_id) "
        "ORDER BY iteration, layer_id"
    )
    for iteration, layer, norm in duckdb.sql(query).fetchall():
        found[iteration][f"grad_norm/{layer}"] = norm
    return found


def with_tensorboard(folder: Path, rows: Rows) -> Path:
    with SummaryWriter(str(folder)) as writer:
        for step, row in enumerate(rows):
            for name, value in row.items():
                writer.add_scalar(name, value, step)
    return folder


def with_wandb(folder: Path, rows: Rows) -> Path:
    wandb = pytest.importorskip("wandb")
    with wandb.init(project="p", name="nice", dir=str(folder), mode="offline", settings={"silent": True}) as run:
        for step, row in enumerate(rows):
            run.log(row, step=step)
    wandb.teardown()  # its service writes the file to the end
    return folder


def with_lightning(folder: Path, rows: Rows) -> Path:
    loggers = pytest.importorskip("lightning.pytorch.loggers")
    logger = loggers.CSVLogger(str(folder), name="")
    for step, row in enumerate(rows):
        logger.log_metrics({**row, "epoch": step // 10}, step)
    logger.save()
    return folder


def with_transformers(folder: Path, rows: Rows) -> Path:
    callback = pytest.importorskip("transformers.trainer_callback")
    state = callback.TrainerState(global_step=len(rows), logging_steps=1)
    for step, row in enumerate(rows, 1):
        state.log_history.append({"loss": 1.0, "learning_rate": 0.1, "epoch": step / 10, "step": step, **row})
    state.save_to_json(str(folder / "trainer_state.json"))
    return folder / "trainer_state.json"


def with_mlflow(uri: str) -> Callable[[Path, Rows], Path]:
    def write(folder: Path, rows: Rows) -> Path:
        mlflow = pytest.importorskip("mlflow")
        mlflow.set_tracking_uri(uri.format(folder))
        mlflow.set_experiment("e")
        with mlflow.start_run(run_name="nice"):
            for step, row in enumerate(rows):
                mlflow.log_metrics(row, step=step)
        return folder / uri.rpartition("/")[2]

    return write


def with_trackio(folder: Path, rows: Rows) -> Path:
    trackio = pytest.importorskip("trackio")
    trackio.init(project="p", name="nice", embed=False)
    for step, row in enumerate(rows):
        trackio.log(row, step=step)
    trackio.finish()
    (file,) = folder.glob("**/p.db")
    return file


WRITERS: dict[str, tuple[str, Callable[[Path, Rows], Path]]] = {
    "tensorboard": ("tensorboard", with_tensorboard),
    "wandb": ("wandb", with_wandb),
    "lightning": ("lightning", with_lightning),
    "transformers": ("huggingface", with_transformers),
    "mlflow folder": ("mlflow", with_mlflow("file:{}/mlruns")),
    "mlflow database": ("mlflow", with_mlflow("sqlite:///{}/mlflow.db")),
    "trackio": ("trackio", with_trackio),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("library", WRITERS)
def test_the_real_library(library: str, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "HF_HOME": str(tmp_path / "hf"), "TRACKIO_DIR": str(tmp_path / "log"), "MLFLOW_ALLOW_FILE_STORE": "true",
        "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    format, write = WRITERS[library]
    (tmp_path / "log").mkdir()
    path = write(tmp_path / "log", rows)
    assert recognise(path).name == format
    made = bring(tmp_path / "runs", path)
    expected = {layer: np.array([row[f"grad_norm/{layer}"] for row in rows]) for layer in LAYERS}
    assert_holds(made.path, expected)
    np.testing.assert_allclose(norms_of(made.path)["norm"][1], planted()["norm"], rtol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_a_real_trainers_norms(tmp_path: Path) -> None:
    """The Trainer's own log of a short training, against the norms that the callback recorded in it."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from stabilitylab.attach.huggingface import StabilityCallback

    class Model(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(3, 1)

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": ((self.net(x) - labels) ** 2).mean()}

    torch.manual_seed(0)
    data = [{"x": torch.randn(3), "labels": torch.randn(1)} for _ in range(64)]
    arguments = transformers.TrainingArguments(
        str(tmp_path / "out"), max_steps=12, logging_steps=1, save_steps=6, per_device_train_batch_size=8,
        report_to=[], use_cpu=True, max_grad_norm=1e9, disable_tqdm=True,
    )  # fmt: skip
    callback = StabilityCallback("recorded", runs_dir=tmp_path / "runs")
    transformers.Trainer(Model(), arguments, train_dataset=data, callbacks=[callback]).train()
    made = bring(tmp_path / "runs", tmp_path / "out", name="imported")
    assert made.iterations == 12
    recorded = norms_of(tmp_path / "runs" / "recorded")
    whole = np.sqrt(sum(values**2 for _, values in recorded.values()))
    np.testing.assert_allclose(norms_of(made.path)["global"][1], whole, rtol=1e-4)
