"""A study file: a grid of configurations around one recipe, and the claims to test.

    title = "..."              what is compared
    base = "recipe.toml"       a configuration file in the same folder, or a table [base], on top of the data's recipe
    [grid]                     key = one value or a list; several [[grid]] tables are several grids
    [[claim]]                  see comparison/claims.py
    [sequential]               instead of seeds in the grid: first = 5, step = 5, most = 20 adds seeds 0, 1, ... until
                               every claim is decided or all are used; see comparison/decisions.py for the levels;
                               start = 10 begins with seed 10, if earlier seeds have been used to choose the settings

Keys of a grid are configuration keys or the short names in `AXES`. The name of a run contains a digest of its whole
configuration, so studies that share a run train it only once.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from stabilitylab.comparison.claims import Claim, matches
from stabilitylab.comparison.decisions import MIN_SEEDS
from stabilitylab.comparison.results import RunSummary
from stabilitylab.config import Config, check_choice, read_toml, resolve, set_key
from stabilitylab.errors import ConfigError
from stabilitylab.registry import hint

NO_METRICS = ("run", "mitigation", "seed", "base_lr", "metric", "goal", "scale")
COUNTS = (
    "iterations", "spikes", "spikes_first_layer", "dips", "lag_median", "lag_matched", "knn_untrained", "dead",
    "spikes_first_block", "lag_last_block", "lag_last_block_matched", "pooled_lag",
    "excess_first_layer",
)  # fmt: skip
METRICS = (*(f.name for f in fields(RunSummary) if f.name not in NO_METRICS), *COUNTS)
"""The metrics that a claim can use: columns of ``runs.csv``."""
AXES = {
    "method": "method.name",
    "optimizer": "optim.name",
    "base_lr": "optim.base_lr",
    "batch_size": "train.batch_size",
    "seed": "train.seed",
    "arch": "model.arch",
    "data": "data.name",
    "iterations": "train.iterations",
    "epochs": "train.epochs",
    "mitigation": "mitigation",
}
_KEYS = ("title", "paper", "base", "grid", "claim", "sequential")
_SEQUENTIAL = {"first": 5, "step": 5, "most": 20, "start": 0}
MOST_RUNS = 200
"""A larger grid needs ``--yes``."""


@dataclass(frozen=True)
class PlannedRun:
    """A run of a study. ``axes``: its values of the keys in the grid, by full configuration key."""

    name: str
    config: Config
    axes: dict[str, Any]


@dataclass(frozen=True)
class Study:
    """A validated study file. ``paper``: the result in the paper, in words. ``path``: the study file. ``looks``: the
    numbers of seeds at which a sequential study is judged; empty if the grid lists the seeds. ``first_seed``: the
    first of them."""

    name: str
    title: str
    paper: str
    runs: tuple[PlannedRun, ...]
    claims: tuple[Claim, ...]
    path: Path
    looks: tuple[int, ...] = ()
    first_seed: int = 0

    def runs_of(self, claims: Sequence[Claim], num_seeds: int) -> list[PlannedRun]:
        """The runs that ``claims`` compare, for the first ``num_seeds`` seeds."""
        keys = {key for claim in claims for group in (claim.where, claim.treated, claim.baseline) for key in group}
        chosen = []
        for run in self.runs:
            row = {key: look_up(run.config, key) for key in keys}
            if run.config.train.seed < self.first_seed + num_seeds and any(
                matches(row, claim.where) and any(matches(row, g) for g in (claim.treated, claim.baseline) if g)
                for claim in claims
            ):
                chosen.append(run)
        return chosen


def load_study(path: Path | str, *, yes: bool = False) -> Study:
    """Read a study file and validate it, including the configuration of every run. Raises ConfigError."""
    path = Path(path)
    values = read_toml(path)
    for key in values:
        _known(path, "a study", key, _KEYS)
    looks, first_seed = _looks(path, values.get("sequential"))
    runs = planned_runs(path, values, looks=looks, first_seed=first_seed, yes=yes)
    claims = values.get("claim", [])
    if not isinstance(claims, list):
        raise ConfigError(f"{path}: claims must be [[claim]] tables")
    stated = tuple(_claim(path, item) for item in claims)
    for claim in stated:
        _check_groups(path, claim, runs)
    return Study(
        name=path.stem,
        title=str(values.get("title", path.stem)),
        paper=str(values.get("paper", "")),
        runs=runs,
        claims=stated,
        path=path,
        looks=looks,
        first_seed=first_seed,
    )


def _looks(path: Path, values: Any) -> tuple[tuple[int, ...], int]:
    """The numbers of seeds at which a sequential study is judged, the last is ``most``, and the first seed."""
    if values is None:
        return (), 0
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}: sequential must be a table, such as first = 5, step = 5, most = 20")
    for key, value in values.items():
        _known(path, "sequential", key, list(_SEQUENTIAL))
        least = 0 if key == "start" else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{path}: sequential {key} = {value!r} is not a {'positive ' if least else ''}integer")
    first, step, most, start = (_SEQUENTIAL | dict(values)).values()
    if not MIN_SEEDS <= first <= most:
        raise ConfigError(f"{path}: sequential needs {MIN_SEEDS} <= first <= most, not first = {first}, most = {most}")
    return (*range(first, most, step), most), start


def planned_runs(
    path: Path, values: Mapping[str, Any], *, looks: tuple[int, ...] = (), first_seed: int = 0, yes: bool = False
) -> tuple[PlannedRun, ...]:
    """The runs of a study's ``base`` and ``grid`` with validated configurations. ``looks``: from `_looks`."""
    base = read_base(path, values.get("base", {}))
    grids = values.get("grid", [{}])
    grids = [grids] if isinstance(grids, Mapping) else grids
    if not (isinstance(grids, list) and grids and all(isinstance(grid, Mapping) for grid in grids)):
        raise ConfigError(f"{path}: grid must be a table or several [[grid]] tables")
    axes = [_axes(path, grid) for grid in grids]
    if looks:
        if any("train.seed" in grid for grid in axes):
            raise ConfigError(f"{path}: a sequential study chooses its own seeds; remove seed from the grid")
        axes = [{**grid, "train.seed": list(range(first_seed, first_seed + looks[-1]))} for grid in axes]
    size = sum(_size(grid) for grid in axes)
    if size > MOST_RUNS and not yes:
        raise ConfigError(f"{path}: the grid has {size} runs, more than {MOST_RUNS}; confirm with --yes")
    runs = _plan(base, axes)
    _check_mitigations(path, runs)
    return runs


def _known(path: Path, where: str, key: str, keys: Sequence[str]) -> None:
    if key not in keys:
        raise ConfigError(f"{path}: unknown key {key!r} in {where}; {hint(key, keys)}")


def read_base(path: Path, given: Any) -> Mapping[str, Any]:
    if isinstance(given, str):
        return read_toml(path.parent / given)
    if not isinstance(given, Mapping):
        raise ConfigError(f"{path}: base must be the name of a configuration file or a table")
    return given


def _axes(path: Path, grid: Mapping[str, Any], section: str = "") -> dict[str, list[Any]]:
    """Full configuration key -> values. TOML parses ``model.depth = [2, 4]`` as a nested table."""
    axes: dict[str, list[Any]] = {}
    for key, value in grid.items():
        if isinstance(value, Mapping):
            axes |= _axes(path, value, f"{section}{key}.")
            continue
        full = section + key if section else AXES.get(key, key)
        _known(path, "the grid", full, [*AXES, *config_keys()])
        values = value if isinstance(value, list) else [value]
        if not values:
            raise ConfigError(f"{path}: grid key {full} has no value")
        axes[full] = [mitigations(v) for v in values] if full == "mitigation" else values
    return axes


def config_keys() -> list[str]:
    sections = {name: Config.model_fields[name].annotation for name in Config.model_fields if name != "mitigation"}
    return [f"{name}.{key}" for name, kind in sections.items() for key in kind.model_fields]  # type: ignore[union-attr]


def mitigations(value: Any) -> list[str]:
    """Parse ``"none"``, ``"bn-patch"`` or a combination such as ``"frozen-patch + clip-global:1"``."""
    return [name for name in (part.strip() for part in str(value).split("+")) if name not in ("none", "")]


def _size(grid: Mapping[str, list[Any]]) -> int:
    size = 1
    for values in grid.values():
        size *= len(values)
    return size


def _plan(base: Mapping[str, Any], grids: list[dict[str, list[Any]]]) -> tuple[PlannedRun, ...]:
    runs: dict[str, PlannedRun] = {}
    for grid in grids:
        for combination in itertools.product(*grid.values()):
            axes = dict(zip(grid, combination, strict=True))
            values: dict[str, Any] = {}
            for key, value in axes.items():
                set_key(values, key.split("."), value)
            config = resolve({"record": {"log_grads": True}}, base, values)
            name = run_name(config)
            runs.setdefault(name, PlannedRun(name, config, axes))
    return tuple(runs.values())


def run_name(config: Config) -> str:
    """A readable and unique name of a configuration: ``mocov3-adamw-lr0.24-b64-s0-frozen-patch-1f2e3d4c``."""
    # Exclude defaults, so that keys added in a later version do not change the names of existing runs.
    text = json.dumps(config.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    optim, train = config.optim, config.train
    parts = [config.method.name, optim.name, f"lr{optim.base_lr:g}", f"b{train.batch_size}", f"s{train.seed}"]
    parts += [re.sub(r"[^\w.-]", "", name) for name in config.mitigation]
    return "-".join([*parts, digest])


def _check_mitigations(path: Path, runs: tuple[PlannedRun, ...]) -> None:
    """Check that each mitigation fits its run before any run starts. Raises ConfigError."""
    from stabilitylab.train.mitigations import configured

    for run in runs:
        try:
            configured(run.config)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None


def _check_groups(path: Path, claim: Claim, runs: tuple[PlannedRun, ...]) -> None:
    """Check that the grid contains both groups of a claim before any run starts. Raises ConfigError."""
    named = f"{path}: claim {claim.text!r}"
    try:
        check_choice("metric", claim.metric, METRICS)
    except ConfigError as error:
        raise ConfigError(f"{named}: {error}") from None
    for key in {*claim.treated, *claim.baseline, *claim.where}:
        _known(path, f"claim {claim.text!r}", key, [*AXES.values(), *config_keys()])
    rows = [{key: look_up(run.config, key) for key in [*AXES.values(), *config_keys()]} for run in runs]
    for name in ("treated", "baseline"):
        group = getattr(claim, name)
        if not any(matches(row, claim.where) and matches(row, group) for row in rows):
            raise ConfigError(f"{named}: no run of the grid matches {dict(claim.where) | dict(group)}")


def look_up(config: Config, key: str) -> Any:
    """The value of a key such as ``optim.base_lr``. Mitigations are joined as ``a + b``; no mitigation is ``none``."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return " + ".join(map(str, value)) or "none" if isinstance(value, tuple) else value


def _claim(path: Path, values: Any) -> Claim:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}: claims must be [[claim]] tables")
    groups = {
        key: {AXES.get(axis, axis): value for axis, value in values[key].items()}
        for key in ("where", "treated", "baseline")
        if isinstance(values.get(key), Mapping)
    }
    try:
        return Claim.from_dict({**values, **groups})
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
