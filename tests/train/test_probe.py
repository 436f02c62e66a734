"""The probe through the public API, and the sampling of labels."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stabilitylab.config import resolve
from stabilitylab.data.datasets import ImageData, Split, load_data
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
    good = linear_probe(config, data, Pixels(), cpu, epochs=8)
    assert good.value > 0.85
    assert good.base_lr == max(good.sweep, key=lambda pair: pair[1])[0]
    assert (good.num_choice, good.num_samples, good.num_labels) == (140, 397, 1400)
    few = linear_probe(config, data, Pixels(), cpu, epochs=8, share=0.01)
    assert few.metric == "linear_top1_1pct"
    assert 10 <= few.num_labels <= 20
    assert few.value < good.value


class Planted(torch.nn.Module):
    """Features that are the image's single pixel, as a one-hot vector of 256."""

    num_features = 256

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not self.training
        value = (x.flatten(1).mean(1) * 255).round().long().clamp(0, 255)
        return torch.nn.functional.one_hot(value, 256).float()


def flat_images(values: torch.Tensor) -> torch.Tensor:
    return values.view(-1, 1, 1, 1).expand(-1, 1, 16, 16).to(torch.uint8).contiguous()


def test_the_held_out_images_have_no_say_in_the_rate() -> None:
    """With labels of the held-out images turned around, the rate and the sweep stay what they were."""
    values = torch.arange(200) % 20
    data = ImageData(Split(values % 2, flat_images(values)), Split(values % 2, flat_images(values)), (0.0,), (1.0,))
    turned = replace(data, test=Split(1 - data.test.labels, data.test.images))
    config = resolve({"train": {"device": "cpu"}, "model": {"img_size": 16}})
    cpu = torch.device("cpu")
    a, b = (linear_probe(config, d, Planted().eval(), cpu, epochs=4, base_lrs=(0.1, 3.0)) for d in (data, turned))
    assert (a.base_lr, a.sweep) == (b.base_lr, b.sweep)
    assert a.value == pytest.approx(1 - b.value)
    assert a.value > 0.9


def test_the_schedule_steps_once_an_epoch_and_the_last_epoch_still_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    healthy = torch.optim.SGD.step

    def step(self: torch.optim.SGD, *args: object) -> None:
        rates.append(self.param_groups[0]["lr"])
        healthy(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    values = torch.arange(80) % 20
    data = ImageData(Split(values % 2, flat_images(values)), Split(values % 2, flat_images(values)), (0.0,), (1.0,))
    config = resolve({"train": {"device": "cpu"}})
    linear_probe(config, data, Planted().eval(), torch.device("cpu"), epochs=4, batch_size=20, base_lrs=(0.1,))
    expected = [0.1 * 20 / 256 * 0.5 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4) for _ in range(4)]
    assert rates == pytest.approx(expected)


def test_with_a_label_a_class_no_rate_is_chosen_and_that_is_said() -> None:
    config = resolve({"train": {"device": "cpu"}})
    data = load_data(config.data)
    one = linear_probe(config, data, Planted().eval(), torch.device("cpu"), epochs=1, share=0.001)
    assert (one.num_labels, one.num_choice, one.sweep, one.base_lr) == (10, 0, (), 3.0)


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
