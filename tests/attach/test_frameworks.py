"""Lightning and Hugging Face, the real libraries: what their loops did is what the run holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments

from stabilitylab.attach import huggingface, lightning
from stabilitylab.cli import cli
from stabilitylab.data.datasets import load_digits
from stabilitylab.store.reader import open_run


def digits() -> tuple[Tensor, Tensor]:
    data = load_digits("")
    assert data.train.images is not None
    return data.train.images[:512].float().flatten(1) / 255, data.train.labels[:512]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def accepted(run: Path) -> None:
    """``analyze`` and ``report`` take the run."""
    for command in (["analyze", run.name], ["report", run.name, "-o", str(run.parent / "r.html")]):
        done = CliRunner().invoke(cli, [*command, "--runs-dir", str(run.parent)])
        assert done.exit_code == 0, done.output


def total_norms(run: Path) -> np.ndarray:
    with open_run(run) as reader:
        assert reader.status == "finished"
        assert reader.verify() == []
        return reader.table("iterations")["grad_norm"]


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        self.truth: list[float] = []

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        self.log("val_top1", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        grads = [p.grad.flatten() for p in self.parameters() if p.grad is not None]
        self.truth.append(torch.cat(grads).norm().item())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def fit(tmp_path: Path, **options: Any) -> tuple[Module, Path]:
    module = Module()
    loader = DataLoader(TensorDataset(*digits()), batch_size=64)
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, gradient_clip_val=0.1,
        callbacks=[lightning.StabilityCallback("lit", runs_dir=tmp_path)], **options,
    )  # fmt: skip
    trainer.fit(module, loader, loader)
    return module, tmp_path / "lit"


@pytest.mark.filterwarnings("ignore")
def test_lightning_norms_are_those_before_clipping(tmp_path: Path) -> None:
    module, run = fit(tmp_path)
    assert len(module.truth) == 16
    np.testing.assert_allclose(total_norms(run), module.truth, rtol=1e-5)
    assert max(module.truth) > 0.1
    with open_run(run) as reader:
        iterations = reader.table("iterations")
        assert iterations["loss"][-1] < iterations["loss"][0]
        assert iterations["lr"].tolist() == [1e-3] * 16
        assert reader.evals()["val_top1"]["iteration"].tolist() == [8, 16]
        assert [row.name for row in reader.layers()] == ["net.0", "net.2"]
    accepted(run)


@pytest.mark.filterwarnings("ignore")
def test_lightning_with_accumulation(tmp_path: Path) -> None:
    module, run = fit(tmp_path, accumulate_grad_batches=4)
    np.testing.assert_allclose(total_norms(run), module.truth, rtol=1e-5)
    assert len(module.truth) == 4


@pytest.mark.filterwarnings("ignore")
def test_lightning_that_crashes_leaves_a_run(tmp_path: Path) -> None:
    class Failing(Module):
        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            if index == 3:
                raise ZeroDivisionError
            return super().training_step(batch, index)

    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[lightning.StabilityCallback("lit", runs_dir=tmp_path)],
    )  # fmt: skip
    with pytest.raises(ZeroDivisionError):
        trainer.fit(Failing(), DataLoader(TensorDataset(*digits()), batch_size=64))
    with open_run(tmp_path / "lit") as reader:
        assert (reader.status, reader.num_iterations) == ("crashed", 3)


class Classifier(PreTrainedModel):
    config_class = PretrainedConfig

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        self.net = network()
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None: ...

    def forward(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.net(pixels)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("accumulation", [1, 2])
def test_hugging_face_norms_are_those_before_clipping(accumulation: int, tmp_path: Path) -> None:
    pixels, labels = digits()
    data = [{"pixels": x, "labels": y} for x, y in zip(pixels, labels, strict=True)]
    arguments = TrainingArguments(
        str(tmp_path / "hf"), per_device_train_batch_size=64, max_steps=8, logging_steps=1, save_strategy="no",
        report_to=[], use_cpu=True, max_grad_norm=0.1, gradient_accumulation_steps=accumulation, disable_tqdm=True,
    )  # fmt: skip
    callback = huggingface.StabilityCallback("hf_run", runs_dir=tmp_path / "runs")
    model = Classifier(PretrainedConfig())
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data[:64], callbacks=[callback])
    trainer.train()
    logged = [row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row]
    assert len(logged) == 8
    assert max(logged) > 0.1
    run = tmp_path / "runs" / "hf_run"
    np.testing.assert_allclose(total_norms(run), logged, rtol=1e-4)  # the Trainer logs the norm before clipping
    with open_run(run) as reader:
        iterations = reader.table("iterations")
        assert np.isfinite(iterations["loss"]).all()
        assert iterations["lr"][0] > iterations["lr"][-1]
    assert not model._forward_hooks
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    accepted(run)
