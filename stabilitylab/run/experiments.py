"""Experiments made on a run (`stablab cause`), stored in its folder: ``cause/impulse-001.json``, .png and .npz.

Reading them does not import torch, so reports can show them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from stabilitylab.analysis.results import Episode
from stabilitylab.errors import StoreError

FOLDER = "cause"
SCHEMA = 1


@dataclass(frozen=True)
class Experiment:
    """One experiment. ``sentence`` states the result with its interval, ``verdict`` the result in one word (or empty);
    ``next`` lists commands to try. ``settings`` and ``results`` are as stored in JSON; ``path`` is the JSON file."""

    kind: str
    sentence: str
    verdict: str
    settings: dict[str, Any]
    results: dict[str, Any]
    next: tuple[str, ...]
    created_at: str
    path: Path

    @property
    def picture(self) -> Path | None:
        """The path of the figure, or None if there is none."""
        path = self.path.with_suffix(".png")
        return path if path.is_file() else None

    def arrays(self) -> dict[str, np.ndarray]:
        """The raw arrays by name; empty if none were saved."""
        path = self.path.with_suffix(".npz")
        if not path.is_file():
            return {}
        with np.load(path, allow_pickle=False) as stored:
            return dict(stored)


def load_experiments(run_dir: Path) -> list[Experiment]:
    """The experiments made on a run, oldest first. Other files in the folder are ignored."""
    experiments = []
    for path in sorted((run_dir / FOLDER).glob("*-[0-9][0-9][0-9].json")):
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            experiments.append(
                Experiment(
                    kind=str(stored["kind"]),
                    sentence=str(stored["sentence"]),
                    verdict=str(stored.get("verdict", "")),
                    settings=dict(stored.get("settings", {})),
                    results=dict(stored.get("results", {})),
                    next=tuple(map(str, stored.get("next", ()))),
                    created_at=str(stored.get("created_at", "")),
                    path=path,
                )
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return sorted(experiments, key=lambda e: (e.created_at, e.path.name))


def suggested_commands(run_dir: Path, episodes: Sequence[Episode], made: Sequence[Experiment]) -> list[str]:
    """Commands for experiments of the kinds not made yet, on the largest episode that a saved checkpoint precedes.
    Empty if there is no such episode. ``episodes``: those of the run's analysis."""
    kept = sorted(int(path.stem.partition("-")[2]) for path in (run_dir / "checkpoints").glob("iteration-[0-9]*.pt"))
    usable = [e for e in episodes if any(t <= e.start for t in kept)] if (run_dir / "config.toml").is_file() else []
    if not usable:
        return []
    largest = max(usable, key=lambda e: e.ratio)
    before = [t for t in kept if t <= largest.start]
    name = run_dir.resolve().name
    commands = {
        "swap": f"stablab cause swap {name} --at {largest.start}",
        "blame": f"stablab cause blame {name} --at {largest.start}",
        "impulse": f"stablab cause impulse {name} --layer {largest.leader} --at {before[-1]}",
        "sharpness": f"stablab cause sharpness {name} --at {','.join(map(str, before[-4:]))}",
    }
    if len(before) < 2:  # no earlier state to compare with
        del commands["swap"]
    done = {experiment.kind for experiment in made}
    return [command for kind, command in commands.items() if kind not in done]


def save_experiment(
    run_dir: Path,
    kind: str,
    sentence: str,
    *,
    verdict: str = "",
    settings: Mapping[str, Any],
    results: Mapping[str, Any],
    next_commands: Sequence[str] = (),
    arrays: Mapping[str, np.ndarray] | None = None,
    draw: Callable[[Path], None] | None = None,
) -> Experiment:
    """Save an experiment in the run's folder under the next free number, so that nothing is overwritten.

    ``draw`` is called with the path of the figure. Raises StoreError if the folder cannot be written."""
    folder = run_dir / FOLDER
    try:
        folder.mkdir(exist_ok=True)
        path = _claim(folder, kind)
        if arrays is not None:
            np.savez_compressed(path.with_suffix(".npz"), **arrays)  # type: ignore[arg-type]
        experiment = Experiment(
            kind,
            sentence,
            verdict,
            dict(settings),
            dict(results),
            tuple(next_commands),
            datetime.now(UTC).isoformat(),
            path,
        )
        stored = {"schema": SCHEMA, **{k: v for k, v in asdict(experiment).items() if k != "path"}}
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(_plain(stored), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        temporary.replace(path)
        if draw is not None:  # last: a failure to draw loses no results
            draw(path.with_suffix(".png"))
    except OSError as error:
        raise StoreError(f"cannot save the experiment in {folder}: {error.strerror or error}") from None
    return experiment


def _claim(folder: Path, kind: str) -> Path:
    number = 1
    while True:
        path = folder / f"{kind}-{number:03d}.json"
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            number += 1
        else:
            return path


def _plain(value: Any) -> Any:
    """Convert a value for JSON: arrays become lists, non-finite numbers become null."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value
