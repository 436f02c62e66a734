"""A checkpoint made with the official release's names, brought over and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from click.testing import CliRunner
from PIL import Image

from stabilitylab.cli import cli
from stabilitylab.errors import ConfigError
from stabilitylab.store.reader import open_run
from stabilitylab.train.checkpoint import load_checkpoint
from stabilitylab.train.official import read_official, to_timm

DIM, HIDDEN, OUT = 384, 20, 10


def head(prefix: str, width: int, layers: int) -> dict[str, torch.Tensor]:
    """An MLP as ``moco/builder.py`` numbers it: linear, BN, ReLU, ... and a last BN without affine parameters."""
    found = {}
    for i in range(layers):
        last = i == layers - 1
        rows, columns = (OUT if last else HIDDEN), (width if i == 0 else HIDDEN)
        found[f"{prefix}.{3 * i}.weight"] = torch.randn(rows, columns)
        bn = f"{prefix}.{3 * i + 1}"
        if not last:
            found |= {f"{bn}.weight": torch.ones(rows), f"{bn}.bias": torch.zeros(rows)}
        found |= {f"{bn}.running_mean": torch.zeros(rows), f"{bn}.running_var": torch.ones(rows)}
        found[f"{bn}.num_batches_tracked"] = torch.tensor(7)
    return found


def official(path: Path, model: torch.nn.Module, arch: str, last: str) -> dict[str, torch.Tensor]:
    """``model`` (timm's, whose names the release shares) as both encoders of a checkpoint of the release."""
    weights = {name: torch.randn_like(w) if w.is_floating_point() else w for name, w in model.state_dict().items()}
    state = {}
    for encoder in ("base_encoder", "momentum_encoder"):
        state |= {f"module.{encoder}.{name}": value for name, value in weights.items()}
        width = model.num_features
        state |= head(f"module.{encoder}.{last}", int(width), 3 if last == "head" else 2)
    state |= head("module.predictor", OUT, 2)
    if last == "fc":  # the ResNet's predictor has no last BN
        state = {k: v for k, v in state.items() if not k.startswith("module.predictor.4")}
    torch.save({"epoch": 300, "arch": arch, "state_dict": state, "optimizer": {}, "scaler": {}}, path)
    return weights


def vit() -> torch.nn.Module:
    return timm.create_model(
        "vit_small_patch16_224", num_classes=0, img_size=32, depth=2, num_heads=12, embed_dim=DIM, pretrained=False
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        for label in ("a", "b"):
            place = tmp_path / "images" / split / label
            place.mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (40, 40), (60 * i, 20, 200 if label == "a" else 0)).save(place / f"{i}.png")
    return tmp_path / "images"


def run(*arguments: str) -> str:
    done = CliRunner().invoke(cli, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("arch", ["vit_small", "resnet50"])
def test_the_run_holds_the_official_weights_and_can_be_probed(tmp_path: Path, folder: Path, arch: str) -> None:
    torch.manual_seed(0)
    source = tmp_path / "official.pth.tar"
    model = vit() if arch == "vit_small" else timm.create_model("resnet50", num_classes=0, pretrained=False)
    weights = official(source, model, arch, "head" if arch == "vit_small" else "fc")
    place = ["--runs-dir", str(tmp_path / "runs")]
    run("convert", str(source), "--data", f"imagefolder:{folder}", "--name", "moco", *place)
    state = load_checkpoint(tmp_path / "runs" / "moco" / "checkpoints")["method"]
    for name, value in weights.items():
        assert torch.equal(state[f"base_encoder.{name}"], value)
        assert torch.equal(state[f"momentum_encoder.{name}"], value)
    read = read_official(source)[0]
    last = "head" if arch == "vit_small" else "fc"
    assert torch.equal(state["projector.0.weight"], read[f"base_encoder.{last}.0.weight"])
    assert torch.equal(state["momentum_projector.3.weight"], read[f"momentum_encoder.{last}.3.weight"])
    assert torch.equal(state["predictor.3.weight"], read["predictor.3.weight"])
    with open_run(tmp_path / "runs" / "moco") as reader:
        assert reader.status == "finished"
        model_section = reader.config["model"]
        assert (model_section["arch"], reader.config["method"]["hidden_dim"]) == (arch, HIDDEN)
    if arch == "vit_small":
        out = run("probe", "moco", "--knn", *place, "--device", "cpu")
        assert out.startswith("knn_top1")


def test_timms_format_is_what_timm_loads(tmp_path: Path, folder: Path) -> None:
    torch.manual_seed(0)
    source, out = tmp_path / "official.pth.tar", tmp_path / "vit.pth"
    weights = official(source, vit(), "vit_small", "head")
    assert run("convert", str(source), "-o", str(out)) == f"{out}: {len(weights)} tensors\n"
    loaded = vit()
    loaded.load_state_dict(torch.load(out))
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in weights.items())
    # From a run, too; and what exists is not overwritten.
    place = ["--runs-dir", str(tmp_path / "runs")]
    run("convert", str(source), "--data", f"imagefolder:{folder}", "--name", "moco", *place)
    run("convert", "moco", "-o", str(tmp_path / "again.pth"), "--momentum", *place)
    again = torch.load(tmp_path / "again.pth")
    assert again.keys() == weights.keys()
    with pytest.raises(ConfigError, match="already exists"):
        run("convert", "moco", "-o", str(out), *place)


def test_what_is_no_official_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ConfigError, match=r"x\.pth is not a PyTorch checkpoint"):
        read_official(path)
    torch.save({"model": {}}, path)
    with pytest.raises(ConfigError, match="has no state_dict of tensors"):
        read_official(path)
    torch.save({"state_dict": {"module.conv1.weight": torch.ones(1)}}, path)
    with pytest.raises(ConfigError, match="has no base_encoder"):
        read_official(path)
    with pytest.raises(ConfigError, match="no momentum_encoder in this checkpoint"):
        to_timm({"base_encoder.x": torch.ones(1)}, "momentum_encoder")
