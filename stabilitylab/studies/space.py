"""A space of configurations, and settings drawn from it.

    [space]
    lr = { log = [0.003, 0.1] }                    log-uniform, rounded to three significant digits
    "data.crop_min" = { uniform = [0.1, 0.5] }
    seed = { integer = [1, 9999] }
    "optim.beta2" = [0.99, 0.999, 0.999]           a value of a list; repeat a value to draw it more often
    size = [{ "model.depth" = 4 }, { "model.depth" = 6, "train.batch_size" = 32 }]      keys drawn together

Setting i depends only on the seed of the search, on i and on the space, including the order of its keys. ``lr`` is the
actual learning rate: base_lr = lr * 256 / batch_size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stabilitylab.config import Config, resolve, set_key
from stabilitylab.errors import ConfigError
from stabilitylab.registry import hint
from stabilitylab.studies.study import AXES, config_keys, mitigations

LR = "lr"
_RANGES = ("log", "uniform", "integer")


@dataclass(frozen=True)
class Dimension:
    """One key of the space: either ``choices``, which are tables of values by full configuration key, or a range of the
    kind ``kind`` from ``low`` to ``high``."""

    name: str
    choices: tuple[Mapping[str, Any], ...] = ()
    kind: str = ""
    low: float = 0.0
    high: float = 0.0

    def draw(self, rng: np.random.Generator) -> Mapping[str, Any]:
        if self.choices:
            return self.choices[int(rng.integers(len(self.choices)))]
        if self.kind == "integer":
            return {self.name: int(rng.integers(int(self.low), int(self.high) + 1))}
        if self.kind == "log":
            value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = rng.uniform(self.low, self.high)
        return {self.name: float(f"{value:.3g}")}


def parse_space(where: str, values: Mapping[str, Any]) -> tuple[Dimension, ...]:
    """Parse a ``[space]`` table. Raises ConfigError with the key and the allowed values."""
    if not values:
        raise ConfigError(f"{where}: the space is empty; add at least one key, such as lr = {{ log = [0.003, 0.1] }}")
    return tuple(_dimension(where, key, value) for key, value in values.items())


def _dimension(where: str, key: str, value: Any) -> Dimension:
    if isinstance(value, list) and value:
        if all(isinstance(item, Mapping) for item in value):
            return Dimension(key, tuple({_full(where, k): v for k, v in item.items()} for item in value))
        name = _full(where, key)
        return Dimension(name, tuple({name: item} for item in value))
    bounds: Any
    kind, bounds = next(iter(value.items())) if isinstance(value, Mapping) and len(value) == 1 else ("", None)
    if kind not in _RANGES or not _is_range(kind, bounds):
        raise ConfigError(
            f"{where}: space key {key} = {value!r} is neither a list of values nor a range, such as "
            "{ log = [0.003, 0.1] }, { uniform = [0, 1] } or { integer = [1, 9] }, the smaller bound first"
        )
    return Dimension(_full(where, key), kind=kind, low=bounds[0], high=bounds[1])


def _is_range(kind: str, bounds: Any) -> bool:
    numbers = isinstance(bounds, list) and len(bounds) == 2
    if not numbers or any(isinstance(x, bool) or not isinstance(x, int | float) for x in bounds):
        return False
    low, high = bounds
    whole = kind != "integer" or all(isinstance(x, int) for x in bounds)
    return bool(math.isfinite(low) and math.isfinite(high) and low <= high and (kind != "log" or low > 0) and whole)


def _full(where: str, key: str) -> str:
    name = key if key == LR else AXES.get(key, key)
    known = [LR, *AXES.values(), *config_keys()]
    if name not in known:
        raise ConfigError(f"{where}: unknown key {key!r} in the space; {hint(key, [*known, *AXES])}")
    return name


def draw(space: Sequence[Dimension], seed: int, index: int) -> dict[str, Any]:
    """Draw the values of setting ``index`` by full configuration key (or ``lr``)."""
    rng = np.random.default_rng([seed, index])
    drawn: dict[str, Any] = {}
    for dimension in space:
        drawn |= dimension.draw(rng)
    return drawn


def configure(base: Mapping[str, Any], values: Mapping[str, Any]) -> Config:
    """The validated configuration of ``base`` overridden by ``values`` (by full key), with gradients recorded."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        if key == "mitigation":
            nested[key] = mitigations(value)
        elif key != LR:
            set_key(nested, key.split("."), value)
    config = resolve({"record": {"log_grads": True}}, base, nested)
    if LR in values:
        set_key(nested, ["optim", "base_lr"], values[LR] * 256 / config.train.batch_size)
        config = resolve({"record": {"log_grads": True}}, base, nested)
    return config
