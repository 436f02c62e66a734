"""A search for regimes: given settings (leads) and random settings are trained, analysed and listed in one table.

    title = "..."
    seed = 19                      determines, together with the space, which settings are drawn
    base = "recipe.toml"           a configuration file in the same folder, or a table [base]
    [budget]
    settings = 100                 number of random settings, in addition to the leads
    [space]                        see space.py
    [[lead]]                       given settings; a list of values is expanded, several lists to all combinations
    [objective]                    see Objective

A lead is run after every two random settings until there are none left. A run is named after its configuration, so the
same command continues an interrupted search, even on another machine that has only the table.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from stabilitylab.config import Config, check_choice, read_toml
from stabilitylab.errors import ConfigError
from stabilitylab.studies.space import Dimension, configure, draw, parse_space
from stabilitylab.studies.study import read_base, run_name

_KEYS = ("title", "seed", "base", "budget", "space", "lead", "objective")
DRAWN_PER_LEAD = 2


@dataclass(frozen=True)
class Objective:
    """The minimum requirements of a regime that resembles the paper's.

    ``accuracy_gain``: final kNN accuracy minus that of the untrained encoder (a fraction).
    ``first_layer_spikes``: spikes of the first layer per 3,000 iterations, minus those expected by chance.
    ``recovered_dips``: number of accuracy dips that recover.
    """

    accuracy_gain: float = 0.10
    first_layer_spikes: float = 5.0
    recovered_dips: int = 1


@dataclass(frozen=True)
class Setting:
    """One point of the search. ``source`` is ``lead`` or ``drawn``; ``values`` are its values by configuration key."""

    source: str
    index: int
    values: Mapping[str, Any]
    config: Config

    @property
    def name(self) -> str:
        return run_name(self.config)


@dataclass(frozen=True)
class Search:
    """A validated search file."""

    name: str
    title: str
    seed: int
    space: tuple[Dimension, ...]
    settings: tuple[Setting, ...]
    objective: Objective
    path: Path


def load_search(path: Path | str) -> Search:
    """Read a search file and validate it, including the configuration of every setting. Raises ConfigError."""
    path = Path(path)
    values = read_toml(path)
    for key in values:
        check_choice(f"key in search {path}", key, _KEYS)
    seed, budget = values.get("seed", 0), values.get("budget", {})
    count = budget.get("settings") if isinstance(budget, Mapping) and set(budget) <= {"settings"} else None
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ConfigError(f"{path}: set the number of settings to draw as [budget] settings = 100, not {budget!r}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"{path}: seed {seed!r} is not an integer of at least 0")
    base = read_base(path, values.get("base", {}))
    space = parse_space(str(path), _table(path, "space", values))
    leads = values.get("lead", [])
    if not isinstance(leads, list) or not all(isinstance(item, Mapping) for item in leads):
        raise ConfigError(f"{path}: leads must be [[lead]] tables")
    given = [point for item in leads for point in _combinations(str(path), item)]
    settings = [_setting(path, base, "lead", i, point) for i, point in enumerate(given)]
    drawn = [_setting(path, base, "drawn", i, draw(space, seed, i)) for i in range(count)]
    return Search(
        name=path.stem,
        title=str(values.get("title", path.stem)),
        seed=seed,
        space=space,
        settings=tuple(_without_repeats(_in_turn(settings, drawn))),
        objective=_objective(path, _table(path, "objective", values)),
        path=path,
    )


def _table(path: Path, name: str, values: Mapping[str, Any]) -> Mapping[str, Any]:
    table = values.get(name, {})
    if not isinstance(table, Mapping):
        raise ConfigError(f"{path}: {name} must be a table")
    return table


def _combinations(where: str, lead: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    lists = {key: value if isinstance(value, list) else [value] for key, value in lead.items()}
    dimensions = parse_space(where, lists)
    for choice in itertools.product(*(dimension.choices for dimension in dimensions)):
        yield {key: value for part in choice for key, value in part.items()}


def _setting(path: Path, base: Mapping[str, Any], source: str, index: int, values: Mapping[str, Any]) -> Setting:
    from stabilitylab.train.mitigations import configured

    try:
        config = configure(base, values)
        configured(config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {source} setting {index}: {error}") from None
    return Setting(source, index, values, config)


def _in_turn(leads: Sequence[Setting], drawn: Sequence[Setting]) -> Iterator[Setting]:
    left, right = iter(leads), iter(drawn)
    for lead in left:
        yield lead
        yield from itertools.islice(right, DRAWN_PER_LEAD)
    yield from right


def _without_repeats(settings: Iterator[Setting]) -> Iterator[Setting]:
    seen: set[str] = set()
    for setting in settings:
        if setting.name not in seen:
            seen.add(setting.name)
            yield setting


def _objective(path: Path, values: Mapping[str, Any]) -> Objective:
    known = [field.name for field in fields(Objective)]
    for key, value in values.items():
        check_choice(f"objective in {path}", key, known)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise ConfigError(f"{path}: objective {key} = {value!r} is not a number of at least 0")
    return Objective(**values)
