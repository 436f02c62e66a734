"""Dips of an accuracy curve, against its own sampling error, and the spikes before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from stabilitylab.analysis.results import Dip, DipLink, EvalCurve, Spike, SpikeRef

_NUM_SHIFTS = 999


@dataclass(frozen=True, slots=True)
class DipSettings:
    """``min_z`` in standard errors and ``min_depth`` as a fraction; ``link_window`` in iterations."""

    min_z: float = 4.0
    min_depth: float = 0.02
    link_window: int = 100


def find_dips(curve: EvalCurve, spikes: Sequence[Spike] = (), settings: DipSettings | None = None) -> tuple[Dip, ...]:
    """Falls below what the curve had reached, by more than its sampling error and a minimum.

    The level reached is the running maximum of the curve's 3-point median, since the maximum of noisy values
    alone rises with noise. A dip starts where that level was last held, recovers within one standard error of it.
    """
    settings = settings or DipSettings()
    known = np.isfinite(curve.value)
    at, value, samples = curve.iteration[known], curve.value[known], curve.num_samples[known]
    if len(value) < 3:
        return ()
    error = standard_error(value, samples)
    smooth = np.array([np.median(value[max(0, i - 1) : i + 2]) for i in range(len(value))])
    dips: list[Dip] = []
    reached, reached_at = float(smooth[0]), 0
    index = 1
    while index < len(value):
        if smooth[index] >= reached:
            reached, reached_at = float(smooth[index]), index
        # Both the level and the value are measured with error.
        noise = float(np.hypot(error[index], error[reached_at]))
        depth = reached - float(value[index])
        if depth >= settings.min_depth and depth >= settings.min_z * noise:
            back = np.flatnonzero(value[index:] >= reached - error[reached_at])
            stop = index + int(back[0]) if len(back) else len(value)
            dips.append(_dip(at, value, error, reached, reached_at, stop))
            if stop == len(value):
                break
            reached_at, index = stop, stop
        index += 1
    return tuple(replace(dip, after_spike=_spike_before(dip, spikes, settings.link_window)) for dip in dips)


def standard_error(value: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Binomial standard error (n,); where the number of samples is unknown, from the curve's own jitter."""
    jitter = 1.4826 * float(np.median(np.abs(np.diff(value)))) / np.sqrt(2) if len(value) > 1 else 0.0
    p = value.clip(0, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Agresti-Coull: a value of exactly 0 or 1 has an error too.
        p = (p * samples + 2) / (samples + 4)
        return np.where(samples > 0, np.sqrt(p * (1 - p) / np.maximum(samples, 1)), max(jitter, 1e-6))


def _dip(at: np.ndarray, value: np.ndarray, error: np.ndarray, reached: float, reached_at: int, stop: int) -> Dip:
    trough = reached_at + int(np.argmin(value[reached_at:stop]))
    depth = reached - float(value[trough])
    span = slice(reached_at, min(stop + 1, len(value)))
    lost = np.maximum(reached - value[span], 0)
    return Dip(
        start=int(at[reached_at]),
        trough=int(at[trough]),
        recovered=int(at[stop]) if stop < len(value) else None,
        depth=depth,
        z=depth / float(np.hypot(error[trough], error[reached_at])),
        area=float(np.trapezoid(lost, at[span])),
    )


def _spike_before(dip: Dip, spikes: Sequence[Spike], window: int) -> SpikeRef | None:
    """The largest spike between ``window`` iterations before the dip's start and its trough."""
    near = [s for s in spikes if s.kind == "spike" and dip.start - window <= s.onset <= dip.trough]
    if not near:
        return None
    largest = max(near, key=lambda spike: spike.z)
    return SpikeRef(largest.layer, largest.onset)


def link_dips(
    dips: Sequence[Dip],
    spikes: Sequence[Spike],
    num_iterations: int,
    settings: DipSettings | None = None,
    seed: int = 0,
) -> DipLink:
    """How many dips have a spike before them, and how many would if the spikes were shifted around the circle."""
    settings = settings or DipSettings()
    onsets = np.array([s.onset for s in spikes if s.kind == "spike"])
    if not dips or not len(onsets):
        return DipLink(len(dips), 0, None, None)
    low = np.array([dip.start - settings.link_window for dip in dips])
    high = np.array([dip.trough for dip in dips])

    def linked(moved: np.ndarray) -> int:
        ordered = np.sort(moved)
        return int((np.searchsorted(ordered, high, "right") > np.searchsorted(ordered, low, "left")).sum())

    observed = linked(onsets)
    shifts = np.random.default_rng(seed).integers(0, num_iterations, _NUM_SHIFTS)
    null = np.array([linked((onsets + shift) % num_iterations) for shift in shifts])
    p_value = float((1 + (null >= observed).sum()) / (1 + _NUM_SHIFTS))
    return DipLink(len(dips), observed, float(null.mean()), p_value)
