"""Merges recipe, file and flags into one validated `Config`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stabilitylab.config.sections import RESNETS, Config
from stabilitylab.datasets import DATASETS
from stabilitylab.errors import ConfigError
from stabilitylab.registry import hint

_ARCH = re.compile(r"(?P<family>.+?)(?:_patch(?P<patch>\d+)(?:_(?P<img>\d+))?)?")


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a configuration file as nested dicts. Raises ConfigError with the file and the line."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read configuration {path}: {error.strerror}") from None
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply for a configuration") from None
    except ValueError as error:  # invalid TOML, invalid UTF-8, or a number with thousands of digits
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def read_run_config(run_dir: Path) -> dict[str, Any]:
    """Read the configuration of a run that `stablab train` trained. Raises ConfigError if it was recorded otherwise."""
    if not (run_dir / "config.toml").is_file():
        raise ConfigError(f"run {run_dir.name} was not trained by `stablab train`, so it has no configuration")
    return read_toml(run_dir / "config.toml")


def recipes() -> dict[str, Path]:
    """Name of a data set -> the file with its default values. Adding a file adds a recipe."""
    folder = Path(str(resources.files("stabilitylab"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def parse_override(text: str) -> tuple[list[str], Any]:
    """Parse ``section.key=value``. The value is TOML; a bare word is a string.

    >>> parse_override("optim.base_lr=1e-3")
    (['optim', 'base_lr'], 0.001)
    """
    key, equals, raw = text.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise ConfigError(f"--set {text!r} is not of the form section.key=value, such as optim.base_lr=1e-3")
    try:
        return path, tomllib.loads(f"value = {raw}")["value"]
    except RecursionError:
        raise ConfigError(f"--set {'.'.join(path)}: the value is nested too deeply") from None
    except tomllib.TOMLDecodeError:
        return path, raw.strip()
    except ValueError as error:  # a number with thousands of digits
        raise ConfigError(f"--set {'.'.join(path)}: {error}") from None


def set_key(values: dict[str, Any], path: list[str], value: Any) -> None:
    """Set a nested key in place."""
    for part in path[:-1]:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{'.'.join(path)}: {part} is a value, not a section")
    values[path[-1]] = value


# Alternative keys for the same setting: setting one in a later layer removes the other from earlier layers.
_ALTERNATIVES = {"iterations": "epochs", "epochs": "iterations"} | {
    "warmup_iterations": "warmup_epochs",
    "warmup_epochs": "warmup_iterations",
}


def _merge(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        other = _ALTERNATIVES.get(key)
        if other is not None and other not in top:
            merged.pop(other, None)
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _sizes_from_arch(layer: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add the sizes in the name of an architecture: ``vit_small_patch16_224`` sets patch_size 16 and img_size 224."""
    model = layer.get("model")
    if not isinstance(model, Mapping) or not isinstance(model.get("arch"), str):
        return layer
    match = _ARCH.fullmatch(model["arch"])
    if match is None or not match["patch"]:
        return layer
    sizes = {key: int(text) for key, text in (("patch_size", match["patch"]), ("img_size", match["img"])) if text}
    for key, size in sizes.items():
        if model.get(key, size) != size:
            raise ConfigError(f"model.arch {model['arch']!r} implies {key} {size}, but {key} = {model[key]} is set too")
    return {**layer, "model": {**model, "arch": match["family"], **sizes}}


def _recipe(kind: str) -> dict[str, Any]:
    """The default values of a data set: its file, or for one of a plugin, its declared values on top of digits."""
    if kind in recipes():
        return read_toml(recipes()[kind])
    return _merge(read_toml(recipes()["digits"]), DATASETS.choose(kind).recipe)


def _overlays(kind: str, method: str, encoder: str) -> list[Path]:
    """The files merged over the recipe of a data set: for the method, for the encoder, for both. Data sets without
    their own folder use the folder ``small``."""
    folder = recipes()["digits"].parent / kind
    if not folder.is_dir():
        folder = folder.parent / "small"
    paths = [folder / f"{name}.toml" for name in (method, encoder, f"{method}-{encoder}")]
    return [path for path in paths if path.is_file()]


def _encoder(model: Any) -> str:
    """``resnet``, ``conv`` (a ViT with a conv stem) or ``vit``."""
    if not isinstance(model, Mapping):
        return "vit"
    if str(model.get("arch")) in RESNETS:
        return "resnet"
    return "conv" if model.get("stem") == "conv" else "vit"


def resolve(*layers: Mapping[str, Any]) -> Config:
    """Merge the recipe of the data set with ``layers`` and validate the result. Later layers take precedence.

    Raises:
        ConfigError: a value is invalid.

    >>> resolve({"optim": {"base_lr": 0.1}}).optim.base_lr
    0.1
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = _merge(merged, _sizes_from_arch(layer))
    section = merged.get("data", {})
    data = section.get("name", "digits") if isinstance(section, Mapping) else "digits"
    kind = str(data).partition(":")[0]
    recipe = _recipe(kind)
    chosen = merged.get("method", {})
    method = str(chosen.get("name", "mocov3")) if isinstance(chosen, Mapping) else "mocov3"
    for path in _overlays(kind, method, _encoder(merged.get("model"))):
        recipe = _merge(recipe, read_toml(path))
    return from_dict(_merge(recipe, merged))


def from_dict(values: Mapping[str, Any]) -> Config:
    """Validate a complete configuration. Raises ConfigError with the field, its value and the allowed values."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(item) for item in error.errors()[:3])) from None


def _explain(item: Any) -> str:
    field = ".".join(map(str, item["loc"])) or "configuration"
    cause = item.get("ctx", {}).get("error")
    if isinstance(cause, ValueError):
        return f"{field}: {cause}"
    if item["type"] == "extra_forbidden":
        section = Config.model_fields.get(str(item["loc"][0]))
        in_section = section is not None and len(item["loc"]) > 1
        known = section.annotation.model_fields if in_section else Config.model_fields  # type: ignore[union-attr]
        return f"unknown key {field}; {hint(str(item['loc'][-1]), sorted(known), n=2)}"
    message = item["msg"][0].lower() + item["msg"][1:]
    return f"{field} = {item['input']!r}: {message}"
