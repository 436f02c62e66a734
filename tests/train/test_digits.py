"""DINO and VICReg learn on digits: ViT and ResNet end above where they began, untrained."""

from __future__ import annotations

from pathlib import Path

import pytest

from stabilitylab.config import resolve
from stabilitylab.store.reader import open_run
from stabilitylab.studies import train_run

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("method", ["dino", "vicreg"])
def test_a_vit_ends_well_above_its_untrained_encoder(method: str, tmp_path: Path) -> None:
    settings = {"method": {"name": method}, "train": {"iterations": 250, "device": "cpu"}, "eval": {"knn_every": 250}}
    with open_run(train_run(resolve(settings), tmp_path).path) as reader:
        untrained, trained = reader.evals()["knn_top1"]["value"]
    # Seen at 250 iterations of the recipe: 0.71 untrained, 0.88 with DINO, 0.86 with VICReg.
    assert trained > untrained + 0.1


@pytest.mark.parametrize(("method", "base_lr"), [("dino", 2e-3), ("vicreg", 4e-3)])
def test_a_resnet_ends_well_above_its_untrained_encoder(method: str, base_lr: float, tmp_path: Path) -> None:
    """8 x 8 pixels and 40 iterations. With a learning rate of 0, which trains only BatchNorm's averages, accuracy stays
    at 0.21."""
    settings = {
        "method": {"name": method},
        "model": {"arch": "resnet18", "img_size": 8},
        "optim": {"base_lr": base_lr, "warmup_iterations": 15},
        "train": {"iterations": 40, "batch_size": 64, "device": "cpu"},
        "eval": {"knn_every": 40},
    }
    with open_run(train_run(resolve(settings), tmp_path).path) as reader:
        untrained, trained = reader.evals()["knn_top1"]["value"]
    # Seen with AVX-512 and with baseline kernels: 0.21 untrained, 0.68 and 0.69 with DINO, 0.61 and 0.62 with VICReg.
    assert trained > untrained + 0.3
