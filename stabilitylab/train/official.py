"""Checkpoints of the official MoCo v3 release: map parameter names and infer the model from tensor shapes."""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from stabilitylab.config import VIT_SIZES, Config, resolve
from stabilitylab.errors import ConfigError
from stabilitylab.train.checkpoint import load_tensors

Weights = dict[str, Tensor]

_ENCODERS = ("base_encoder", "momentum_encoder")
_HEADS = {"base_encoder": "projector", "momentum_encoder": "momentum_projector"}
_LAST = ("head", "fc")
"""The release stores the projector in place of the classifier of a ViT or ResNet."""


def read_official(path: Path) -> tuple[Weights, dict[str, Any]]:
    """The weights of an official checkpoint without DDP's prefix, and its other entries. Raises ConfigError for any
    other file."""
    try:
        state = load_tensors(path)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (RuntimeError, EOFError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a PyTorch checkpoint of tensors: {str(error).splitlines()[0]}") from None
    weights = state.get("state_dict") if isinstance(state, Mapping) else None
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ConfigError(f"{path} has no state_dict of tensors, as in checkpoints of the MoCo v3 release")
    named = {name.removeprefix("module."): value for name, value in weights.items()}
    if not any(name.startswith("base_encoder.") for name in named):
        raise ConfigError(f"{path} has no base_encoder: it is not a pre-training checkpoint of the MoCo v3 release")
    return named, {key: value for key, value in state.items() if key != "state_dict"}


def to_ours(weights: Weights) -> Weights:
    """Rename official parameters to those of `stabilitylab.methods.mocov3.MoCoV3`."""
    ours = {}
    for name, value in weights.items():
        encoder, _, rest = name.partition(".")
        first, _, inner = rest.partition(".")
        if encoder in _ENCODERS and first in _LAST:
            ours[f"{_HEADS[encoder]}.{inner}"] = value
        else:
            ours[name] = value
    return ours


def to_timm(weights: Weights, encoder: str = "base_encoder") -> Weights:
    """Only the backbone, with timm's names. ``weights`` are from a run or from the release."""
    prefix = f"{encoder}."
    inner = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    if not inner:
        raise ConfigError(f"there is no {encoder} in this checkpoint")
    return {name: value for name, value in inner.items() if name.partition(".")[0] not in _LAST}


def configuration(weights: Weights, extra: Mapping[str, Any], data: str) -> Config:
    """The configuration of the checkpoint's model: the authors' recipe with the sizes inferred from its tensors."""
    ours = to_ours(weights)
    arch = str(extra.get("arch", ""))
    heads = {"hidden_dim": ours["projector.0.weight"].shape[0], "out_dim": _last(ours, "projector").shape[0]}
    values: dict[str, Any] = {"data": {"name": data}, "method": {"name": "mocov3", **heads}}
    if "base_encoder.cls_token" in ours:
        values["model"] = _vit(ours, arch)
    elif arch in ("", "resnet50") and "base_encoder.layer4.2.conv3.weight" in ours:
        values["model"] = {"arch": "resnet50"}
    else:
        raise ConfigError(f"arch {arch!r} is not supported; use vit_*, vit_conv_* or resnet50")
    return resolve(values)


def _vit(ours: Weights, arch: str) -> dict[str, Any]:
    dim = ours["base_encoder.cls_token"].shape[-1]
    depth = 1 + max(int(name.split(".")[2]) for name in ours if name.startswith("base_encoder.blocks."))
    patch = ours.get("base_encoder.patch_embed.proj.weight")
    side = math.isqrt(ours["base_encoder.pos_embed"].shape[1] - 1)
    size = int(patch.shape[-1]) if patch is not None else 16  # the release's conv stem supports only 16
    known = arch.replace("conv_", "")
    name = known if known in VIT_SIZES else next((n for n, (d, _, _) in VIT_SIZES.items() if d == dim), "vit_small")
    model = {"arch": name, "patch_size": size, "img_size": side * size, "stem": "conv" if patch is None else "patch"}
    built = VIT_SIZES[name]
    model |= {} if built[0] == dim else {"embed_dim": dim}
    return model | {"depth": depth}


def _last(weights: Weights, head: str) -> Tensor:
    """The weight of the last linear layer of a head."""
    matrices = [value for name, value in weights.items() if name.startswith(f"{head}.") and value.ndim == 2]
    if not matrices:
        raise ConfigError(f"the checkpoint has no {head}: only complete pre-training checkpoints can be imported")
    return matrices[-1]
