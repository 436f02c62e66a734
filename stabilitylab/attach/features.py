"""``rec.features(z)``: measure representation collapse in any training loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from stabilitylab.errors import RecordError
from stabilitylab.recording.features import feature_statistics

if TYPE_CHECKING:
    from stabilitylab.recording.recorder import Recorder


class RecordsFeatures:
    """Mixin of `LoopRecorder` that measures features."""

    iteration: int
    _recorder: Recorder

    def _must_be_open(self) -> None:
        raise NotImplementedError

    def features(self, z: Tensor, positives: Tensor | None = None) -> dict[str, float]:
        """Record how much the features ``z`` (N, D) differ. The analysis uses this to detect collapse.

        Call it from time to time with the features of a few hundred held-out images::

            with torch.no_grad():
                rec.features(encoder(images), positives=encoder(other_views_of_the_same_images))

        Records and returns the scalars feature_spread, feature_rank (RankMe), feature_uniformity, feature_dim and, with
        ``positives`` (N, D), feature_alignment.

        Raises:
            RecordError: the features have a different shape.
        """
        self._must_be_open()
        try:
            statistics = feature_statistics(z, positives)
        except ValueError as error:
            raise RecordError(f"rec.features: {error}") from None
        for name, value in statistics.items():
            self._recorder.scalar(self.iteration, name, value)
        return statistics
