"""Impulse responses: perturb ("kick") one layer once, train on the same batches with and without the kick, and compare
the gradient norms of all layers in the two futures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stabilitylab.cause.kicks import checked, generator_of, kick, planned_futures
from stabilitylab.cause.replay import Replay, ReplayCheck
from stabilitylab.cause.responses import FEWEST, Response, directions, respond
from stabilitylab.cause.traces import Trace
from stabilitylab.errors import ConfigError, NoDataError
from stabilitylab.models.layers import group_layers
from stabilitylab.recording.recorder import Recorder
from stabilitylab.recording.sink import NullSink

LOSS = "loss"


@dataclass(frozen=True)
class Impulse:
    """The responses of all layers, and of the loss, to kicks in some layers.

    ``order``: the layers from input to output. ``size``: of a kick, relative to ``of``: ``weights`` or ``gradient``.
    ``at``: the kicked iterations. ``differences``: kicked layer -> log ratios (K, T, R) of K kicks, T iterations from
    the kick on, R layers of ``order`` and the loss. ``metric``: kicked layer -> {iterations after the kick: (K,)}.
    """

    order: tuple[str, ...]
    size: float
    of: str
    at: tuple[int, ...]
    differences: dict[str, np.ndarray]
    metric: dict[str, dict[int, np.ndarray]]
    check: ReplayCheck | None = None

    @property
    def responses(self) -> list[Response]:
        """One response per pair of kicked and responding layer."""
        names = (*self.order, LOSS)
        return [r for layer in self.differences for r in respond(layer, names, self.by_start(layer))]

    def by_start(self, layer: str) -> np.ndarray:
        """(S, T, R): mean over the kicks of ``layer`` at each iteration of ``at``. Kicks at the same iteration share
        one unkicked future and are not independent, so their mean counts as one sample."""
        values = self.differences[layer]
        parts = np.nan_to_num(values).reshape(len(self.at), -1, *values.shape[1:])
        means: np.ndarray = parts.mean(1)
        return means

    @property
    def kicks(self) -> int:
        """Number of kicks per layer."""
        return min(len(values) for values in self.differences.values())

    @property
    def diverged(self) -> int:
        """Number of kicks whose log ratio of the loss is missing somewhere: with or without the kick, the loss became 0
        or non-finite. Where a norm is missing, it counts as no response."""
        return sum(int(np.isnan(values[:, :, -1]).any(axis=1).sum()) for values in self.differences.values())

    def sentence(self) -> str:
        """The result as text."""
        responses = self.responses
        text = f"{self.kicks} kicks per layer of {self.size:g} times its {self.of}. "
        if self.diverged:
            total = sum(map(len, self.differences.values()))
            text += (
                f"After {self.diverged} of {total} kicks the loss became 0 or non-finite; missing norms count as no "
                "response, so responses may be underestimated. "
            )
        if responses[0].reached is None:
            return text + (
                f"Too few to judge which layers respond: they start at {_count(len(self.at))}; at least {FEWEST} are "
                "needed."
            )
        counts = directions(responses, self.order)
        reach = [f"{hit} of {judged} layers {direction}" for direction, (hit, judged) in counts.items() if judged]
        if reach:
            text += f"They reached {' and '.join(reach)}. "
        reached = [r for r in responses if r.reached and r.responding in self.order and r.responding != r.kicked]
        if reached:
            r = max(reached, key=lambda r: abs(r.peak))
            low, high = np.exp(r.peak_ci95)
            text += (
                f"Largest response: {r.kicked} to {r.responding}, x{np.exp(r.peak):.2f} [{low:.2f}, {high:.2f}] "
                f"after {_count(r.peak_at)}"
            )
            text += f", decaying over {_decay(r)}." if r.decay is not None else "."
        return text.strip()


def _count(iterations: int) -> str:
    return f"{iterations} iteration{'s' if iterations != 1 else ''}"


def _decay(r: Response) -> str:
    assert r.decay is not None
    assert r.decay_ci95 is not None
    if np.isinf(r.decay):
        return "more iterations than the horizon"
    return f"{r.decay:.0f} [{r.decay_ci95[0]:.0f}, {r.decay_ci95[1]:.0f}] iterations"


def layer_norms(model: nn.Module) -> dict[str, float]:
    """Gradient norm of each layer; 0 without a gradient. Call it between ``backward()`` and the optimizer step."""
    layers = group_layers(model)
    measured = Recorder(layers, NullSink(), signals=("grad_norm",)).measure()
    norms = torch.where(measured.measured[0], measured.values[0], 0.0).tolist()
    return {layer.name: norm for layer, norm in zip(layers, norms, strict=True)}


def impulse(
    step_fn: Callable[[int], Mapping[str, float | Tensor]],
    state_fn: Callable[[int], object],
    model: nn.Module,
    *,
    layers: Sequence[str],
    at: Sequence[int],
    size: float = 0.5,
    kicks: int = 4,
    horizon: int = 60,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Impulse:
    """Measure impulse responses in any training loop.

    ``step_fn(t)``: runs iteration ``t`` on its own batch and returns ``loss`` and the gradient norm of each layer by
    name, as `layer_norms` returns them. ``state_fn(t)``: restores everything that iteration ``t`` depends on: weights,
    optimizer, random state. ``layers``: the layers of ``model`` to kick. ``at``: the iterations before which each is
    kicked, in ``kicks`` random directions. ``horizon``: iterations of each future. ``progress(done, total)``: called
    after each future.

    Raises:
        ConfigError: a layer is unknown, or two futures without a kick differ, so that ``state_fn`` is incomplete.

    Examples:
        >>> def step(t):
        ...     loss = criterion(model(x[t]), y[t])
        ...     loss.backward()
        ...     norms = sl.cause.layer_norms(model)
        ...     optimizer.step(); optimizer.zero_grad()
        ...     return {"loss": loss, **norms}
        >>> sl.cause.impulse(step, restore, model, layers=["fc1"], at=[400]).sentence()  # doctest: +SKIP
    """
    grouped = {layer.name: layer for layer in group_layers(model)}
    layers, at = checked(layers, at, size, kicks)
    for name in layers:
        if name not in grouped or not grouped[name].trainable:
            raise ConfigError(f"the model has no trained layer {name!r}; its layers: {', '.join(grouped)}")
    order = tuple(grouped)

    def future(start: int, prepare: Callable[[], None] | None, steps: int = horizon) -> Trace:
        state_fn(start)
        if prepare is not None:
            prepare()
        rows = [{k: float(v) for k, v in step_fn(t).items()} for t in range(start, start + steps)]
        missing = [name for name in (LOSS, *order) if name not in rows[0]]
        if missing:
            raise ConfigError(f"step_fn returned no {missing[0]!r}; it must return the loss and all norms by name")
        return Trace(np.array([[row[n] for n in order] for row in rows]), np.array([row[LOSS] for row in rows]), {})

    first, again = (future(at[0], None, min(horizon, 2)) for _ in range(2))
    if not np.array_equal(first.norms, again.norms, equal_nan=True):
        raise ConfigError(
            f"two futures from iteration {at[0]} differ without a kick: state_fn must restore weights, optimizer, "
            "learning rate, random state and the position in the data"
        )
    done, total = 0, len(at) * (1 + len(layers) * kicks)
    traces: dict[str, list[Trace]] = {name: [] for name in layers}
    controls = {}
    for start in at:
        controls[start] = future(start, None)
        for index, name in enumerate(layers):
            for k in range(kicks):
                generator = generator_of(seed, index, start, k)
                parameters = grouped[name].parameters
                kicked = future(start, lambda p=parameters, g=generator: kick(p, size, g))  # type: ignore[misc]
                traces[name].append(_against(kicked, controls[start]))
                done += 1
                progress(done, total)
    return _gathered(order, size, "weights", at, traces, None)


def impulse_run(
    run_dir: Path | Replay,
    *,
    layers: Sequence[str],
    at: Sequence[int],
    size: float = 0.5,
    of: str = "weights",
    kicks: int = 4,
    horizon: int = 60,
    seed: int = 0,
    metric_every: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Impulse:
    """Measure impulse responses in a recorded run, from its checkpoints and on its own batches. The run is not changed.

    ``at``: the iterations before which a layer is kicked. ``of``: with ``weights``, each tensor is moved in a random
    direction by ``size`` times its norm; with ``gradient``, the layer's gradient at that iteration is multiplied by
    1 + ``size``, once per iteration of ``at``. ``metric_every``: evaluate the metric every this many iterations; 0 is
    never. The other arguments are as in `impulse`.

    Raises:
        ConfigError: the run cannot be replayed.
    """
    replay = run_dir if isinstance(run_dir, Replay) else Replay(run_dir)
    layers, at = checked(layers, at, size, kicks)
    if of not in ("weights", "gradient"):
        raise ConfigError(f"of is weights or gradient, not {of!r}")
    replay.require(at, horizon)
    parameters = [replay.layer(name).parameters for name in layers]
    check = replay.check(min(at))
    metric_at = range(metric_every, horizon + 1, metric_every) if metric_every else ()
    traces: dict[str, list[Trace]] = {name: [] for name in layers}
    done, total = 0, planned_futures(layers, at, kicks, of)
    for start in at:
        state = replay.state_at(start)
        control = replay.future(state, horizon, metric_at=metric_at)
        done += 1
        for index, name in enumerate(layers):
            for k in range(1 if of == "gradient" else kicks):
                chosen, generator = parameters[index], generator_of(seed, index, start, k)

                def prepare(p: Sequence[nn.Parameter] = chosen, g: torch.Generator = generator) -> None:
                    kick(p, size, g)

                def scale(t: int, p: Sequence[nn.Parameter] = chosen, first: int = start) -> None:
                    if t == first:
                        torch._foreach_mul_([x.grad for x in p if x.grad is not None], 1 + size)

                kicked = replay.future(
                    state,
                    horizon,
                    prepare=prepare if of == "weights" else None,
                    on_gradient=scale if of == "gradient" else None,
                    metric_at=metric_at,
                )
                traces[name].append(_against(kicked, control))
                done += 1
                progress(done, total)
    return _gathered(tuple(replay.names), size, of, at, traces, check)


def pool(impulses: Sequence[Impulse]) -> Impulse:
    """Pool the kicks of several runs, for example seeds. Raises NoDataError if they differ in layers, size, kind or
    kicks per iteration."""
    first = impulses[0]
    for other in impulses[1:]:
        if (other.order, other.size, other.of) != (first.order, first.size, first.of):
            raise NoDataError("impulses with different layers, sizes or kinds cannot be pooled")
        if other.kicks * len(first.at) != first.kicks * len(other.at):
            raise NoDataError("impulses with different numbers of kicks per iteration cannot be pooled")
    layers = [name for name in first.differences if all(name in x.differences for x in impulses)]
    length = min(values.shape[1] for x in impulses for values in x.differences.values())
    differences = {name: np.concatenate([x.differences[name][:, :length] for x in impulses]) for name in layers}
    metric = {
        name: {
            t: np.concatenate([x.metric[name][t] for x in impulses])
            for t in first.metric.get(name, {})
            if all(t in x.metric.get(name, {}) for x in impulses)
        }
        for name in layers
    }
    return Impulse(first.order, first.size, first.of, tuple(t for x in impulses for t in x.at), differences, metric)


def _against(kicked: Trace, control: Trace) -> Trace:
    """Log ratios of norms and loss, and differences of the metric, between a kicked future and its control."""
    with np.errstate(divide="ignore", invalid="ignore"):
        norms, loss = np.log(kicked.norms / control.norms), np.log(np.abs(kicked.loss / control.loss))
    norms[~np.isfinite(norms)] = np.nan
    loss[~np.isfinite(loss)] = np.nan
    return Trace(norms, loss, {t: value - control.metric[t] for t, value in kicked.metric.items()})


def _gathered(
    order: tuple[str, ...],
    size: float,
    of: str,
    at: Sequence[int],
    all_traces: Mapping[str, Sequence[Trace]],
    check: ReplayCheck | None,
) -> Impulse:
    differences = {
        name: np.stack([np.concatenate([t.norms, t.loss[:, None]], 1) for t in traces])
        for name, traces in all_traces.items()
    }
    metric = {
        name: {t: np.array([trace.metric[t] for trace in traces]) for t in traces[0].metric}
        for name, traces in all_traces.items()
    }
    return Impulse(order, size, of, tuple(at), differences, metric, check)
