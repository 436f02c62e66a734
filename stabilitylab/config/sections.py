"""The sections of a configuration, with all validation rules. Instances are frozen."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from stabilitylab.metrics import check_goal
from stabilitylab.registry import check_choice
from stabilitylab.signals import DEFAULT, SIGNALS


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(Section):
    name: str = Field("digits", description="digits | {fashion-mnist,cifar10,cifar100,stl10,imagefolder}:DIR")
    views: Literal["photo", "grey", "swav", "dino"] = Field("grey", description="augmentation pipeline")
    crop_min: float = Field(0.3, gt=0, le=1, description="smallest area of a random crop")
    local_crops: int = Field(0, ge=0, description="swav and dino: number of additional, smaller views")
    local_size: int | None = Field(None, ge=4, description="side of a local crop, pixels; default: half the image")
    local_crop: tuple[float, float] = Field((0.05, 0.14), description="area fractions of a local crop")
    on_bad_image: Literal["refuse", "skip"] = Field(
        "refuse", description="how to handle an image that cannot be decoded"
    )
    limit: int | None = Field(None, ge=2, description="use this many training images, the same ones in every run")
    skip: tuple[int, ...] = Field((), description="indices of training images to exclude; see train --skip-list")
    workers: int = Field(0, ge=0, description="processes that decode images")

    @field_validator("name")
    @classmethod
    def _absolute(cls, name: str) -> str:
        """Absolute, so a run can be resumed from any directory."""
        kind, colon, folder = name.partition(":")
        return f"{kind}:{Path(folder).expanduser().absolute()}" if colon and folder else name

    @field_validator("local_crop")
    @classmethod
    def _fractions(cls, local_crop: tuple[float, float]) -> tuple[float, float]:
        if not 0 < local_crop[0] <= local_crop[1] <= 1:
            raise ValueError(f"{local_crop} are not valid area fractions: 0 < smallest <= largest <= 1")
        return local_crop

    @field_validator("skip")
    @classmethod
    def _indices(cls, skip: tuple[int, ...]) -> tuple[int, ...]:
        negative = [index for index in skip if index < 0]
        if negative:
            raise ValueError(f"{negative[0]} is not the index of an image: indices start at 0")
        return tuple(sorted(set(skip)))

    @property
    def kind(self) -> str:
        return self.name.partition(":")[0]

    @property
    def folder(self) -> str:
        return self.name.partition(":")[2]


# Width, depth and heads. The paper's ViT-S has 12 heads (section Implementation); tiny and huge are those of timm.
VIT_SIZES: dict[str, tuple[int, int, int]] = {
    "vit_nano": (64, 4, 4),
    "vit_tiny": (192, 12, 3),
    "vit_small": (384, 12, 12),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
    "vit_huge": (1280, 32, 16),
}
RESNETS = ("resnet18", "resnet50")


class ModelConfig(Section):
    arch: str = Field("vit_nano", description="vit_{nano,tiny,small,base,large,huge}[_patchP[_SIZE]] or resnet18/50")
    img_size: int = Field(16, ge=4, description="side of the square input, pixels")
    patch_size: int = Field(4, ge=1, description="side of a patch, pixels")
    embed_dim: int | None = Field(None, ge=8, description="overrides the arch's width")
    depth: int | None = Field(None, ge=1, description="overrides the arch's number of blocks")
    num_heads: int | None = Field(None, ge=1, description="overrides the arch's attention heads")
    pos_embed: Literal["sincos", "learned", "none", "conv"] = Field(
        "sincos", description="conv: a depthwise 3x3 convolution on the tokens after the first block (CPVT)"
    )
    pool: Literal["cls", "avg_ln", "avg"] = Field("cls", description="class token, LN + average, average without LN")
    stem: Literal["patch", "conv"] = Field("patch", description="one patch projection, or stacked convolutions")
    mlp_norm: Literal["ln", "bn"] = Field("ln", description="norm in the MLP blocks; bn is the paper's ViT-BN")
    qk_norm: bool = Field(False, description="LayerNorm on queries and keys")

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
        if self.stem == "conv" and (self.patch_size & (self.patch_size - 1) or self.patch_size < 2):
            raise ValueError(f"the conv stem needs a patch_size that is a power of 2, not {self.patch_size}")
        if self.pos_embed == "sincos" and dim % 4:
            raise ValueError(f"the sin-cos position embedding needs embed_dim divisible by 4, not {dim}")
        return self

    @property
    def is_vit(self) -> bool:
        return self.arch in VIT_SIZES

    @property
    def vit_size(self) -> tuple[int, int, int]:
        """Width, depth and number of heads."""
        dim, depth, heads = VIT_SIZES[self.arch]
        if self.stem == "conv" and depth >= 12:
            depth -= 1  # the stem costs about as much as one block (arXiv 2106.14881; vit_conv_* of the authors)
        return self.embed_dim or dim, self.depth or depth, self.num_heads or heads


class MethodConfig(Section):
    name: str = "mocov3"
    temperature: float = Field(0.2, gt=0)
    ema_momentum: float = Field(0.99, ge=0, le=1, description="momentum of the momentum encoder at iteration 0")
    ema_schedule: Literal["cosine", "constant"] = Field("cosine", description="cosine rises to 1 over training")
    hidden_dim: int = Field(256, ge=1, description="width of the heads (the paper: 4096)")
    out_dim: int = Field(64, ge=1, description="width of the embedding (the paper: 256)")
    predictor: bool = True
    head_bn: bool = Field(True, description="BatchNorm in the heads (byol: in their hidden layers)")
    queue_size: int = Field(65536, ge=1, description="mocov2: keys in the queue")
    num_prototypes: int = Field(3000, ge=2, description="swav: clusters; dino: outputs of the last layer")
    sinkhorn_epsilon: float = Field(
        0.05, gt=0, description="swav: smoothness of the codes; lower it if the loss stays at log(prototypes)"
    )
    sinkhorn_iterations: int = Field(3, ge=1)
    freeze_prototypes_iterations: int = Field(
        0, ge=0, description="swav and dino: iterations for which the prototypes are frozen"
    )
    code_queue: int = Field(0, ge=0, description="swav: number of embeddings of earlier images used for the codes")
    code_queue_start: int = Field(0, ge=0, description="swav: iteration from which the queue is used")
    teacher_temperature: float = Field(0.04, gt=0, description="dino: temperature of the teacher after its warm-up")
    teacher_temperature_start: float = Field(0.04, gt=0, description="dino: temperature of the teacher at iteration 0")
    teacher_warmup_iterations: int = Field(0, ge=0, description="dino: linear warm-up of the teacher's temperature")
    center_momentum: float = Field(
        0.9, ge=0, le=1, description="dino: momentum of the running mean of the teacher's outputs"
    )
    variance_weight: float = Field(25.0, ge=0, description="vicreg")
    invariance_weight: float = Field(25.0, ge=0, description="vicreg")
    covariance_weight: float = Field(1.0, ge=0, description="vicreg")


OPTIMIZERS = ("adamw", "stableadamw", "lamb", "lars", "sgd")


class OptimConfig(Section):
    name: str = Field("adamw", description=" | ".join(OPTIMIZERS))
    base_lr: float = Field(4e-3, ge=0, description="lr = base_lr x batch_size / 256")
    weight_decay: float = Field(0.1, ge=0)
    weight_decay_end: float | None = Field(
        None, ge=0, description="weight decay at the end, reached by a half cosine; default: constant weight_decay"
    )
    decay: Literal["all", "matrices"] = Field("all", description="matrices: no decay of biases and norms")
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd and lars")
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    warmup_iterations: int | None = Field(None, ge=0)
    warmup_epochs: float | None = Field(None, ge=0)
    schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="learning rate after the warm-up: half a cosine to 0, or constant"
    )

    @field_validator("name")
    @classmethod
    def _known_optimizer(cls, name: str) -> str:
        return check_choice("optimizer", name, OPTIMIZERS)

    @model_validator(mode="after")
    def _one_warmup(self) -> OptimConfig:
        if self.warmup_iterations is not None and self.warmup_epochs is not None:
            raise ValueError("set warmup_iterations or warmup_epochs, not both")
        return self


class TrainConfig(Section):
    iterations: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0)
    batch_size: int = Field(128, ge=2, description="total over all devices")
    micro_batch: int | None = Field(None, ge=1, description="images per forward pass on a device; the loss stays exact")
    seed: int = Field(0, ge=0, lt=2**63)
    amp: Literal["off", "bf16", "fp16"] = "off"
    device: str = Field("auto", description="auto | cpu | cuda | mps")
    compile: bool = Field(False, description="torch.compile the encoders")
    deterministic: bool = Field(False, description="use only CUDA kernels that repeat to the last bit; slower")
    on_nan: Literal["stop", "skip", "continue"] = Field("stop", description="how to handle a non-finite loss")
    checkpoint_every: int = Field(500, ge=0, description="iterations between checkpoints; 0: only the last")
    checkpoint_keep: int = Field(2, ge=1, description="number of latest checkpoints to keep")
    keep_before_spikes: bool = Field(False, description="also keep checkpoints that precede a gradient spike")

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if (self.iterations is None) == (self.epochs is None):
            raise ValueError("set exactly one of iterations and epochs")
        return self


class RecordConfig(Section):
    log_grads: bool = False
    granularity: Literal["param", "module", "block"] = "block"
    signals: tuple[str, ...] = Field(
        (*DEFAULT, "weight_norm"), min_length=1, description="signals measured per layer; `stablab signals` lists them"
    )
    every: int = Field(1, ge=1, description="record every this many iterations")
    flush_every: int = Field(200, ge=1, description="maximum number of iterations kept in memory")
    flush_seconds: float = Field(5.0, gt=0, description="maximum number of seconds kept in memory")

    @field_validator("signals")
    @classmethod
    def _known_signals(cls, signals: tuple[str, ...]) -> tuple[str, ...]:
        for name in signals:
            SIGNALS.choose(name)
        return signals


class EvalConfig(Section):
    knn_every: int = Field(10, ge=0, description="iterations between kNN evaluations; 0: never")
    knn_bank: int | None = Field(None, ge=1, description="size of a fixed subset of training images; default: all")
    knn_queries: int | None = Field(None, ge=1, description="size of a fixed subset of held-out images; default: all")
    knn_k: int = Field(20, ge=1)
    knn_temperature: float = Field(0.07, gt=0)


class AnalysisConfig(Section):
    metric: str | None = Field(None, description="metric by which the run is judged; default: kNN accuracy")
    goal: Literal["max", "min"] | None = Field(None, description="whether higher or lower is better; default: by name")

    @model_validator(mode="after")
    def _agree(self) -> AnalysisConfig:
        if self.goal is not None and self.metric is None:
            raise ValueError("analysis.goal needs analysis.metric")
        if self.metric is not None:
            check_goal(self.metric, self.goal)
        return self


class Config(Section):
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    method: MethodConfig = MethodConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig
    record: RecordConfig = RecordConfig()
    eval: EvalConfig = EvalConfig()
    analysis: AnalysisConfig = AnalysisConfig()
    mitigation: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _local_crops_fit(self) -> Config:
        size, patch = self.data.local_size, self.model.patch_size
        if self.data.local_crops and self.model.is_vit and size is not None and size % patch:
            raise ValueError(f"data.local_size {size} is not a multiple of model.patch_size {patch}")
        return self

    @model_validator(mode="after")
    def _spikes_are_seen(self) -> Config:
        if self.train.keep_before_spikes and not (self.record.log_grads and self.train.checkpoint_every):
            raise ValueError("train.keep_before_spikes needs record.log_grads and train.checkpoint_every above 0")
        return self

    def to_toml(self) -> str:
        """The configuration as TOML. `from_dict` of the parsed text returns an equal configuration."""
        top, tables = [], []
        for key, value in self.model_dump(exclude_none=True).items():
            if isinstance(value, dict):
                tables += ["\n".join([f"[{key}]", *(f"{k} = {_toml(v)}" for k, v in value.items())])] if value else []
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
