"""What a run is: frozen, checked once, TOML in and out. Every rule about a value lives here.

A configuration is layered: the recipe of the data set, then a file, then flags. `resolve` does that.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator


class ConfigError(ValueError):
    """Bad input from the user: one line that says what, where and what is allowed."""


def check_choice(kind: str, name: str, choices: Iterable[str]) -> str:
    """Return ``name`` if it is one of ``choices``; else raise ConfigError with the nearest valid names."""
    known = sorted(choices)
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known
    raise ConfigError(f"unknown {kind} {name!r}; did you mean {' or '.join(near[:8])}? Known: {', '.join(known)}")


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(Section):
    name: str = Field("digits", description="digits | fashion-mnist:DIR | imagefolder:DIR")
    views: Literal["photo", "grey"] = Field("grey", description="augmentation pipeline")
    crop_min: float = Field(0.3, gt=0, le=1, description="smallest area of a random crop")
    workers: int = Field(0, ge=0, description="processes that decode images")

    @property
    def kind(self) -> str:
        return self.name.partition(":")[0]

    @property
    def folder(self) -> str:
        return self.name.partition(":")[2]


# Width, depth and heads. The paper's ViT-S has 12 heads (PAPER, Implementation); tiny and huge are timm's.
VIT_SIZES: dict[str, tuple[int, int, int]] = {
    "vit_nano": (64, 4, 4),
    "vit_tiny": (192, 12, 3),
    "vit_small": (384, 12, 12),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
    "vit_huge": (1280, 32, 16),
}
RESNETS = ("resnet18", "resnet50")
_ARCH = re.compile(r"(?P<family>.+?)(?:_patch(?P<patch>\d+)(?:_(?P<img>\d+))?)?")


class ModelConfig(Section):
    arch: str = Field("vit_nano", description="vit_{nano,tiny,small,base,large,huge}[_patchP[_SIZE]] or resnet18/50")
    img_size: int = Field(16, ge=4, description="side of the square input, pixels")
    patch_size: int = Field(4, ge=1, description="side of a patch, pixels")
    embed_dim: int | None = Field(None, ge=8, description="overrides the arch's width")
    depth: int | None = Field(None, ge=1, description="overrides the arch's number of blocks")
    num_heads: int | None = Field(None, ge=1, description="overrides the arch's attention heads")
    pos_embed: Literal["sincos", "learned", "none"] = "sincos"
    pool: Literal["cls", "avg_ln", "avg"] = Field("cls", description="class token, LN + average, average without LN")
    mlp_norm: Literal["ln", "bn"] = Field("ln", description="norm in the MLP blocks; bn is the paper's ViT-BN")

    @field_validator("arch")
    @classmethod
    def _known_arch(cls, arch: str) -> str:
        check_choice("arch", arch, (*VIT_SIZES, *RESNETS))
        return arch

    @model_validator(mode="after")
    def _fits(self) -> ModelConfig:
        if not self.is_vit:
            return self
        dim, _, heads = self.vit_size
        if self.img_size % self.patch_size:
            raise ValueError(f"patch_size {self.patch_size} does not divide img_size {self.img_size}")
        if dim % heads:
            raise ValueError(f"num_heads {heads} does not divide embed_dim {dim}")
        if self.pos_embed == "sincos" and dim % 4:
            raise ValueError(f"the sin-cos position embedding needs embed_dim divisible by 4, not {dim}")
        return self

    @property
    def is_vit(self) -> bool:
        return self.arch in VIT_SIZES

    @property
    def vit_size(self) -> tuple[int, int, int]:
        """Width, depth, heads."""
        dim, depth, heads = VIT_SIZES[self.arch]
        return self.embed_dim or dim, self.depth or depth, self.num_heads or heads


class MethodConfig(Section):
    name: str = "mocov3"
    temperature: float = Field(0.2, gt=0)
    ema_momentum: float = Field(0.99, ge=0, le=1, description="momentum of the momentum encoder at iteration 0")
    ema_schedule: Literal["cosine", "constant"] = Field("cosine", description="cosine rises to 1 over training")
    hidden_dim: int = Field(256, ge=1, description="width of the heads (the paper: 4096)")
    out_dim: int = Field(64, ge=1, description="width of the embedding (the paper: 256)")
    predictor: bool = True
    head_bn: bool = Field(True, description="BatchNorm in the heads")


class OptimConfig(Section):
    name: str = "adamw"
    base_lr: float = Field(4e-3, ge=0, description="lr = base_lr x batch_size / 256")
    weight_decay: float = Field(0.1, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    warmup_iterations: int | None = Field(None, ge=0)
    warmup_epochs: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _one_warmup(self) -> OptimConfig:
        if self.warmup_iterations is not None and self.warmup_epochs is not None:
            raise ValueError("give warmup_iterations or warmup_epochs, not both")
        return self


class TrainConfig(Section):
    iterations: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0)
    batch_size: int = Field(128, ge=2, description="total over all devices")
    seed: int = Field(0, ge=0)
    amp: Literal["off", "bf16", "fp16"] = "off"
    device: str = Field("auto", description="auto | cpu | cuda | mps")
    on_nan: Literal["stop", "continue"] = Field("stop", description="what a non-finite loss does")
    checkpoint_every: int = Field(0, ge=0, description="iterations between checkpoints; 0: only the last")

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if (self.iterations is None) == (self.epochs is None):
            raise ValueError("give exactly one of iterations and epochs")
        return self


class RecordConfig(Section):
    log_grads: bool = False
    granularity: Literal["param", "module", "block"] = "block"
    every: int = Field(1, ge=1, description="record each how many iterations")
    flush_every: int = Field(200, ge=1, description="iterations kept in memory, at most")
    flush_seconds: float = Field(5.0, gt=0, description="seconds kept in memory, at most")


class EvalConfig(Section):
    knn_every: int = Field(10, ge=0, description="iterations between kNN evaluations; 0: never")
    knn_k: int = Field(20, ge=1)
    knn_temperature: float = Field(0.07, gt=0)


class Config(Section):
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    method: MethodConfig = MethodConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig
    record: RecordConfig = RecordConfig()
    eval: EvalConfig = EvalConfig()
    mitigation: tuple[str, ...] = ()

    def to_toml(self) -> str:
        """The configuration as TOML; ``load_toml`` reads it back to an equal one."""
        top, tables = [], []
        for key, value in self.model_dump(exclude_none=True).items():
            if isinstance(value, dict):
                tables.append("\n".join([f"[{key}]", *(f"{k} = {_toml(v)}" for k, v in value.items())]))
            else:
                top.append(f"{key} = {_toml(value)}")
        return "\n\n".join([*top, *tables]) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda m: f"\\u{ord(m[0]):04x}", escaped) + '"'
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return repr(value)


def read_toml(path: str | Path) -> dict[str, Any]:
    """A configuration file as nested dicts; ConfigError names the file and the line."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read configuration {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def recipes() -> dict[str, Path]:
    """Kind of data -> the file with its starting values. Adding a file adds a kind."""
    folder = Path(str(resources.files("stabilitylab"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def parse_override(text: str) -> tuple[list[str], Any]:
    """``optim.base_lr=1e-3`` -> (["optim", "base_lr"], 0.001). A bare word is a string."""
    key, equals, raw = text.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise ConfigError(f"--set {text!r} is not of the form section.key=value, e.g. optim.base_lr=1e-3")
    try:
        return path, tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return path, raw.strip()


def set_key(values: dict[str, Any], path: list[str], value: Any) -> None:
    """Set a nested key in place."""
    for part in path[:-1]:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{'.'.join(path)}: {part} is a value, not a section")
    values[path[-1]] = value


# Two ways to say one thing: a later layer that says one drops what an earlier layer said with the other.
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
    """``vit_small_patch16_224`` also says patch_size 16 and img_size 224, for its own layer."""
    model = layer.get("model")
    if not isinstance(model, Mapping) or not isinstance(model.get("arch"), str):
        return layer
    match = _ARCH.fullmatch(model["arch"])
    if match is None or not match["patch"]:
        return layer
    sizes = {key: int(text) for key, text in (("patch_size", match["patch"]), ("img_size", match["img"])) if text}
    for key, size in sizes.items():
        if model.get(key, size) != size:
            raise ConfigError(f"model.arch {model['arch']!r} says {key} {size}, but {key} = {model[key]} is given too")
    return {**layer, "model": {**model, "arch": match["family"], **sizes}}


def resolve(*layers: Mapping[str, Any]) -> Config:
    """Merge the data set's recipe and ``layers``, later ones winning, and check the result."""
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = _merge(merged, _sizes_from_arch(layer))
    section = merged.get("data", {})
    data = section.get("name", "digits") if isinstance(section, Mapping) else "digits"
    kind = check_choice("data", str(data).partition(":")[0], recipes())
    return from_dict(_merge(read_toml(recipes()[kind]), merged))


def from_dict(values: Mapping[str, Any]) -> Config:
    """Check a complete configuration. ConfigError names the field, its value and what is allowed."""
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
        near = difflib.get_close_matches(str(item["loc"][-1]), known, n=2) or sorted(known)
        return f"unknown key {field}; did you mean {' or '.join(near)}?"
    message = item["msg"][0].lower() + item["msg"][1:]
    return f"{field} = {item['input']!r}: {message}"
