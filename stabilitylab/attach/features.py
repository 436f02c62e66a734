"""``rec.features(z)``: whether the features of any loop still differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from stabilitylab.errors import RecordError
from stabilitylab.recording.features import feature_statistics

if TYPE_CHECKING:
    from stabilitylab.recording.recorder import Recorder


class RecordsFeatures:
    """The part of `LoopRecorder` that measures features."""

    iteration: int
    _recorder: Recorder

    def _must_be_open(self) -> None:
        raise NotImplementedError

    def features(self, z: Tensor, positives: Tensor | None = None) -> dict[str, float]:
        """Record whether features ``z`` (N, D) still differ, at this point of the training; the analysis judges
        collapse by it. Call it now and then, with the features of some hundred held-out images::

            with torch.no_grad():
                rec.features(encoder(images), positives=encoder(other_views_of_the_same_images))

        Records the scalars feature_spread, feature_rank (RankMe), feature_uniformity, feature_dim and, with
        ``positives`` (N, D), feature_alignment, and returns them. Raises `RecordError` for another shape.
        """
        self._must_be_open()
        try:
            found = feature_statistics(z, positives)
        except ValueError as error:
            raise RecordError(f"rec.features: {error}") from None
        for name, value in found.items():
            self._recorder.scalar(self.iteration, name, value)
        return found
