"""The probe through the public door, and the draw of labels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stabilitylab.config import resolve
from stabilitylab.data.datasets import Split, load_data
from stabilitylab.errors import ConfigError
from stabilitylab.store.reader import open_run
from stabilitylab.studies import probe_run, train_run
from stabilitylab.train.probe import linear_probe, stratified


def test_a_share_of_the_labels_is_drawn_class_by_class() -> None:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 3)
    split = Split(labels, images=torch.arange(83, dtype=torch.uint8).view(83, 1, 1, 1))
    drawn = stratified(split, 0.1, seed=0)
    assert [int((drawn.labels == c).sum()) for c in range(3)] == [5, 3, 1]
    assert drawn.images is not None
    assert torch.equal(labels[drawn.images.flatten().long()], drawn.labels)
    assert torch.equal(stratified(split, 0.1, seed=0).images, drawn.images)
    assert not torch.equal(stratified(split, 0.1, seed=1).images, drawn.images)
    with pytest.raises(ConfigError, match="above 0%"):
        stratified(split, 0.0, seed=0)


def test_a_linear_classifier_reads_what_the_features_hold() -> None:
    """Features that are the pixels: a linear classifier on digits' pixels gets well above 85%."""

    class Pixels(torch.nn.Module):
        num_features = 64

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.avg_pool2d(x, 2).flatten(1)

    config = resolve({"train": {"device": "cpu"}})
    data = load_data(config.data)
    cpu = torch.device("cpu")
    good = linear_probe(config, data, Pixels(), cpu, epochs=30)
    assert good.value > 0.85
    assert good.base_lr in dict(good.sweep)
    assert good.value == max(accuracy for _, accuracy in good.sweep)
    few = linear_probe(config, data, Pixels(), cpu, epochs=30, share=0.01)
    assert few.metric == "linear_top1_1pct"
    assert 10 <= few.num_labels <= 20
    assert few.value < good.value


def test_results_go_to_evals_and_nothing_else_changes(tmp_path: Path) -> None:
    config = {"train": {"iterations": 4, "batch_size": 32, "device": "cpu"}, "record": {"log_grads": True}}
    run = train_run(resolve(config), tmp_path).path
    with open_run(run) as reader:
        before = reader.query("select * from layer_stats order by all").fetchall()
        events = [(e.iteration, e.kind) for e in reader.events()]
    weights = (run / "checkpoints" / "iteration-000004.pt").read_bytes()
    for _ in range(2):  # the second time it is there already
        results = probe_run(run, shares=[0.1], knn=True, epochs=1, batch_size=64, device="cpu")
    with open_run(run) as reader:
        assert reader.status == "finished"
        assert reader.verify() == []
        rows = reader.query("select iteration, value, num_samples from evals where metric = 'linear_top1_10pct'")
        assert rows.fetchall() == [(4, pytest.approx(results[1].value), 397)]
        # The monitor measured the same encoder at the end.
        assert reader.evals()["knn_top1"]["value"][-1] == pytest.approx(results[0].value)
        assert reader.query("select * from layer_stats order by all").fetchall() == before
        assert [(e.iteration, e.kind) for e in reader.events()] == events
    assert (run / "checkpoints" / "iteration-000004.pt").read_bytes() == weights
