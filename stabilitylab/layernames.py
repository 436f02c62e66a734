"""Classification of layers by name, across model libraries. Does not import torch."""

from __future__ import annotations

import re

_PROBE = re.compile(
    r"(^|[._])((linear|knn|online)_?)?(probe|evaluator)s?([._]|$)"
    r"|(^|[._])online_(classifier|linear|head|eval|evaluator|finetuner|mlp)s?([._]|$)"
)
_INPUTS = (
    ("patch projection", re.compile(r"patch_?embed(s|ding|dings|der)?\d*(\.|$)|(^|\.)conv_proj(\.|$)")),
    ("token embedding", re.compile(r"(^|[._])(wte|wpe|shared|tok_embeddings|(embed|token|word)\w*)(\.|$)")),
    (
        "input convolution",
        re.compile(r"(^|\.)(stem\w*|conv_?(0|1|stem|in)|base_layer|conv_stem)(\.\w+)*$|features\.0$"),
    ),
)


def is_probe(name: str) -> bool:
    """Whether a layer is named like a probe: a classifier trained on detached features alongside the main loss.

    >>> is_probe("online_classifier"), is_probe("student_backbone.head")
    (True, False)
    """
    return _PROBE.search(name) is not None


def input_kind(name: str) -> str:
    """The kind of a first layer, judged by its name: patch projection, token embedding, input convolution, or an empty
    string if unknown.

    >>> input_kind("student_backbone.patch_embed"), input_kind("transformer.wte"), input_kind("layer1.0")
    ('patch projection', 'token embedding', '')
    """
    return next((kind for kind, pattern in _INPUTS if pattern.search(name)), "")
