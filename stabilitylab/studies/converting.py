"""Convert an official checkpoint to a run, and the weights of a run to a file for timm."""

from __future__ import annotations

from pathlib import Path

from stabilitylab.config import from_dict, read_run_config
from stabilitylab.errors import ConfigError
from stabilitylab.run.provenance import provenance
from stabilitylab.store.location import claim_run
from stabilitylab.store.writer import LayerRow, RunWriter


def official_to_run(source: Path, root: Path, data: str, name: str | None = None) -> Path:
    """Convert an official MoCo v3 checkpoint to a finished run with one checkpoint, for ``stablab probe``. Returns its
    folder.

    The run has no gradients and a fresh optimizer state. Raises ConfigError if a tensor does not fit the model.
    """
    import torch

    from stabilitylab.methods import build_method
    from stabilitylab.methods.base import Method
    from stabilitylab.models.layers import group_layers
    from stabilitylab.train.checkpoint import make_checkpoint, restore_method, save_checkpoint
    from stabilitylab.train.mitigations.applied import AppliedMitigations
    from stabilitylab.train.official import configuration, read_official, to_ours
    from stabilitylab.train.optim import build_optimizer

    weights, extra = read_official(source)
    config = configuration(weights, extra, data)
    method = build_method(config, channels=3)
    assert isinstance(method, Method)
    AppliedMitigations(method, config.mitigation)
    restore_method({"method": to_ours(weights)}, method)
    epoch = int(extra.get("epoch", 0))
    optimizer = build_optimizer(method.parameters(), config.optim)
    state = make_checkpoint(0, method, optimizer, torch.amp.GradScaler("cpu", enabled=False))
    layers = group_layers(method, config.record.granularity)
    run_dir = claim_run(root, name)
    (run_dir / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    rows = [LayerRow(i, x.name, x.depth, x.num_params, x.trainable) for i, x in enumerate(layers)]
    meta = provenance() | {"seed": str(config.train.seed), "source": source.name}
    with RunWriter.create(run_dir, config=config.model_dump(mode="json"), meta=meta, layers=rows) as writer:
        writer.event(0, "converted", f"weights of {source.name}, epoch {epoch} of the official release")
        save_checkpoint(run_dir / "checkpoints", state, keep=1)
        writer.close("finished")
    return run_dir


def to_timm_file(source: Path, out: Path, encoder: str = "base_encoder") -> int:
    """Write the backbone of a run's last checkpoint, or of an official checkpoint, as a state dict with timm's names.
    Returns the number of tensors. Raises ConfigError if ``out`` exists."""
    import torch

    from stabilitylab.train.checkpoint import load_checkpoint
    from stabilitylab.train.official import read_official, to_timm

    if out.exists():
        raise ConfigError(f"{out} already exists; choose another file")
    if source.is_dir():
        config = from_dict(read_run_config(source))
        weights = load_checkpoint(source / "checkpoints")["method"]
        if config.mitigation and any(".parametrizations." in name for name in weights):
            raise ConfigError(f"run {source.name} has a weight-normalised projection, which timm does not support")
    else:
        weights, _ = read_official(source)
    converted = to_timm(weights, encoder)
    try:
        with out.open("xb") as file:
            torch.save(converted, file)
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror}") from None
    return len(converted)
