"""Counterfactual branches: continue training from one checkpoint on the same data, with and without a mitigation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from stabilitylab.config import Config, from_dict, read_toml
from stabilitylab.errors import ConfigError
from stabilitylab.run.provenance import provenance
from stabilitylab.store.location import claim_run
from stabilitylab.store.reader import RunReader, open_run
from stabilitylab.store.writer import RunWriter
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
    is trained. Returns their folders: without and with the mitigation, alternating.

    Raises:
        ConfigError: there is no checkpoint, the mitigation does not fit the run, or a branch exists already.
    """
    from stabilitylab.train.checkpoint import load_checkpoint
    from stabilitylab.train.trainer import Trainer

    config = from_dict(read_toml(run_dir / "config.toml"))
    state = load_checkpoint(run_dir / "checkpoints", at)
    start = state["iteration"]
    trained = Trainer(config).trained_names()

    def depart(future: Config) -> Trainer:
        trainer = Trainer(future)
        trainer.restore(state, trained)
        trainer.stop = min(until or trainer.total, trainer.total)
        if start >= trainer.stop:
            raise ConfigError(f"run {run_dir.name} ends at iteration {trainer.stop}: there is nothing left to train")
        return trainer

    depart(_future(config, config.train.seed, mitigation))  # raises if it does not fit; the seed makes no difference
    futures: dict[str, Config] = {}
    for seed in range(config.train.seed, config.train.seed + num_seeds):
        for added in ((), mitigation):
            what = [x.replace(":", "") for x in added] or ["as-was"]
            name = "-".join([run_dir.name, f"at{start}", f"s{seed}", *what])
            if (root / name).exists():
                raise ConfigError(f"branch {name} already exists in {root}; remove it or choose another --runs-dir")
            futures[name] = _future(config, seed, added)
    paths = []
    with open_run(run_dir) as past:
        for name, future in futures.items():
            paths.append(_train_branch(past, depart(future), root, name, partial(progress, name)))
    return paths


def _future(config: Config, seed: int, added: tuple[str, ...]) -> Config:
    values = config.model_dump()
    values["train"]["seed"] = seed
    values["mitigation"] = [*config.mitigation, *added]
    return from_dict(values)


def _train_branch(
    past: RunReader, trainer: Trainer, root: Path, name: str, progress: Callable[[Progress], None]
) -> Path:
    start = trainer.start
    folder = claim_run(root, name)
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
    return folder
