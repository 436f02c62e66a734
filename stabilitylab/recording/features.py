"""Statistics that reveal feature collapse: spread, effective rank, uniformity and alignment.

A collapsed encoder maps all images to one point, where the spread is 0, or to a line, where the rank is 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NAMES = ("feature_spread", "feature_rank", "feature_uniformity", "feature_alignment", "feature_dim")
MOST = 512
"""Maximum number of features used; the rest are ignored."""


@torch.no_grad()
def feature_statistics(z: Tensor, positives: Tensor | None = None) -> dict[str, float]:
    """Statistics of features ``z`` (N, D), N at least 2. ``positives`` (N, D): features of another view of the images.

    ``feature_spread``: mean over dimensions of the sd of the L2-normalised features; 1 / sqrt(D) if they are uniform on
    the sphere, 0 if they are all equal. ``feature_rank``: RankMe, exp of the entropy of the normalised singular
    values (arXiv 2210.02885), 1 to min(N, D). ``feature_uniformity``: log of the mean of exp(-2 |x - y|^2) over pairs;
    ``feature_alignment``: mean of |x - x+|^2 over positives (both arXiv 2005.10242). ``feature_dim``: D. All but
    ``feature_dim`` are NaN if any feature is not finite. Raises ValueError for another shape.
    """
    if z.ndim != 2 or len(z) < 2 or z.shape[1] < 1:
        raise ValueError(f"features must have shape (N, D) with N at least 2, got {tuple(z.shape)}")
    if positives is not None and positives.shape != z.shape:
        raise ValueError(
            f"positives must have the shape of the features {tuple(z.shape)}, got {tuple(positives.shape)}"
        )
    z = z.detach()[:MOST].float().cpu()
    statistics = dict.fromkeys(NAMES, float("nan")) | {"feature_dim": float(z.shape[1])}
    if positives is None:
        del statistics["feature_alignment"]
    if not bool(z.isfinite().all()):
        return statistics
    unit = F.normalize(z, dim=1)
    statistics["feature_spread"] = float(unit.std(dim=0, unbiased=False).mean())
    singular = torch.linalg.svdvals(z.double())
    share = singular / singular.sum().clamp(min=1e-300)
    statistics["feature_rank"] = float(torch.exp(-torch.xlogy(share, share).sum()))
    statistics["feature_uniformity"] = float(torch.pdist(unit).square().mul(-2).exp().mean().log())
    if positives is not None:
        other = F.normalize(positives.detach()[:MOST].float().cpu(), dim=1)
        statistics["feature_alignment"] = float((unit - other).square().sum(dim=1).mean())
    return statistics
