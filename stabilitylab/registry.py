"""Registries of named objects that users choose from and extend, such as methods, mitigations and signals."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from stabilitylab.errors import ConfigError, PluginWarning

T = TypeVar("T")


def check_choice(kind: str, name: str, choices: Iterable[str]) -> str:
    """Return ``name`` if it is one of ``choices``. Otherwise raise ConfigError with the nearest valid names."""
    known = sorted(choices)
    if name in known:
        return name
    near = nearest(name, known)
    if not near:
        raise ConfigError(f"unknown {kind} {name!r}; known: {', '.join(known)}")
    raise ConfigError(f"unknown {kind} {name!r}; did you mean {' or '.join(near)}? Known: {', '.join(known)}")


def nearest(name: str, known: Iterable[str], n: int = 3, cutoff: float = 0.5) -> list[str]:
    """Up to ``n`` of the ``known`` names that are similar to ``name`` or contain it, the most similar first."""
    names = list(known)
    similar = difflib.get_close_matches(name, names, n=n, cutoff=cutoff)
    containing = [other for other in names if len(name) > 1 and name in other and other not in similar]
    return [*similar, *containing][:n]


def hint(name: str, known: Iterable[str], n: int = 3) -> str:
    """The end of a message about an unknown name: the nearest known names, or all of them if none is near."""
    names = list(known)
    near = nearest(name, names, n, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"


def located(entry: Any) -> Any:
    """Import ``"package.module:name"``. Other objects are returned unchanged."""
    if not isinstance(entry, str):
        return entry
    module, _, name = entry.partition(":")
    return getattr(import_module(module), name)


class Registry(Mapping[str, T]):
    """Entries by name: first those of this package, then those that plugins declare as entry points of ``group``.

    A plugin is imported when its entry is first read, not when names are listed. A plugin that cannot be imported, or
    that would replace an entry of this package, is skipped with a `PluginWarning`.

    ``kind``: the name of an entry in messages. ``check(name, value)``: raises ValueError or TypeError for an invalid
    entry.
    """

    def __init__(
        self,
        kind: str,
        entries: Mapping[str, T],
        *,
        group: str = "",
        check: Callable[[str, Any], object] = lambda name, value: None,
    ) -> None:
        self.kind, self.group = kind, group
        self._entries: dict[str, T] = dict(entries)
        self._own = frozenset(entries)
        self._check = check

    @cached_property
    def _plugins(self) -> dict[str, EntryPoint]:
        plugins: dict[str, EntryPoint] = {}
        for point in entry_points(group=self.group) if self.group else ():
            taken = "StabilityLab" if point.name in self._own else _package(plugins.get(point.name))
            if taken:
                self._skip(point, f"{taken} already defines the {self.kind} {point.name!r}")
            else:
                plugins[point.name] = point
        return plugins

    def add(self, name: str, entry: T) -> None:
        """Add an entry for this process. Raises ConfigError if the name exists."""
        if name in self._entries or name in self._plugins:
            raise ConfigError(f"the {self.kind} {name!r} already exists; choose another name")
        self._check(name, entry)
        self._entries[name] = entry

    def own(self, name: str) -> T | None:
        """The entry ``name`` if it is available without importing a plugin, else None."""
        return self._entries.get(name)

    def choose(self, name: str) -> T:
        """The entry ``name``. Raises ConfigError with the nearest names and a list of all names."""
        if name not in self._entries:  # avoids looking for plugins
            if name in self._plugins:
                self._load(name)
            check_choice(self.kind, name, self)
        return self._entries[name]

    def __getitem__(self, name: str) -> T:
        if name not in self._entries and name in self._plugins:
            self._load(name)
        return self._entries[name]

    def values(self) -> list[T]:  # type: ignore[override]
        """All entries, after importing all plugins."""
        return list(dict(self.items()).values())

    def items(self) -> list[tuple[str, T]]:  # type: ignore[override]
        """(name, entry) of all entries, after importing all plugins."""
        for name in list(self._plugins):
            if name not in self._entries:
                self._load(name)
        return list(self._entries.items())

    def __iter__(self) -> Iterator[str]:
        yield from self._entries
        yield from (name for name in self._plugins if name not in self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._plugins

    def __len__(self) -> int:
        return len(set(self))

    def _load(self, name: str) -> None:
        point = self._plugins[name]
        try:
            entry = point.load()
            self._check(name, entry)
        except Exception as error:
            del self._plugins[name]
            self._skip(point, f"{type(error).__name__}: {error}")
        else:
            self._entries[name] = entry

    def _skip(self, point: EntryPoint, why: str) -> None:
        text = f"skipped the {self.kind} {point.name!r} of the package {_package(point)}: {why}"
        warnings.warn(text, PluginWarning, stacklevel=4)


def _package(point: EntryPoint | None) -> str:
    """The name of the package that declares the entry point; empty without one."""
    if point is None:
        return ""
    return point.dist.name if point.dist is not None else point.value
