"""Counterfactual branches: continue training from one checkpoint on the same data, with and without a mitigation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from stabilitylab.cause.reached import require_reached
from stabilitylab.config import Config, from_dict, read_run_config
from stabilitylab.errors import ConfigError, StabilityLabError
from stabilitylab.run.provenance import provenance
from stabilitylab.store.location import claim_run
from stabilitylab.store.reader import RunReader, open_run
from stabilitylab.store.writer import RunWriter
from stabilitylab.studies.restarting import is_bare_claim, is_complete, rename_killed
from stabilitylab.studies.running import layer_rows, record_into

if TYPE_CHECKING:
    from stabilitylab.train.trainer import Progress, Trainer

_PAST = ("layer_stats", "iterations", "evals", "scalars")
"""Tables whose rows before the branching point are copied into a branch."""


def branch_run(
    run_dir: Path,
    at: int,
    mitigation: tuple[str, ...],
    root: Path,
    *,
    num_seeds: int = 1,
    until: int | None = None,
    progress: Callable[[str, Progress], None] = lambda *_: None,
) -> list[Path]:
    """Train pairs of branches from the last checkpoint at or before iteration ``at``: one with the configuration of the
    run, one with ``mitigation`` added.

    The first pair sees the same batches as the run; ``num_seeds - 1`` further pairs see others. ``until``: iteration at
    which the branches end; by default that at which the run ends. The schedules are those of the run in either case.
    ``progress(name, progress)``: called during training.

    A branch is a complete run that includes the history before the branching point. All branches are checked before any
    is trained. Returns their folders: without and with the mitigation, alternating. The same call after a kill
    keeps the complete branches, renames the unfinished one to ``NAME-killed-N`` and trains the rest.

    Raises:
        ConfigError: there is no checkpoint, the run never reached ``at``, the mitigation does not fit the run, all
            branches exist already, or another run has the name of a branch.
    """
    from stabilitylab.train.checkpoint import load_checkpoint
    from stabilitylab.train.trainer import Trainer

    config = from_dict(read_run_config(run_dir))
    state = load_checkpoint(run_dir / "checkpoints", at)
    start = state["iteration"]
    require_reached(run_dir, at, [start])
    trained = Trainer(config).trained_names()

    def depart(future: Config) -> Trainer:
        trainer = Trainer(future)
        trainer.restore(state, trained)
        trainer.stop = min(until or trainer.total, trainer.total)
        if start >= trainer.stop:
            raise ConfigError(f"run {run_dir.name} ends at iteration {trainer.stop}: there is nothing left to train")
        return trainer

    # Raises if the mitigation does not fit, whatever the seed.
    stop = depart(_future(config, config.train.seed, mitigation)).stop
    futures: dict[str, Config] = {}
    for seed in range(config.train.seed, config.train.seed + num_seeds):
        for added in ((), mitigation):
            what = [x.replace(":", "") for x in added] or ["as-was"]
            name = "-".join([run_dir.name, f"at{start}", f"s{seed}", *what])
            futures[name] = _future(config, seed, added)
    paths = {name: root / name for name in futures}
    complete = {name for name, path in paths.items() if _is_complete(path, futures[name], run_dir.name, start, stop)}
    if complete == set(futures):
        raise ConfigError(f"branch {min(complete)} already exists in {root}; choose another --runs-dir")
    with open_run(run_dir) as past:
        for name in futures.keys() - complete:
            if paths[name].exists() and not is_bare_claim(paths[name]):
                rename_killed(paths[name])
        for name, future in futures.items():
            if name not in complete:
                _train_branch(past, depart(future), paths[name], partial(progress, name))
    return list(paths.values())


def _is_complete(path: Path, future: Config, parent: str, start: int, stop: int) -> bool:
    """Whether a branch exists and is complete; False if it must be trained. Raises ConfigError if the folder contains
    anything but this branch."""
    if not path.exists() or is_bare_claim(path):
        return False
    try:
        with open_run(path) as reader:
            same = (reader.meta.get("branched_from"), reader.meta.get("branched_at")) == (parent, str(start))
            same = same and from_dict(read_run_config(path)) == future
            status, iterations = reader.status, reader.num_iterations
    except (StabilityLabError, OSError):
        same = False
    if same and is_complete(path) and (iterations == stop or status == "stopped"):
        return True
    if same and status in ("crashed", "stopped"):
        return False
    raise ConfigError(f"branch {path.name} already exists in {path.parent}; move it away or choose another --runs-dir")


def _future(config: Config, seed: int, added: tuple[str, ...]) -> Config:
    values = config.model_dump()
    values["train"]["seed"] = seed
    values["mitigation"] = [*config.mitigation, *added]
    return from_dict(values)


def _train_branch(past: RunReader, trainer: Trainer, folder: Path, progress: Callable[[Progress], None]) -> None:
    start = trainer.start
    if not folder.exists():
        claim_run(folder.parent, folder.name)
    (folder / "config.toml").write_text(trainer.given.to_toml(), encoding="utf-8")
    meta = provenance() | {"seed": str(trainer.config.train.seed), "device": str(trainer.device)}
    meta |= {"branched_from": past.name, "branched_at": str(start)}
    config = trainer.given.model_dump(mode="json")
    writer = RunWriter.create(folder, config=config, meta=meta, layers=layer_rows(trainer))
    for table in _PAST:
        writer.append(table, past.query(f"SELECT * FROM {table} WHERE iteration < {start}").fetchnumpy())
    writer.event(start, "branch", f"branched from {past.name} at iteration {start}")
    for mitigation in trainer.given.mitigation:
        writer.event(start, "mitigation", mitigation)
    record_into(writer, trainer, folder, progress, lambda _: None)
