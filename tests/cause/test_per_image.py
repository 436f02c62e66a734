"""Each image's part of a gradient, against autograd image by image and batch by batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stabilitylab.cause.per_image import HOW, contributions, default_way, novelty
from stabilitylab.config import Config
from stabilitylab.errors import ConfigError
from stabilitylab.train.trainer import Trainer
from tests.cause.conftest import tiny_config


def ready(config: Config) -> tuple[Trainer, list[Tensor], dict[str, list[torch.nn.Parameter]]]:
    trainer = Trainer(config)
    trainer.method.train()
    views = next(iter(trainer.batches.iterate(3, 4)))
    return trainer, views, {layer.name: [p for p in layer.parameters if p.requires_grad] for layer in trainer.layers()}


def gradient(trainer: Trainer, views: list[Tensor], parameters: list[torch.nn.Parameter]) -> Tensor:
    """As the trainer itself takes it."""
    trainer.optimizer.zero_grad()
    buffers = {name: b.clone() for name, b in trainer.method.named_buffers()}
    trainer.cut_step(views)
    for name, b in trainer.method.named_buffers():
        b.data.copy_(buffers[name])
    return torch.cat([p.grad.flatten() for p in parameters])


@pytest.mark.parametrize("method", ["mocov3", "simclr", "byol"])
@pytest.mark.parametrize("layer", ["patch_embed", "blocks.1"])
def test_parts_of_a_backbone_are_those_of_autograd_one_image_at_a_time(method: str, layer: str) -> None:
    trainer, views, layers = ready(tiny_config(method))
    found = contributions(trainer.method, views, layers[layer], "rows")
    assert float(found.share.sum()) == pytest.approx(1, abs=1e-4)
    whole = gradient(trainer, views, layers[layer])
    # Naively: the loss's gradient at the features, then backward with all rows but one set to 0.
    with torch.no_grad():
        momentum = trainer.method.encode_momentum(views) if trainer.method.uses_momentum_encoder else None
        leaves = [f.detach().requires_grad_() for f in trainer.method.encode(views)]
    for leaf in leaves:
        leaf.requires_grad_()
    delta = torch.autograd.grad(trainer.method.loss(leaves, momentum), leaves)
    for i in (0, 7):
        one = [torch.zeros_like(d).index_copy(0, torch.tensor([i]), d[i : i + 1]) for d in delta]
        part = torch.autograd.grad(trainer.method.encode(views), layers[layer], one)
        flat = torch.cat([g.flatten() for g in part])
        assert float(found.norm[i]) == pytest.approx(float(flat.norm() / whole.norm()), rel=1e-3)
        assert float(found.share[i]) == pytest.approx(float(flat @ whole / whole.norm() ** 2), rel=1e-2, abs=1e-3)


def test_parts_of_a_head_sum_to_its_gradient() -> None:
    trainer, views, layers = ready(tiny_config())
    weights = [p for p in layers["predictor"] if p.ndim == 2]
    found = contributions(trainer.method, views, layers["predictor"], "rows")
    assert float(found.share.sum()) == pytest.approx(1, abs=1e-4)
    assert default_way(trainer.method, layers["predictor"]) == "rows"
    whole = gradient(trainer, views, weights)
    assert torch.isfinite(whole).all()


def test_leaving_one_out_is_the_gradient_of_the_batch_without_it() -> None:
    trainer, views, layers = ready(tiny_config(batch_size=6))
    buffers = {name: b.clone() for name, b in trainer.method.named_buffers()}
    found = contributions(trainer.method, views, layers["blocks.0"], "leave-one-out")
    assert all(torch.equal(b, buffers[name]) for name, b in trainer.method.named_buffers())
    whole = gradient(trainer, views, layers["blocks.0"])
    for i in (0, 4):
        kept = [j for j in range(6) if j != i]
        without = gradient(trainer, [view[kept] for view in views], layers["blocks.0"])
        assert float(found.norm[i]) == pytest.approx(float((whole - without).norm() / whole.norm()), rel=1e-3)
        assert float(found.share[i]) == pytest.approx(float(1 - without.norm() / whole.norm()), rel=1e-2, abs=1e-4)


def test_novelty_is_the_part_outside_the_others_span() -> None:
    parts = torch.tensor([[1.0, 0, 0, 0], [2.0, 0.1, 0, 0], [1.0, 1.0, 0, 0], [0, 0, 0.01, 0]])
    found = novelty(parts)
    assert found[3] == pytest.approx(1, abs=1e-4)  # however small it is
    assert found[:3].max() < 0.01
    basis = torch.linalg.qr(torch.randn(9, 5, generator=torch.Generator().manual_seed(0))).Q
    rows = torch.randn(6, 9, generator=torch.Generator().manual_seed(1))
    rows[1:] = rows[1:] @ basis @ basis.T
    outside = rows[0] - basis @ (basis.T @ rows[0])
    assert float(novelty(rows)[0]) == pytest.approx(float(outside.norm() ** 2 / rows[0].norm() ** 2), rel=1e-3)


def test_a_backbone_that_mixes_images_is_left_out_one_by_one() -> None:
    config = tiny_config(batch_size=4).model_dump()
    config["model"] |= {"mlp_norm": "bn"}
    trainer, views, layers = ready(Config.model_validate(config))
    assert default_way(trainer.method, layers["patch_embed"]) == "leave-one-out"
    with pytest.raises(ConfigError, match="has BatchNorm, so its gradient is not a sum over images"):
        contributions(trainer.method, views, layers["patch_embed"], "rows")


@pytest.mark.parametrize(("factor", "state"), [(0.0, "0"), (float("nan"), "not finite")])
def test_a_gradient_that_cannot_be_shared_out_is_refused(factor: float, state: str) -> None:
    trainer, views, layers = ready(tiny_config(batch_size=4))
    loss = trainer.method.loss
    trainer.method.loss = lambda *given: loss(*given) * factor
    for how in HOW:
        with pytest.raises(ConfigError, match=f"the gradient of this layer is {state}"):
            contributions(trainer.method, views, layers["blocks.0"], how)
