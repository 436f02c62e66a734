"""Evaluate frozen features: weighted kNN, and a linear classifier on all or a share of the labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stabilitylab.config import Config
from stabilitylab.data.batches import Share, training_batches
from stabilitylab.data.datasets import ImageData, Split
from stabilitylab.data.views import View
from stabilitylab.errors import ConfigError
from stabilitylab.models.collectives import gather, sum_over_processes
from stabilitylab.train.evaluate import KnnMonitor, features_of
from stabilitylab.train.schedules import learning_rate

LR_SWEEP = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Base learning rates; the rate is base_lr * batch size / 256."""
BATCH_SIZE, FEWEST_STEPS = 1024, 8
"""The protocol's batch size, and the minimum number of steps per epoch, for which the batch is made smaller."""
CHOICE_SHARE = 0.1
"""The share of the labelled images on which the learning rate is chosen."""
_UNSWEPT = {"vit": 3.0, "resnet": 0.1}
"""The authors' base learning rates, used if there are too few labels to choose one."""


@dataclass(frozen=True)
class ProbeResult:
    """Top-1 on the held-out images, as a fraction.

    ``base_lr`` was chosen on ``num_choice`` training images (0: too few labels, so the authors' rate was used);
    ``sweep`` lists (base_lr, accuracy on those images). The held-out images are not used for this choice.
    """

    metric: str
    value: float
    num_samples: int
    num_labels: int
    base_lr: float | None = None
    sweep: tuple[tuple[float, float], ...] = ()
    num_choice: int = 0


def knn_probe(
    config: Config, data: ImageData, encoder: nn.Module, device: torch.device, processes: Share = (0, 1)
) -> ProbeResult:
    """Evaluate the encoder once with the weighted kNN of `KnnMonitor`."""
    monitor = KnnMonitor(config, data, device, processes)
    return ProbeResult("knn_top1", monitor(encoder).item(), monitor.num_samples, len(data.train))


def linear_probe(
    config: Config,
    data: ImageData,
    encoder: nn.Module,
    device: torch.device,
    *,
    share: float = 1.0,
    epochs: int = 90,
    batch_size: int | None = None,
    base_lrs: Sequence[float] = LR_SWEEP,
    progress: Callable[[int, int], None] = lambda epoch, epochs: None,
    processes: Share = (0, 1),
) -> ProbeResult:
    """Train a linear classifier on frozen features with the protocol of the MoCo v3 release (docs/recipes.md): SGD with
    momentum 0.9, no weight decay, a half-cosine schedule stepped once per epoch, weights from N(0, 0.01), random crops,
    the encoder in evaluation mode.

    For each learning rate two classifiers are trained on the same features. One leaves out a tenth of the training
    images, on which the rate is chosen. The other uses all images; that of the chosen rate is tested.

    ``share`` of the labels, drawn per class with the run's seed, at least one per class. ``batch_size``: 1024 by
    default, or less if an epoch would have fewer than eight steps. With several ``processes`` (rank, number), each
    computes the features of its rows of a batch, which is rounded down to a multiple of their number; the classifiers,
    trained on all rows, are the same in each process. Raises ConfigError if ``share`` is not in (0, 1].
    """
    seed = config.train.seed
    labelled = data if share == 1 else replace(data, train=stratified(data.train, share, seed))
    labels = labelled.train.labels
    choice = _choice(labels, seed) if len(base_lrs) > 1 else labels.new_zeros(0)
    if not len(choice):
        base_lrs = (base_lrs[0] if len(base_lrs) == 1 else _UNSWEPT["vit" if config.model.is_vit else "resnet"],)
    batch_size = min(batch_size or min(BATCH_SIZE, len(labels) // FEWEST_STEPS), len(labels)) or 1
    batch_size = max(batch_size // processes[1], 1) * processes[1]
    heads = _train(config, labelled, encoder, device, choice, epochs, batch_size, base_lrs, progress, processes)
    sweep: tuple[tuple[float, float], ...] = ()
    best = 0
    if len(choice):
        correct = _correct(
            [narrow for narrow, _ in heads], config, data, labelled.train.subset(choice), encoder, device, processes
        )
        sweep = tuple((lr, c / len(choice)) for lr, c in zip(base_lrs, correct, strict=True))
        best = max(range(len(sweep)), key=lambda i: sweep[i][1])
    n = len(data.test)
    value = _correct([heads[best][1]], config, data, data.test, encoder, device, processes)[0] / n
    metric = "linear_top1" if share == 1 else f"linear_top1_{100 * share:g}pct"
    return ProbeResult(metric, value, n, len(labels), base_lrs[best], sweep, len(choice))


def _train(
    config: Config,
    data: ImageData,
    encoder: nn.Module,
    device: torch.device,
    choice: Tensor,
    epochs: int,
    batch_size: int,
    base_lrs: Sequence[float],
    progress: Callable[[int, int], None],
    processes: Share,
) -> list[tuple[nn.Linear, nn.Linear]]:
    """For each learning rate, train a classifier without the images ``choice`` and one with all images."""
    labels = data.train.labels
    seen = torch.ones(len(labels), dtype=torch.bool)
    seen[choice] = False
    train = config.train.model_copy(update={"batch_size": batch_size, "iterations": 1, "epochs": None})
    batches = training_batches(config.model_copy(update={"train": train}), data, device, processes)
    batches.set_views((_view(config),))
    encoder.eval()
    width = int(encoder.num_features)  # type: ignore[arg-type]
    torch.manual_seed(config.train.seed)
    heads = [
        (_classifier(width, data.num_classes, device), _classifier(width, data.num_classes, device)) for _ in base_lrs
    ]
    groups = [{"params": [*narrow.parameters(), *wide.parameters()]} for narrow, wide in heads]
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=0.9)
    per_epoch = batches.order.iterations_per_epoch
    for iteration, (images,) in enumerate(batches.iterate(0, epochs * per_epoch)):
        with torch.no_grad():
            features = gather(encoder(images).float())  # rows in the order of the whole batch
        indices = batches.order(iteration)
        target, weight = labels[indices].to(device), seen[indices].float().to(device)
        for group, base_lr in zip(optimizer.param_groups, base_lrs, strict=True):
            group["lr"] = learning_rate(iteration // per_epoch, epochs, base_lr * batch_size / 256, 0)
        optimizer.zero_grad()
        total = torch.zeros((), device=device)
        for narrow, wide in heads:  # no shared parameters, so the sum gives each its own gradient
            losses = F.cross_entropy(narrow(features), target, reduction="none")
            total = (
                total + (losses * weight).sum() / weight.sum().clamp(min=1) + F.cross_entropy(wide(features), target)
            )
        total.backward()
        optimizer.step()
        if (iteration + 1) % per_epoch == 0:
            progress((iteration + 1) // per_epoch, epochs)
    return heads


def _classifier(width: int, classes: int, device: torch.device) -> nn.Linear:
    head = nn.Linear(width, classes)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return head.to(device)


def _choice(labels: Tensor, seed: int) -> Tensor:
    """Indices of a tenth of the images, drawn per class, at least one per class. Empty if a class has fewer than two
    images: then no rate can be chosen."""
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        if len(members) < 2:
            return labels.new_zeros(0)
        count = max(1, round(CHOICE_SHARE * len(members)))
        chosen.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return torch.cat(chosen).sort().values


def stratified(split: Split, share: float, seed: int) -> Split:
    """A random ``share`` of the images of a split, drawn per class, at least one per class."""
    if not 0 < share <= 1:
        raise ConfigError(f"the share of labels must be above 0% and at most 100%, not {share:.0%}")
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in split.labels.unique():
        members = (split.labels == label).nonzero().flatten()
        count = max(1, round(share * len(members)))
        chosen.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return split.subset(torch.cat(chosen).sort().values)


def _view(config: Config) -> View:
    """Random crops and, for photos, flips, as in supervised training."""
    photo = config.data.views != "grey"
    crop = (0.08, 1.0) if photo else (0.5, 1.0)
    return View(crop=crop, jitter_p=0.0, grey_p=0.0, flip_p=0.5 if photo else 0.0)


@torch.inference_mode()
def _correct(
    heads: list[nn.Linear],
    config: Config,
    data: ImageData,
    split: Split,
    encoder: nn.Module,
    device: torch.device,
    processes: Share,
) -> list[int]:
    """The number of images of ``split`` that each classifier classifies correctly, without augmentation."""
    rank, size = processes
    shared = 1 < size <= len(split)  # each process takes every size-th image
    part = split.subset(torch.arange(rank, len(split), size)) if shared else split
    features = features_of(encoder, data, part, config.model.img_size, device)
    labels = part.labels.to(device)
    correct = torch.stack([(head(features).argmax(1) == labels).sum() for head in heads])
    total = sum_over_processes(correct) if shared else correct
    return [int(count) for count in total]
