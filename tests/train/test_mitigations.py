"""Each mitigation does exactly what is documented and nothing else."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stabilitylab.config import Config, resolve
from stabilitylab.errors import ConfigError
from stabilitylab.methods.base import Method
from stabilitylab.store.reader import open_run
from stabilitylab.studies import probe_run, resume_run, train_run
from stabilitylab.train.checkpoint import load_checkpoint
from stabilitylab.train.mitigations import MITIGATIONS, configured, parse_mitigations
from stabilitylab.train.mitigations.applied import AppliedMitigations, build_mitigated

CPU = torch.device("cpu")
PROJECTION = {"base_encoder.patch_embed.proj.weight", "base_encoder.patch_embed.proj.bias"}
EXAMPLES = {"T": "0.01", "B": "0.95", "N": "80"}
ALL = [f"{name}:{EXAMPLES[entry.value]}" if entry.value else name for name, entry in MITIGATIONS.items()]


def config_with(*names: str, **sections: dict[str, Any]) -> Config:
    tiny = {"model": {"embed_dim": 16, "depth": 1, "num_heads": 2}, "method": {"hidden_dim": 16, "out_dim": 8}}
    return resolve(tiny, {"mitigation": list(names), **sections})


def method_with(*names: str) -> tuple[Method, AppliedMitigations]:
    torch.manual_seed(0)
    return build_mitigated(configured(config_with(*names)), 1, CPU)


def with_gradients(*names: str) -> tuple[Method, AppliedMitigations]:
    method, applied = method_with(*names)
    for p in method.parameters():
        p.grad = torch.randn_like(p) if p.requires_grad else None
    return method, applied


def gradients(method: Method) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}


def norm(values: list[torch.Tensor]) -> float:
    return torch.cat([v.flatten() for v in values]).norm().item()


def events(run: Path, kind: str) -> list[str]:
    with open_run(run) as reader:
        return [e.detail for e in reader.events() if e.kind == kind]


def short(tmp_path: Path, *names: str, **sections: dict[str, Any]) -> Path:
    train = {"iterations": 6, "batch_size": 32, "device": "cpu"} | sections.pop("train", {})
    values = {"train": train, "record": {"log_grads": True}, "eval": {"knn_every": 0}, **sections}
    return train_run(config_with(*names, **values), tmp_path).path


# --- on the model -----------------------------------------------------------------------------------------


def test_frozen_patch_freezes_weight_and_bias_of_the_projection_and_nothing_else() -> None:
    before = {name for name, p in method_with()[0].named_parameters() if p.requires_grad}
    after = {name for name, p in method_with("frozen-patch")[0].named_parameters() if p.requires_grad}
    assert before - after == PROJECTION
    assert after < before


def test_a_frozen_projection_is_bit_identical_after_training_and_its_gradient_is_absent(tmp_path: Path) -> None:
    run = short(tmp_path, "frozen-patch")
    trained, start = load_checkpoint(run / "checkpoints")["method"], method_with("frozen-patch")[0].state_dict()
    assert all(torch.equal(trained[name], start[name]) for name in PROJECTION)
    assert not torch.equal(*(weights["base_encoder.blocks.0.attn.qkv.weight"] for weights in (trained, start)))
    with open_run(run) as reader:
        row = next(layer for layer in reader.layers() if layer.name == "patch_embed")
        assert not row.trainable
        assert reader.query(f"select count(*) from layer_stats where layer_id = {row.layer_id}").fetchone() == (0,)
        assert len(reader.layer_series()) == len(reader.layers()) - 1


def test_bn_patch_normalises_the_projected_patches_of_both_encoders() -> None:
    method, _ = method_with("bn-patch")
    images = torch.randn(16, 1, 16, 16) * 7 + 3
    for encoder, trained in ((method.base_encoder, True), (method.momentum_encoder, False)):
        encoder.train()  # type: ignore[operator]
        patches = encoder.patch_embed(images).flatten(0, 1)  # type: ignore[operator,union-attr]
        torch.testing.assert_close(patches.mean(0), torch.zeros(16), atol=1e-4, rtol=0)
        torch.testing.assert_close(patches.std(0, correction=0), torch.ones(16), atol=1e-2, rtol=0)
        assert {p.requires_grad for p in encoder.patch_embed.norm.parameters()} == {trained}  # type: ignore[union-attr]
    plain = {name for name, _ in method_with()[0].named_parameters()}
    added = {name for name, _ in method.named_parameters()} - plain
    assert added == {f"{e}_encoder.patch_embed.norm.bn.{p}" for e in ("base", "momentum") for p in ("weight", "bias")}


def test_wn_patch_splits_length_from_direction_and_starts_as_the_same_function() -> None:
    plain, (method, _) = method_with()[0], method_with("wn-patch")
    images = torch.randn(4, 1, 16, 16)
    torch.testing.assert_close(method.base_encoder(images), plain.base_encoder(images))
    projection = method.base_encoder.patch_embed.proj  # type: ignore[union-attr]
    g, v = (getattr(projection.parametrizations.weight, f"original{i}") for i in range(2))  # type: ignore[union-attr]
    assert g.shape == (16, 1, 1, 1)
    with torch.no_grad():
        v *= 3  # a direction's length is nothing
    torch.testing.assert_close(method.base_encoder(images), plain.base_encoder(images))
    grads = {name: p.requires_grad for name, p in method.named_parameters() if "parametrizations" in name}
    assert all(trained == name.startswith("base_") for name, trained in grads.items())
    assert len(grads) == 4


# --- on the gradient --------------------------------------------------------------------------------------


def test_clip_patch_scales_the_projection_to_the_threshold_and_nothing_else() -> None:
    method, applied = with_gradients("clip-patch:0.01")
    before = gradients(method)
    assert applied.before_update(0)
    after = gradients(method)
    assert norm([after[name] for name in PROJECTION]) == pytest.approx(0.01, rel=1e-3)
    assert all(torch.equal(before[name], after[name]) for name in before if name not in PROJECTION)


def test_clip_global_scales_all_gradients_alike() -> None:
    method, applied = with_gradients("clip-global:1")
    before = gradients(method)
    applied.before_update(0)
    after = gradients(method)
    for name, g in before.items():
        torch.testing.assert_close(after[name], g / (norm(list(before.values())) + 1e-6), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("text", ["clip-patch:1e9", "clip-global:1e9", "agc:1e9", "zclip"])
def test_a_clip_that_is_not_reached_changes_no_bit_and_tells_nothing(text: str) -> None:
    method, applied = with_gradients(text)
    before = gradients(method)
    applied.before_update(0)
    assert all(torch.equal(before[name], g) for name, g in gradients(method).items())
    told: list[Any] = []
    applied.report(lambda *what: told.append(what))
    assert told == []


def test_agc_clips_each_output_unit_to_its_weight_norm() -> None:
    method, applied = with_gradients("agc:0.05")
    before = gradients(method)
    applied.before_update(0)
    after = gradients(method)
    clipped = 0
    for name, p in method.named_parameters():
        if name not in before:
            continue
        # Row by row for matrices and kernels, whole for vectors; weights count as at least 1e-3 long.
        units = range(len(p)) if p.ndim > 1 else [...]
        for unit in units:
            g, limit = before[name][unit], 0.05 * max(p[unit].norm().item(), 1e-3)
            expected = g * limit / g.norm() if g.norm() >= limit else g
            clipped += bool(g.norm() >= limit)
            torch.testing.assert_close(after[name][unit], expected, rtol=1e-5, atol=1e-8)
    assert clipped > 10


def test_zclip_against_its_formula() -> None:
    """Scalar by scalar: watch 25 norms, then bring z > 2.5 down to 2.5^2 / z standard deviations. The first norms are
    huge, as a training's are; the spikes after them are found nevertheless."""
    method, applied = with_gradients("zclip")
    start = gradients(method)
    size = norm(list(start.values()))
    norms = 1 + 0.1 * np.random.default_rng(0).standard_normal(60)
    norms[:4] = [120, 100, 30, 12]
    norms[[10, 40, 50]] = 5.0
    mean = float(np.median(norms[:25]))
    variance = (1.4826 * float(np.median(np.abs(norms[:25] - mean)))) ** 2
    clipped = []
    for t, wanted in enumerate(norms):
        for name, p in method.named_parameters():
            if name in start:
                p.grad = start[name] * (wanted / size)
        applied.before_update(t)
        z = (wanted - mean) / max(math.sqrt(variance), 1e-12)
        left = wanted
        if t >= 25 and z > 2.5:
            left = mean + 2.5**2 / z * math.sqrt(variance)
            clipped.append(t)
        assert norm(list(gradients(method).values())) == pytest.approx(left, rel=1e-4)
        if t < 25:
            continue
        mean = 0.97 * mean + 0.03 * left
        variance = 0.97 * variance + 0.03 * (left - mean) ** 2
    assert 10 not in clipped
    assert {40, 50} <= set(clipped)
    told: list[Any] = []
    applied.report(lambda *what: told.append(what))
    assert told[0][:2] == (59, "clip")
    assert told[0][2].startswith(f"zclip clipped {len(clipped)} of 60 updates from iteration 0, at most to 0.")


def test_a_gradient_that_is_not_finite_does_not_poison_zclip() -> None:
    """Neither among the norms it begins with nor after them."""
    method, applied = with_gradients("zclip")
    whole = method.base_encoder.cls_token.grad.clone()  # type: ignore[union-attr]
    for t in range(30):
        method.base_encoder.cls_token.grad.copy_(whole if t not in (3, 27) else torch.full_like(whole, torch.nan))  # type: ignore[union-attr]
        applied.before_update(t)
    assert applied.states["zclip"].keys() == {"mean", "variance"}
    assert all(bool(v.isfinite()) for v in applied.states["zclip"].values())


# --- on the update ----------------------------------------------------------------------------------------


def test_skip_spike_skips_what_is_thrice_the_median_and_touches_no_gradient() -> None:
    method, applied = with_gradients("skip-spike")
    start = gradients(method)
    size = norm(list(start.values()))
    norms = np.ones(200)
    norms[10] = 9.0  # in the warm-up: nothing to compare with yet
    norms[[30, 31]] = 3.5
    norms[50] = 2.9
    norms[60] = np.nan
    norms[100:] = 10.0  # a new level: it goes on after half a window
    went_on = []
    for t, wanted in enumerate(norms):
        for name, p in method.named_parameters():
            if name in start:
                p.grad = start[name] * (wanted / size)
        before = gradients(method)
        went_on.append(applied.before_update(t))
        assert all(torch.equal(before[name], g) or np.isnan(wanted) for name, g in gradients(method).items())
    skipped = [t for t, on in enumerate(went_on) if not on]
    assert skipped[:3] == [30, 31, 60]
    assert skipped[3] == 100
    assert 140 < skipped[-1] < 160
    told: list[Any] = []
    applied.report(lambda *what: told.append(what))
    assert told[0][1] == "skip"
    assert f"skipped {len(skipped)} of 200 updates from iteration 0: 30, 31, 60, 100, 101" in told[0][2]


def test_a_skipped_update_leaves_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stabilitylab.train.mitigations import update

    monkeypatch.setattr(update, "SPIKE_WARMUP", 2)
    monkeypatch.setattr(update, "SPIKE_RATIO", 1e-6)  # from the third on each is a spike
    run = short(tmp_path, "skip-spike", optim={"warmup_iterations": 0})
    assert events(run, "skip") == ["skip-spike skipped 4 of 6 updates from iteration 0: 2, 3, 4, 5"]
    two = short(tmp_path, optim={"warmup_iterations": 0}, train={"checkpoint_every": 2, "checkpoint_keep": 9})
    skipped = load_checkpoint(run / "checkpoints")["method"]
    straight = torch.load(two / "checkpoints" / "iteration-000002.pt", weights_only=True)["method"]
    online = [name for name in straight if name.startswith("base_") and "num_batches" not in name]
    assert all(torch.equal(skipped[name], straight[name]) for name in online)


# --- on the configuration ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "section", "changes"),
    [
        ("stable-adamw", "optim", {"name": "stableadamw"}),
        ("beta2:0.95", "optim", {"beta2": 0.95}),
        ("longer-warmup:80", "optim", {"warmup_iterations": 80}),
        ("conv-stem", "model", {"stem": "conv"}),
        ("qk-norm", "model", {"qk_norm": True}),
    ],
)
def test_another_configuration_and_nothing_else(text: str, section: str, changes: dict[str, Any]) -> None:
    config = config_with(text)
    expected = config.model_dump()
    assert any(expected[section][key] != value for key, value in changes.items())
    expected[section] |= changes
    assert configured(config).model_dump() == expected
    assert configured(configured(config)) == configured(config)


def test_qk_norm_normalises_queries_and_keys() -> None:
    block = method_with("qk-norm")[0].base_encoder.blocks[0]  # type: ignore[index,union-attr]
    assert isinstance(block.attn.q_norm, nn.LayerNorm)
    assert isinstance(block.attn.k_norm, nn.LayerNorm)
    plain = method_with()[0].base_encoder.blocks[0]  # type: ignore[index,union-attr]
    assert isinstance(plain.attn.q_norm, nn.Identity)


# --- together ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ALL)
def test_each_trains_is_recorded_and_is_probed(text: str, tmp_path: Path) -> None:
    run = short(tmp_path, text, train={"iterations": 2})
    assert events(run, "mitigation") == [text]
    with open_run(run) as reader:
        assert reader.config["mitigation"] == [text]
        assert np.isfinite(reader.table("iterations")["loss"]).all()
        names = [layer.name for layer in reader.layers()]
        assert not any(name.startswith("patch_embed.") for name in names) or text == "conv-stem"
    assert probe_run(run, shares=[], knn=True, epochs=1, batch_size=32)[0].value > 0


def test_they_compose(tmp_path: Path) -> None:
    run = short(tmp_path, "frozen-patch", "bn-patch", "wn-patch", "clip-global:0.01", "skip-spike", "beta2:0.9")
    assert len(events(run, "mitigation")) == 6
    assert events(run, "clip")[0].startswith("clip-global:0.01 clipped 6 of 6 updates from iteration 0, at most to")
    with open_run(run) as reader:
        assert reader.query("select max(grad_norm) > 0.01 from iterations").fetchone() == (True,)  # before clipping


def test_what_a_mitigation_remembers_survives_a_resume(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"optim": {"warmup_iterations": 0}}
    whole = short(tmp_path, "zclip", "skip-spike", train={"iterations": 8}, **settings)
    run = short(tmp_path, "zclip", "skip-spike", train={"iterations": 8, "checkpoint_every": 4}, **settings)
    (run / "checkpoints" / "iteration-000008.pt").unlink()
    resume_run(run)
    states = [load_checkpoint(path / "checkpoints")["mitigations"] for path in (whole, run)]
    assert len(states[0]["skip-spike"]["norms"]) == 8
    for name, state in states[0].items():
        for key, value in state.items():
            assert torch.equal(states[1][name][key], value)


def test_none_is_nothing() -> None:
    assert parse_mitigations(["none"]) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("frozen-pach", "unknown mitigation 'frozen-pach'; did you mean frozen-patch"),
        ("frozen-patch:3", "mitigation 'frozen-patch:3' must be written frozen-patch"),
        ("clip-patch", "mitigation 'clip-patch' must be written clip-patch:T"),
        ("clip-patch:much", "mitigation 'clip-patch:much': 'much' is not a positive number"),
        ("clip-patch:-1", "mitigation 'clip-patch:-1': '-1' is not a positive number"),
    ],
)
def test_bad_mitigations_are_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        parse_mitigations([text])


@pytest.mark.parametrize(
    ("names", "sections", "message"),
    [
        (["frozen-patch"], {"model": {"arch": "resnet18"}}, "'frozen-patch' needs a patch projection, and resnet18"),
        (["bn-patch"], {"model": {"stem": "conv"}}, "'bn-patch' needs a patch projection, and a conv stem has none"),
        (["clip-patch:1", "conv-stem"], {}, "'clip-patch:1' needs a patch projection, and a conv stem has none"),
        (["clip-patch:1", "frozen-patch"], {}, "'clip-patch' has nothing to clip"),
        (["conv-stem"], {"model": {"arch": "resnet18"}}, "'conv-stem' needs a ViT"),
        (["qk-norm"], {"model": {"arch": "resnet18"}}, "'qk-norm' needs attention"),
        (["stable-adamw"], {"optim": {"name": "lamb"}}, "'stable-adamw' replaces AdamW, but optim.name is lamb"),
        (["beta2:0.9"], {"optim": {"name": "lars"}}, "'beta2' needs a variant of Adam, but optim.name is lars"),
        (["beta2:1.5"], {}, "optim.beta2 = 1.5: input should be less than 1"),
        (["longer-warmup:10"], {}, "'longer-warmup:10' needs an integer of at least 50"),
        (["clip-patch:1", "clip-patch:2"], {}, "'clip-patch' is given twice"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_claimed(
    names: list[str], sections: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        train_run(resolve({"mitigation": names, **sections}), tmp_path)
    assert list(tmp_path.iterdir()) == []
