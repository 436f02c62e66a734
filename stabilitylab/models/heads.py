"""Projector and predictor (PAPER, Implementation)."""

from __future__ import annotations

from torch import nn


def mlp_head(
    layers: int,
    in_dim: int,
    hidden_dim: int,
    out_dim: int,
    *,
    bn: bool = True,
    last_bn: bool = True,
    activation: type[nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Build an MLP (N, in_dim) -> (N, out_dim); there is no activation after the last layer.

    With ``bn``, each linear layer has no bias and is followed by BN; the BN after the last layer is optional
    (``last_bn``) and has no affine parameters. Without ``bn``, linear layers have biases."""
    widths = [in_dim] + [hidden_dim] * (layers - 1) + [out_dim]
    modules: list[nn.Module] = []
    for index in range(layers):
        last = index == layers - 1
        modules.append(nn.Linear(widths[index], widths[index + 1], bias=not bn))
        if bn and not last:
            modules.append(nn.BatchNorm1d(widths[index + 1]))
        elif bn and last_bn:
            modules.append(nn.BatchNorm1d(widths[index + 1], affine=False))
        if not last:
            modules.append(nn.ReLU(inplace=True) if activation is nn.ReLU else activation())
    return nn.Sequential(*modules)
