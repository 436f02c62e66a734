from __future__ import annotations

import pytest
import torch

from stabilitylab.config import ConfigError, resolve
from stabilitylab.methods import build_method
from stabilitylab.methods.base import Method
from stabilitylab.train.mitigations import AppliedMitigations, parse_mitigations


def method_with_gradients() -> Method:
    torch.manual_seed(0)
    method = build_method(resolve(), channels=1)
    assert isinstance(method, Method)
    for p in method.parameters():
        p.grad = torch.randn_like(p) if p.requires_grad else None
    return method


def gradients(method: Method) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}


def test_frozen_patch_freezes_weight_and_bias_of_the_projection_and_nothing_else() -> None:
    method = build_method(resolve(), channels=1)
    before = {name for name, p in method.named_parameters() if p.requires_grad}
    AppliedMitigations(method, ["frozen-patch"])
    after = {name for name, p in method.named_parameters() if p.requires_grad}
    assert before - after == {"base_encoder.patch_embed.proj.weight", "base_encoder.patch_embed.proj.bias"}
    assert after < before


def test_clip_patch_scales_the_projection_to_the_threshold_and_nothing_else() -> None:
    method = method_with_gradients()
    before = gradients(method)
    AppliedMitigations(method, ["clip-patch:0.01"]).before_update()
    after = gradients(method)
    projection = [name for name in before if ".patch_embed." in name]
    norm = torch.cat([after[name].flatten() for name in projection]).norm().item()
    assert norm == pytest.approx(0.01, rel=1e-3)
    assert all(torch.equal(before[name], after[name]) for name in before if name not in projection)


def test_clip_global_scales_all_gradients_alike() -> None:
    method = method_with_gradients()
    before = gradients(method)
    AppliedMitigations(method, ["clip-global:1"]).before_update()
    after = gradients(method)
    total = torch.cat([g.flatten() for g in before.values()]).norm()
    for name, g in before.items():
        torch.testing.assert_close(after[name], g / (total + 1e-6), rtol=1e-5, atol=1e-9)


def test_none_is_nothing() -> None:
    assert parse_mitigations(["none"]) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("frozen-pach", "unknown mitigation 'frozen-pach'; did you mean frozen-patch"),
        ("frozen-patch:3", "mitigation 'frozen-patch:3' is written frozen-patch"),
        ("clip-patch", "mitigation 'clip-patch' is written clip-patch:T"),
        ("clip-patch:much", "mitigation 'clip-patch:much': 'much' is not a positive number"),
        ("clip-patch:-1", "mitigation 'clip-patch:-1': '-1' is not a positive number"),
    ],
)
def test_bad_mitigations_are_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        parse_mitigations([text])
