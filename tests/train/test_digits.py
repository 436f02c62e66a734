"""DINO and VICReg learn on digits: both encoders end above where they began, untrained."""

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
