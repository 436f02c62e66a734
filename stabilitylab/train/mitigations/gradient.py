"""Mitigations that clip gradients after recording and before the update, without a device sync."""

from __future__ import annotations

import torch
from timm.utils.agc import adaptive_clip_grad
from torch import Tensor, nn

from stabilitylab.methods.base import Method
from stabilitylab.train.mitigations.model import patch_projection
from stabilitylab.train.mitigations.stages import State

# ZClip (arXiv 2504.02507): decay of the running mean and variance, z-score above which it clips, number of iterations
# before it starts to clip.
ZCLIP_DECAY, ZCLIP_Z, ZCLIP_WARMUP = 0.97, 2.5, 25


def clip_patch(method: Method, value: float | None, state: State) -> Tensor:
    return _clip(patch_projection(method), value)


def clip_global(method: Method, value: float | None, state: State) -> Tensor:
    return _clip(method, value)


def _clip(module: nn.Module, value: float | None) -> Tensor:
    assert value is not None
    norm = nn.utils.clip_grad_norm_(module.parameters(), value)
    return (value / (norm + 1e-6)).clamp(max=1.0)  # the factor that torch applies


def clip_adaptively(method: Method, value: float | None, state: State) -> Tensor:
    """Adaptive gradient clipping (arXiv 2102.06171), over all trained parameters."""
    assert value is not None
    trained = [p for p in method.parameters() if p.requires_grad]
    before = global_norm(method)
    adaptive_clip_grad(trained, clip_factor=value)
    # Unclipped gradients stay bit-identical, so the norms differ only if something was clipped.
    return (global_norm(method) / before.clamp(min=1e-30)).clamp(max=1.0)


def zclip(method: Method, value: float | None, state: State) -> Tensor:
    """Clip a norm that is z > 2.5 running standard deviations above the running mean to 2.5^2 / z of them.

    Unlike in the paper, the averages start from the median and MAD of the first 25 norms. The first gradients of a run
    can be hundreds of times larger than later ones, and their mean would hide all spikes for hundreds of iterations.
    """
    norm = global_norm(method)
    if "mean" not in state:
        watched = torch.cat([state.get("norms", norm.new_empty(0)), norm[None]])
        state["norms"] = watched
        if len(watched) == ZCLIP_WARMUP:
            finite = torch.where(watched.isfinite(), watched, torch.nan)
            state["mean"] = finite.nanmedian()
            state["variance"] = (1.4826 * (finite - state["mean"]).abs().nanmedian()).square()
            del state["norms"]
        return torch.ones_like(norm)
    deviation = state["variance"].sqrt()
    z = (norm - state["mean"]) / deviation.clamp(min=1e-12)
    allowed = state["mean"] + ZCLIP_Z**2 / z * deviation
    spikes = (z > ZCLIP_Z) & norm.isfinite()
    factor = torch.where(spikes, allowed / norm, torch.ones_like(norm))
    torch._foreach_mul_(gradients(method), factor)
    clipped, known = norm * factor, norm.isfinite()  # keep non-finite norms out of the averages
    mean = torch.lerp(clipped, state["mean"], ZCLIP_DECAY)
    variance = torch.lerp((clipped - mean).square(), state["variance"], ZCLIP_DECAY)
    state["mean"] = torch.where(known, mean, state["mean"])
    state["variance"] = torch.where(known, variance, state["variance"])
    return factor


def gradients(method: Method) -> list[Tensor]:
    return [p.grad for p in method.parameters() if p.grad is not None]


def global_norm(method: Method) -> Tensor:
    return nn.utils.get_total_norm(gradients(method))
