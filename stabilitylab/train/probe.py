"""What frozen features are worth: weighted kNN, and a linear classifier with all or a share of the labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from stabilitylab.config import Config
from stabilitylab.data.batches import training_batches
from stabilitylab.data.datasets import ImageData, Split
from stabilitylab.data.views import View
from stabilitylab.errors import ConfigError
from stabilitylab.train.evaluate import KnnMonitor, features_of
from stabilitylab.train.schedules import learning_rate

LR_SWEEP = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Base learning rates, times batch size / 256."""


@dataclass(frozen=True)
class ProbeResult:
    """Top-1 on the held-out images, as a fraction; ``base_lr`` is the sweep's best, ``sweep`` all of it."""

    metric: str
    value: float
    num_samples: int
    num_labels: int
    base_lr: float | None = None
    sweep: tuple[tuple[float, float], ...] = ()


def knn_probe(config: Config, data: ImageData, encoder: nn.Module, device: torch.device) -> ProbeResult:
    """The monitor's weighted kNN, once."""
    monitor = KnnMonitor(config, data, device)
    return ProbeResult("knn_top1", monitor(encoder).item(), monitor.num_samples, len(data.train))


def linear_probe(
    config: Config,
    data: ImageData,
    encoder: nn.Module,
    device: torch.device,
    *,
    share: float = 1.0,
    epochs: int = 90,
    batch_size: int = 256,
    base_lrs: Sequence[float] = LR_SWEEP,
    progress: Callable[[int, int], None] = lambda epoch, epochs: None,
) -> ProbeResult:
    """A linear classifier on frozen features: SGD with momentum 0.9, no weight decay, cosine, random crops
    (PAPER, Implementation). One classifier a learning rate, all trained on the same features; the best counts.

    ``share`` of the labels, drawn class by class with the run's seed, at least one a class.
    """
    labelled = data if share == 1 else replace(data, train=stratified(data.train, share, config.train.seed))
    labels = labelled.train.labels
    batch_size = min(batch_size, len(labels))
    train = config.train.model_copy(update={"batch_size": batch_size, "iterations": 1, "epochs": None})
    batches = training_batches(config.model_copy(update={"train": train}), labelled, device)
    batches.set_views((_view(config),))
    encoder.eval()
    width = int(encoder.num_features)  # type: ignore[arg-type]
    torch.manual_seed(config.train.seed)
    heads = [nn.Linear(width, data.num_classes).to(device) for _ in base_lrs]
    for head in heads:
        nn.init.normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)
    groups = [{"params": list(head.parameters())} for head in heads]
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=0.9)
    per_epoch = batches.order.iterations_per_epoch
    total = epochs * per_epoch
    for iteration, (images,) in enumerate(batches.iterate(0, total)):
        with torch.no_grad():
            features = encoder(images).float()
        target = labels[batches.order(iteration)].to(device)
        for group, base_lr in zip(optimizer.param_groups, base_lrs, strict=True):
            group["lr"] = learning_rate(iteration, total, base_lr * batch_size / 256, 0)
        optimizer.zero_grad()
        losses = [F.cross_entropy(head(features), target) for head in heads]
        torch.stack(losses).sum().backward()  # the heads share no parameter: each gets its own gradient
        optimizer.step()
        if (iteration + 1) % per_epoch == 0:
            progress((iteration + 1) // per_epoch, epochs)
    correct = _correct(heads, config, data, encoder, device)
    n = len(data.test)
    sweep = tuple((lr, c / n) for lr, c in zip(base_lrs, correct, strict=True))
    base_lr, value = max(sweep, key=lambda pair: pair[1])
    metric = "linear_top1" if share == 1 else f"linear_top1_{100 * share:g}pct"
    return ProbeResult(metric, value, n, len(labels), base_lr, sweep)


def stratified(split: Split, share: float, seed: int) -> Split:
    """``share`` of a split's images, class by class, at least one each."""
    if not 0 < share <= 1:
        raise ConfigError(f"a share of labels lies above 0% and up to 100%, not {share:.0%}")
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in split.labels.unique():
        members = (split.labels == label).nonzero().flatten()
        count = max(1, round(share * len(members)))
        chosen.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return split.subset(torch.cat(chosen).sort().values)


def _view(config: Config) -> View:
    """Crops, and for photos mirror images, as supervised training has them."""
    photo = config.data.views == "photo"
    crop = (0.08, 1.0) if photo else (0.5, 1.0)
    return View(crop=crop, jitter_p=0.0, grey_p=0.0, flip_p=0.5 if photo else 0.0)


@torch.inference_mode()
def _correct(
    heads: list[nn.Linear], config: Config, data: ImageData, encoder: nn.Module, device: torch.device
) -> list[int]:
    features = features_of(encoder, data, data.test, config.model.img_size, device)
    labels = data.test.labels.to(device)
    return [int((head(features).argmax(1) == labels).sum()) for head in heads]
