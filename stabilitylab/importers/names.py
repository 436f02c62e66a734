"""Classification of series by name: gradient norm of a layer, total norm, loss, metric or axis.

Covers the names used by PyTorch scripts, Lightning 1.x and 2.x, Hugging Face, Megatron-LM, W&B's watch, OLMo, fairseq,
Keras and Flax.
"""

from __future__ import annotations

import re

_GRAD = r"grad(?:ient)?s?"
_NORM = (
    rf"(?:{_GRAD}(?:[_-](?:l2|2(?:\.0)?))?[_\- ]?norms?|{_GRAD}[_-]l2|g_?norms?|norms?[_-](?:of[_-])?{_GRAD}"
    rf"|l2[_-]{_GRAD}(?:[_-]?norms?)?|l2[_-]norm/{_GRAD})"
)
_WHOLE = r"(?:global|total|overall|all|raw|unclipped|pre_?clip(?:ped|ping)?|before_?clip(?:ping)?|l2)"

STATISTICS = frozenset(
    ("min", "max", "mean", "avg", "average", "median", "std", "stddev", "var", "variance", "sum", "count", "minimum",
     "maximum", "sem", "iqr", "range")
)  # fmt: skip
_NO_LAYER = STATISTICS | frozenset(
    ("step", "epoch", "clipped", "clip", "clipping", "clip_coef", "clip_coeff", "clip_frac", "clip_value", "clip_norm",
     "clip_rate", "ratio", "threshold", "scale", "scaler", "ema", "smooth", "smoothed", "noise", "noise_scale", "nan",
     "inf", "nans", "infs", "zeros", "num_zeros", "skipped", "overflow", "lr", "loss", "time", "postclip", "post_clip",
     "after_clip", "after_clipping", "cos", "cosine", "similarity", "accumulation", "accumulation_steps")
)  # fmt: skip
_STATISTIC = re.compile(
    rf"(?:.*[/.])?(?:(?:{'|'.join(sorted(STATISTICS))}|p\d+|q\d+)[_\- ]{_NORM}(?:[_\-/. ].*)?"
    rf"|(?:.*[/._\- ])?{_NORM}[_\-/. ](?:{'|'.join(sorted(STATISTICS))}|p\d+|q\d+))",
    re.IGNORECASE,
)
_TOTAL = re.compile(
    rf"(?:(?P<section>.*)[/.])?(?:(?:{_WHOLE}|train(?:ing)?|model)[_\- ])*{_NORM}(?:[_\-/. ]{_WHOLE})*(?:_step)?",
    re.IGNORECASE,
)
_TOTAL_BELOW_GRAD = re.compile(
    rf"(?P<section>(?:.*/)?{_GRAD})/(?:{_WHOLE}[_-])?(?:norms?|l2|total|global)(?:_step)?", re.IGNORECASE
)
_LAYER = re.compile(rf"(?:.*/)?(?:{_NORM}[/.:_]|{_GRAD}[/.](?:norms?/)?)(?P<layer>.+)", re.IGNORECASE)
_LAYER_FIRST = re.compile(rf"(?P<layer>.+)[/._:]{_NORM}(?:_step)?", re.IGNORECASE)
_MAX = re.compile(
    rf"(?:.*/)?{_GRAD}[_-](?:max|abs_?max|inf(?:inity)?(?:[_-]norm)?|linf)[/.:_](?P<layer>.+)", re.IGNORECASE
)
_REMARK = re.compile(r"\s+[(\[](?!\d+[)\]])[^()\[\]]*[)\]]$")
_AXIS = re.compile(r".*[ _]vs[ _](?:samples?|tokens?|time|examples?|epochs?|flops?|seconds?|hours?)", re.IGNORECASE)
_SECTIONS = frozenset(
    ("train", "training", "optim", "optimizer", "debug", "global", "metrics", "metric", "stats", "monitor",
     "monitoring", "perf", "misc", "lm", "system", "opt", "tune", "grad", "grads", "gradient", "gradients", "grad-norm",
     "grad_norm",
     "iteration", "iter", "batch", "step", "update", "updates", "loss", "losses", "trainer", "main", "scalars", "log",
     "logs", "summary", "trainingmetrics", "diagnostics")
)  # fmt: skip
_EVAL = re.compile(
    r"(?:^|[/_.\- ])(?:val|valid|validation|eval|evaluation|evaluator|test|dev|heldout|knn|probe|online_eval)"
    r"(?:[/_.\- ]|\d|$)",
    re.IGNORECASE,
)
_TRAIN = re.compile(r"(?:^|[/_.\- ])train(?:ing)?(?:[/_.\- ]|$)", re.IGNORECASE)
_OPERATIONAL = re.compile(
    r".*(?:runtime|per_second|_time|time_|^time$|seconds|throughput|epoch|(?:^|[/_])steps?$|learning_rate|(?:^|[/_])lr(?:$|[-_/])"
    r"|gen_len|batch_size|num_samples|num_tokens|memory|mem$|samples$|tokens$|eta$|n_parameters).*",
    re.IGNORECASE,
)
_MEASURE = re.compile(
    r"(?:^|[/_.\- ])(?:knn\w*|(?:[a-z]+_)?acc(?:uracy)?[@_]?\d*|top[-_@]?\d+|f1|auc|auroc|miou|iou"
    r"|m?ap[@_]?[\d\-]*[sml]?|m?ar[@_]?[\d\-]*[sml]?"
    r"|bleu|rouge\w*|ppl|perplexity|wer|cer|psnr|ssim|fid|exact_match|precision|recall)(?:$|[/_.\- (:])",
    re.IGNORECASE,
)

LOSSES = (
    "loss",
    "train/loss",
    "train_loss",
    "train/loss_step",
    "train_loss_step",
    "training/loss",
    "training_loss",
    "loss/train",
    "loss_train",
    "lm loss",
    "lm-loss-training/lm loss",
    "train/lm_loss",
    "lm_loss",
    "train/total_loss",
    "total_loss",
    "train/ce_loss",
    "train/cross_entropy",
    "train/crossentropyloss",
    "trl",
)
_RATES = re.compile(
    r"(?:.*/)?(?:lr|learning[_\- ]rate|train_lr)(?:/(?:lr|learning[_\- ]rate))?(?:-\w+)?(?:/pg1|/group_?0|_0|/0)?",
    re.IGNORECASE,
)


def is_axis(name: str) -> bool:
    """Whether a series repeats another one over samples, tokens or time (Megatron's ``grad-norm vs samples``)."""
    return _AXIS.fullmatch(name) is not None


def is_statistic(name: str) -> bool:
    """Whether a series is a statistic of gradient norms, such as a minimum or mean, and not a layer."""
    return _STATISTIC.fullmatch(name) is not None


def without_unit(name: str) -> str:
    """A name without a remark in brackets at its end: ``Grad Norm (L2)`` -> ``Grad Norm``."""
    return _REMARK.sub("", name) or name


def total_section(name: str) -> str | None:
    """Lower-case prefix of a total norm (``train`` in ``train/grad_norm``); None for other series."""
    name = without_unit(name)
    match = _TOTAL_BELOW_GRAD.fullmatch(name) or _TOTAL.fullmatch(name)
    return None if match is None else (match["section"] or "").lower()


def is_known_section(section: str) -> bool:
    """Whether a prefix groups series (``train``, ``optim``) instead of naming a layer."""
    return all(part in _SECTIONS for part in re.split(r"[/.]", section) if part)


def layer_of(name: str) -> str | None:
    """The layer or parameter of a gradient-norm series; None for other series.

    >>> layer_of("grad_norm/blocks.0"), layer_of("loss")
    ('blocks.0', None)
    """
    for pattern in (_LAYER, _LAYER_FIRST):
        match = pattern.fullmatch(name)
        if match is not None:
            layer = match["layer"]
            if pattern is _LAYER and _grad_p_norm(name):
                layer = layer.removesuffix("_step")
            return None if is_no_layer(layer) else layer
    return None


def maximum_of(name: str) -> str | None:
    """The layer of a series of largest gradient entries; None for other series."""
    match = _MAX.fullmatch(name)
    return None if match is None else match["layer"]


def is_no_layer(layer: str) -> bool:
    """Whether the name is that of a statistic, a clipping threshold or the like, and not of a layer."""
    word = layer.lower().replace("-", "_").replace(" ", "_")
    last = re.split(r"[/.]", word)[-1]
    return word in _NO_LAYER or last in STATISTICS or re.fullmatch(r"[pq]\d+", last) is not None


def is_ambiguous_total(name: str) -> bool:
    """Whether the name of a total norm could also be that of a layer called ``norm`` (``grad/norm``)."""
    return re.fullmatch(rf"(?:.*/)?{_GRAD}/norms?", name, re.IGNORECASE) is not None


def _grad_p_norm(name: str) -> bool:
    """Whether the name has the form ``grad_2.0_norm_NAME_step`` of Lightning 1.x."""
    return re.search(r"grad_[\d.]+_norm_", name) is not None


def is_training_loss(name: str) -> bool:
    return without_unit(name).lower() in LOSSES


def is_loss(name: str) -> bool:
    """Whether a series is any training loss."""
    return "loss" in re.split(r"[/_.\- ]", name.lower()) and not is_evaluation(name)


def is_learning_rate(name: str) -> bool:
    return _RATES.fullmatch(without_unit(name)) is not None


def is_evaluation(name: str) -> bool:
    """Whether a series comes from an evaluation, by the parts of its name (``val``, ``eval``, ``test`` ...)."""
    return _EVAL.search(name) is not None


def is_metric(name: str) -> bool:
    """Whether a series is an evaluation metric, by its prefix or because only evaluations measure it."""
    if _OPERATIONAL.fullmatch(name):
        return False
    if is_evaluation(name):
        return True
    return _MEASURE.search(name) is not None and _TRAIN.search(name) is None
