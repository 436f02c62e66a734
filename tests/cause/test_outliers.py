"""How unusual an image is, against plain loops and planted images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from torch import Tensor

from stabilitylab.cause.blame import blame_run, seconds_to_blame
from stabilitylab.cause.outliers import SHRINKAGE, contribution_scores, cross_distances, measure, outliers
from stabilitylab.cause.replay import Replay
from stabilitylab.errors import ConfigError


def test_distances_are_out_of_sample() -> None:
    rng = np.random.default_rng(0)
    reference, points = rng.standard_normal((40, 3)) * [1, 5, 0.1], rng.standard_normal((6, 3))
    own, found = cross_distances(reference, points)

    def naive(point: np.ndarray, half: np.ndarray) -> float:
        covariance = np.cov(half.T)
        covariance = covariance + SHRINKAGE * np.trace(covariance) / 3 * np.eye(3)
        return float(mahalanobis(point, half.mean(0), np.linalg.inv(covariance)))

    even, odd = reference[::2], reference[1::2]
    assert own[4] == pytest.approx(naive(reference[4], odd))
    assert own[7] == pytest.approx(naive(reference[7], even))
    assert found[2] == pytest.approx((naive(points[2], even) + naive(points[2], odd)) / 2)


Change = Callable[[Tensor], Tensor]


def plant(replay: Replay, image: int, change: Change | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """``change`` an image of the data set, or, without one, take its second view from another image."""
    batches = replay.trainer.batches
    if change is not None:
        images = batches.images.clone()
        images[image] = change(images[image])
        monkeypatch.setattr(batches, "images", images)
        return
    original = batches.iterate

    def iterate(start: int, stop: int, draw: int = 0) -> Iterator[list[Tensor]]:
        for t, views in enumerate(original(start, stop, draw), start):
            place = (batches.order(t) == image).nonzero().flatten()
            if len(place):
                own = batches.images[image].clone()
                batches.images[image] = batches.images[(image + 7) % len(batches.images)]
                (other,) = original(t, t + 1, draw)
                batches.images[image] = own
                views[1][place] = other[1][place]
            yield views

    monkeypatch.setattr(batches, "iterate", iterate)


@pytest.mark.parametrize(
    "change", [lambda x: torch.zeros_like(x), lambda x: torch.full_like(x, 255)], ids=["blank", "saturated"]
)
def test_a_planted_image_is_the_one_to_blame(recorded: Path, change: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    replay = Replay(recorded)
    replay.check(45)  # of the run as it is
    image = int(replay.order(45)[3])
    plant(replay, image, change, monkeypatch)
    found = blame_run(replay, at=45, layer="blocks.1")
    assert found.images[0].index == image
    assert found.stands_out
    assert f"image {image} is the most unusual: its features are" in found.sentence()
    assert found.skip_list().splitlines()[1].startswith(f"{image}  # ")


def test_an_ordinary_batch_has_nothing_that_stands_out(recorded: Path) -> None:
    found = [blame_run(recorded, at=at, layer="blocks.1") for at in (42, 47)]
    assert not any(x.stands_out for x in found)
    assert all(x.sentence().endswith("; no image stands out.") for x in found)


def test_measuring_leaves_the_method_as_it_is_and_repeats(recorded: Path) -> None:
    replay = Replay(recorded)
    replay.trainer.restore(replay.state_at(40))
    before = {name: x.clone() for name, x in replay.trainer.method.state_dict().items()}
    first, again = measure(replay, 40, 2), measure(replay, 40, 2)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert all(torch.equal(x, before[name]) for name, x in replay.trainer.method.state_dict().items())
    assert outliers(replay, 40, neighbours=4, draws=1).reference <= 4 * 16


def test_other_draws_are_other_views_of_the_same_images(recorded: Path) -> None:
    batches = Replay(recorded).trainer.batches
    (own,), (same,) = batches.iterate(7, 8), batches.iterate(7, 8, 0)
    (other,), (again,) = batches.iterate(7, 8, 2), batches.iterate(7, 8, 2)
    assert all(torch.equal(a, b) for a, b in zip(own, same, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(other, again, strict=True))
    assert not torch.equal(own[0], other[0])


def test_an_image_that_makes_most_of_the_gradient_is_unusual() -> None:
    norms = np.exp(np.random.default_rng(0).normal(-3, 0.3, 31)).tolist()
    scores = contribution_scores(np.array([*norms, 0.6]))
    assert scores.argmax() == 31
    assert scores[31] > 1.5 * np.sort(scores)[-2]
    assert np.median(scores) == pytest.approx(0, abs=1e-9)
    assert contribution_scores(np.zeros(4)).tolist() == [0, 0, 0, 0]


def test_too_few_other_images_are_refused(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replay = Replay(recorded)
    monkeypatch.setattr("stabilitylab.cause.outliers.around", lambda at, neighbours: [at])
    with pytest.raises(ConfigError, match="only 0 images that are not in batch 40, too few"):
        outliers(replay, 40, draws=1)


def test_the_cost_of_leaving_one_out_is_measured(recorded: Path) -> None:
    # The heads have BatchNorm, which refuses a batch of one image.
    assert seconds_to_blame(Replay(recorded), 40, "blocks.0", "leave-one-out", "part") > 0
