"""Properties of a metric that are inferred from its name: whether higher is better, and the scale of its values.

A *goal* is ``max`` or ``min``. A *scale* is ``fraction``, ``percent``, ``log`` for a perplexity, or ``value``.
"""

from __future__ import annotations

import re

import numpy as np

from stabilitylab.errors import ConfigError

GOALS = ("max", "min")
SCALES = ("fraction", "percent", "log", "value")

_RIGHT_OR_WRONG = {"acc", "accuracy", "top1", "top5", "acc1", "acc5", "knn", "top", "1nn"}
_ACCURACY = _RIGHT_OR_WRONG | {"precision", "recall", "macc"}
_HIGHER = _ACCURACY | {
    "f1",
    "auc",
    "auroc",
    "auprc",
    "map",
    "miou",
    "iou",
    "dice",
    "mdice",
    "macc",
    "bleu",
    "rouge",
    "r2",
    "psnr",
    "ssim",
    "mcc",
    "kappa",
    "score",
    "ndcg",
    "mrr",
}
_ERROR_RATE = {"error", "err", "wer", "cer", "eer"}
_PERPLEXITY = {"perplexity", "ppl"}
_LOWER = (
    _ERROR_RATE
    | _PERPLEXITY
    | {
        "loss",
        "nll",
        "bpc",
        "bpb",
        "bpd",
        "mse",
        "rmse",
        "fid",
        "xent",
        "ce",
        "kl",
        "mape",
        "entropy",
        "latency",
    }
)
_AVERAGES = re.compile(r"m?a[pr]\d*[sml]?")  # COCO: bbox/AP75, AR100, mAP50
_COMPOUNDS = re.compile(r"mAP|mAR|mIoU|IoU|mAcc|mDice")
_HELD_OUT = {"val", "valid", "validation", "eval", "test", "dev", "heldout"}


def words(name: str) -> list[str]:
    """The lower-case words of a name.

    >>> words("val/knn_acc1"), words("valLoss")
    (['val', 'knn', 'acc1'], ['val', 'loss'])
    """
    name = _COMPOUNDS.sub(lambda compound: f"_{compound[0].lower()}", name)
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return [word for word in re.split(r"[^a-z0-9]+", spaced.lower()) if word]


def goal_of(name: str) -> str | None:
    """``max`` or ``min``; None if the name does not show which.

    >>> goal_of("val_loss"), goal_of("top1"), goal_of("quality")
    ('min', 'max', None)
    """
    parts = words(name)
    if any(part in _LOWER or part.endswith("loss") for part in parts):
        return "min"
    if any(part in _HIGHER or part.startswith(("acc", "knn", "top")) or _AVERAGES.fullmatch(part) for part in parts):
        return "max"
    return None


def is_accuracy(name: str) -> bool:
    """Whether the name is that of an accuracy, a proportion of correct answers."""
    parts = words(name)
    named = any(part in _ACCURACY or part.startswith(("acc", "knn", "top")) for part in parts)
    return named and goal_of(name) == "max"


def is_held_out(name: str) -> bool:
    """Whether the name indicates that the metric was measured on held-out data."""
    return bool(set(words(name)) & _HELD_OUT) or "knn" in name.lower()


def check_goal(name: str, goal: str | None, scale: str | None = None) -> None:
    """Raise ConfigError for an unknown goal or scale, or a goal that contradicts the name of the metric."""
    if goal is not None and goal not in GOALS:
        raise ConfigError(f"goal {goal!r} is neither max nor min")
    if scale is not None and scale not in SCALES:
        raise ConfigError(f"scale {scale!r} is not one of {', '.join(SCALES)}")
    named = goal_of(name)
    if goal is not None and named is not None and goal != named and (named == "min" or is_accuracy(name)):
        better = "lower" if named == "min" else "higher"
        raise ConfigError(f"metric {name}: goal {goal} contradicts its name, which means that {better} is better")


def scale_of(name: str, finite: np.ndarray) -> str:
    """The scale of a metric, inferred from its name and its finite values (n,)."""
    parts = words(name)
    if set(parts) & _PERPLEXITY:
        return "log" if finite.min() > 0 else "value"
    shares = is_accuracy(name) or bool(set(parts) & _ERROR_RATE)
    if not shares or finite.min() < 0:
        return "value"
    if finite.max() <= 1:
        return "fraction"
    return "percent" if finite.max() <= 100 else "value"


def is_binomial(name: str) -> bool:
    """Whether the values are proportions of right or wrong samples, so that ``num_samples`` gives their error."""
    return bool(set(words(name)) & (_RIGHT_OR_WRONG | {"error", "err"}))
