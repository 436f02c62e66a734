"""The cut step: one MoCo v3 step against an independent one, and chunks against the whole batch."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stabilitylab.config import resolve
from stabilitylab.errors import ConfigError
from stabilitylab.methods import METHODS, build_method
from stabilitylab.methods.base import Method
from stabilitylab.train.distributed import World, describe, first_node
from stabilitylab.train.large_batch import CutStep


def double_method(name: str = "mocov3", **model: object) -> Method:
    values = {"model": {"embed_dim": 32, "depth": 2, **model}, "method": {"name": name, "hidden_dim": 48}}
    torch.manual_seed(0)
    method = build_method(resolve(values), channels=1)
    assert isinstance(method, Method)
    return method.double()


def batch(n: int = 12) -> list[Tensor]:
    return list(torch.randn(2, n, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))


def run(method: Method, micro_batch: int | None) -> tuple[float, dict[str, Tensor]]:
    step = CutStep(method, World(), micro_batch, contextlib.nullcontext)
    loss = step(batch()).item()
    return loss, {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}


def test_one_mocov3_step_against_an_independent_one() -> None:
    """Algorithm 1 with plain autograd: EMA tensor by tensor, each view through the encoder on its own."""
    method = double_method()
    naive = copy.deepcopy(method)
    for p in method.parameters():  # EMA must have something to do
        if p.requires_grad:
            p.data += 0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())).double()
    naive.load_state_dict(method.state_dict())
    views = batch()

    method.update_momentum_encoder(0.97)
    loss, grads = run(method, None)

    for ours, theirs in (("momentum_encoder", "base_encoder"), ("momentum_projector", "projector")):
        for k, q in zip(getattr(naive, ours).parameters(), getattr(naive, theirs).parameters(), strict=True):
            k.data = k.data * 0.97 + q.data * (1 - 0.97)
    q1, q2 = (naive.predictor(naive.projector(naive.base_encoder(x))) for x in views)
    with torch.no_grad():
        k1, k2 = (naive.momentum_projector(naive.momentum_encoder(x)) for x in views)
    total = torch.zeros((), dtype=torch.float64)
    for q, k in ((q1, k2), (q2, k1)):
        cosine = torch.einsum("id,jd->ij", q / q.norm(dim=1, keepdim=True), k / k.norm(dim=1, keepdim=True))
        total = total - 2 * 0.2 * F.log_softmax(cosine / 0.2, dim=1).diagonal().mean()
    total.backward()

    assert loss == pytest.approx(total.item(), rel=1e-6)
    expected = {name: p.grad for name, p in naive.named_parameters() if p.grad is not None}
    assert grads.keys() == expected.keys()
    for name, grad in expected.items():
        assert (grads[name] - grad).norm() <= 1e-6 * grad.norm() + 1e-15, name
    for mine, theirs_p in zip(method.momentum_encoder.parameters(), naive.momentum_encoder.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs_p, rtol=1e-6, atol=0)


@pytest.mark.parametrize("micro_batch", [1, 5, 12, 100])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_chunks_give_the_whole_batchs_loss_and_gradient(name: str, micro_batch: int) -> None:
    whole_loss, whole = run(double_method(name), None)
    loss, grads = run(double_method(name), micro_batch)
    assert loss == pytest.approx(whole_loss, rel=1e-10)
    assert grads.keys() == whole.keys()
    for key, grad in whole.items():
        assert (grads[key] - grad).norm() <= 1e-5 * grad.norm() + 1e-12, key


def test_only_a_chunk_is_held() -> None:
    """No call of the backbone sees more than the chunk's images in both views."""
    method = double_method()
    seen = []
    method.base_encoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    run(method, 3)
    assert seen == [6] * 8  # four chunks without gradient, the same four with


@pytest.mark.parametrize("model", [{"arch": "resnet18"}, {"mlp_norm": "bn"}])
def test_chunks_of_a_backbone_with_batchnorm_are_refused(model: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="BatchNorm, whose statistics need the whole batch"):
        CutStep(double_method(**model), World(), 4, contextlib.nullcontext)


@pytest.mark.parametrize(
    ("environment", "world"),
    [
        ({}, World()),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, World(3, 8, 1)),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, World()),  # sbatch alone starts one process
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "0"}, World(2, 4, 0)),
    ],
)
def test_the_world_is_read_from_the_environment(environment: dict[str, str], world: World) -> None:
    assert describe(environment) == world


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("cpu1", "cpu1"), ("gpu[07-09,12],cpu1", "gpu07"), ("a-b-3,c", "a-b-3"), ("n[1,3]", "n1")],
)
def test_slurms_first_node(nodes: str, first: str) -> None:
    assert first_node(nodes) == first
