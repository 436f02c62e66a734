"""Lightning and Hugging Face where they are hard: accumulation, scalers, several optimizers, crashes, second runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import PretrainedConfig, Trainer, TrainingArguments

from stabilitylab.attach import huggingface, lightning
from stabilitylab.store.reader import open_run
from tests.attach.test_frameworks import Classifier, Module, digits

pytestmark = pytest.mark.filterwarnings("ignore")


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(*digits()), batch_size=64)


def trainer_of(callback: pl.Callback, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        **{
            "max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
            "enable_progress_bar": False, "enable_model_summary": False, "callbacks": [callback], **options,
        }
    )  # fmt: skip


def test_lightning_accumulates_the_loss_too(tmp_path: Path) -> None:
    losses: list[float] = []

    class Telling(Module):
        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            loss = super().training_step(batch, index)
            losses.append(loss.item())
            return loss

    callback = lightning.StabilityCallback("r", runs_dir=tmp_path)
    trainer_of(callback, accumulate_grad_batches=4).fit(Telling(), loader())
    with open_run(tmp_path / "r") as reader:
        found = reader.table("iterations")["loss"]
    np.testing.assert_allclose(found, np.reshape(losses, (-1, 4)).mean(axis=1), rtol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_lightning_unscales_what_a_scaler_scaled(fused: bool, tmp_path: Path) -> None:
    def run(name: str, **options: Any) -> dict[str, np.ndarray]:
        class Scaled(Module):
            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.AdamW(self.parameters(), lr=1e-3, fused=fused)

        trainer_of(lightning.StabilityCallback(name, runs_dir=tmp_path), **options).fit(Scaled(), loader())
        with open_run(tmp_path / name) as reader:
            return reader.table("iterations")

    class Float(MixedPrecision):  # a scaler, without what half precision rounds
        def autocast_context_manager(self) -> Any:
            return torch.autocast("cpu", enabled=False)

    plugin = Float("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))
    plain, scaled = run("plain"), run("scaled", plugins=[plugin])
    for column in ("grad_norm", "loss"):
        np.testing.assert_allclose(scaled[column], plain[column], rtol=1e-4)


class Gan(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(0)
        self.g, self.d = nn.Linear(64, 4), nn.Linear(4, 1)

    def training_step(self, batch: list[Tensor], index: int) -> None:
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            self.manual_backward(self.d(self.g(batch[0])).square().mean())  # leaves gradients in both
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.AdamW(self.g.parameters()), torch.optim.SGD(self.d.parameters(), lr=0.1)]


def test_lightning_with_two_optimizers_measures_the_one_that_steps(tmp_path: Path) -> None:
    callback = lightning.StabilityCallback("r", runs_dir=tmp_path, signals=("grad_norm", "adam_rms"))
    trainer_of(callback).fit(Gan(), loader())
    with open_run(tmp_path / "r") as reader:
        names = {row.name: row.layer_id for row in reader.layers()}
        series, rms = reader.layer_series(), reader.layer_series("adam_rms")
        assert series[names["g"]][0].tolist() == list(range(0, 16, 2))
        assert series[names["d"]][0].tolist() == list(range(1, 16, 2))
        assert rms[names["g"]][0].tolist() == list(range(0, 16, 2))
        assert names["d"] not in rms


def test_lightning_steps_without_gradient_and_percent_do_not_end_the_training(tmp_path: Path) -> None:
    class Skipping(Module):
        def training_step(self, batch: list[Tensor], index: int) -> Tensor | None:  # type: ignore[override]
            return None if index == 2 else super().training_step(batch, index)

        def validation_step(self, batch: list[Tensor], index: int) -> None:
            self.log("val_top1", 83.0)
            self.log("val_top5", 0.9)

        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None: ...

    trainer_of(lightning.StabilityCallback("r", runs_dir=tmp_path)).fit(Skipping(), loader(), loader())
    with open_run(tmp_path / "r") as reader:
        assert len(reader.table("iterations")["iteration"]) == 7
        assert reader.evals().keys() == {"val_top1", "val_top5"}
        assert reader.evals()["val_top1"]["value"].tolist() == [83.0]
        assert reader.evals()["val_top5"]["num_samples"].tolist() == [512]


def test_lightning_fits_twice_with_one_callback(tmp_path: Path) -> None:
    callback, module = lightning.StabilityCallback("r", runs_dir=tmp_path), Module()
    trainer = trainer_of(callback)
    trainer.fit(module, loader())
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, loader())  # goes on
    trainer_of(callback).fit(Module(), loader())  # begins anew
    for name, count in (("r", 16), ("r-2", 8)):
        with open_run(tmp_path / name) as reader:
            assert reader.num_iterations == count
            assert reader.verify() == []


def test_lightning_resume_starts_where_there_is_no_run_yet(tmp_path: Path) -> None:
    for expected in (8, 16):
        callback = lightning.StabilityCallback("r", runs_dir=tmp_path, resume=True)
        trainer_of(callback).fit(Module(), loader())
        with open_run(tmp_path / "r") as reader:
            assert reader.num_iterations == expected


def arguments(tmp_path: Path, **options: Any) -> TrainingArguments:
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 64, "max_steps": 4, "logging_steps": 1, "save_strategy": "no", "report_to": [],
        "use_cpu": True, "max_grad_norm": 0.1, "disable_tqdm": True,
    }  # fmt: skip
    return TrainingArguments(str(tmp_path / "hf"), **(defaults | options))


def rows() -> list[dict[str, Tensor]]:
    return [{"pixels": x, "labels": y} for x, y in zip(*digits(), strict=True)]


class Normalising(Classifier):
    """As language models do: the sum over a batch, divided by the items of all that are accumulated."""

    def forward(self, pixels: Tensor, labels: Tensor, **named: Any) -> dict[str, Tensor]:
        logits = self.net(pixels)
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        return {"loss": loss / named.get("num_items_in_batch", len(labels)), "logits": logits}


@pytest.mark.parametrize("model_class", [Classifier, Normalising])
def test_hugging_face_accumulates_the_loss_too(model_class: type[Classifier], tmp_path: Path) -> None:
    callback = huggingface.StabilityCallback("r", runs_dir=tmp_path, signals=("grad_norm", "activation_max"))
    trainer = Trainer(
        model_class(PretrainedConfig()),
        arguments(tmp_path, gradient_accumulation_steps=2),
        train_dataset=rows(),
        callbacks=[callback],
    )
    trainer.train()
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    with open_run(tmp_path / "r") as reader:
        np.testing.assert_allclose(reader.table("iterations")["loss"], logged, atol=2e-4)
        assert len(reader.layer_series("activation_max")[0][0]) == 4


def test_hugging_face_that_crashes_and_trains_again(tmp_path: Path) -> None:
    class Failing(Classifier):
        calls = 0

        def forward(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
            self.calls += 1
            if self.calls == 4:
                raise ZeroDivisionError
            return super().forward(pixels, labels)

    callback = huggingface.StabilityCallback("r", runs_dir=tmp_path)
    model = Failing(PretrainedConfig())
    trainer = Trainer(model, arguments(tmp_path), train_dataset=rows(), callbacks=[callback])
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    trainer.train()
    for name, status, count in (("r", "crashed", 3), ("r-2", "finished", 4)):
        with open_run(tmp_path / name) as reader:
            assert (reader.status, reader.num_iterations) == (status, count)
    assert not model._forward_hooks
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_hugging_face_evaluations_know_how_many_samples(tmp_path: Path) -> None:
    def metrics(prediction: Any) -> dict[str, float]:
        right = float((prediction.predictions.argmax(1) == prediction.label_ids).mean())
        return {"top1": right, "percent_top1": 100 * right}

    trainer = Trainer(
        Classifier(PretrainedConfig()),
        arguments(tmp_path, eval_strategy="steps", eval_steps=2),
        train_dataset=rows(),
        eval_dataset=rows()[:100],
        compute_metrics=metrics,
        callbacks=[huggingface.StabilityCallback("r", runs_dir=tmp_path)],
    )
    trainer.train()
    with open_run(tmp_path / "r") as reader:
        assert reader.evals()["eval_top1"]["num_samples"].tolist() == [100, 100]
        assert reader.evals()["eval_percent_top1"]["value"].max() > 1


class RawAdversarial(pl.LightningModule):
    """Manual optimization with the raw optimizers, which Lightning does not announce; clips before each step."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(0)
        self.gen, self.disc = nn.Linear(4, 8), nn.Linear(8, 1)
        self.truth: list[tuple[float, float]] = []

    def training_step(self, batch: list[Tensor], index: int) -> None:
        optimizers: Any = self.optimizers(use_pl_optimizer=False)
        fake = self.gen(torch.randn(len(batch[0]), 4))
        parts = (self.gen, self.disc)
        losses = (self.disc(fake).square().mean(), (self.disc(batch[0]) - self.disc(fake.detach())).square().mean())
        for turn, (optimizer, part, loss) in enumerate(zip(optimizers, parts, losses, strict=True)):
            grads = torch.autograd.grad(loss, list(part.parameters()), retain_graph=True)
            norm = float(torch.cat([g.flatten() for g in grads]).norm())
            self.truth.append((norm, np.nan) if turn == 0 else (np.nan, norm))
            optimizer.zero_grad()
            self.manual_backward(loss, retain_graph=turn == 0)
            nn.utils.clip_grad_norm_(part.parameters(), 1e-3)
            optimizer.step()

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
        return torch.optim.SGD(self.gen.parameters(), 1e-3), torch.optim.SGD(self.disc.parameters(), 1e-3)


@pytest.mark.filterwarnings("ignore")
def test_lightning_with_raw_optimizers_gives_the_true_norms(tmp_path: Path) -> None:
    module = RawAdversarial()
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[lightning.StabilityCallback("raw", runs_dir=tmp_path)],
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(torch.randn(160, 8)), batch_size=8))
    with open_run(tmp_path / "raw") as reader:
        names = {row.layer_id: row.name for row in reader.layers()}
        recorded = np.full((len(module.truth), 2), np.nan)
        for layer_id, (iteration, values) in reader.layer_series().items():
            recorded[iteration, ["gen", "disc"].index(names[layer_id])] = values
    np.testing.assert_allclose(recorded, module.truth, rtol=1e-4)
