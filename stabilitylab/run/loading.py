"""Load a run from its folder together with its analysis."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from stabilitylab.analysis.detection.settings import SpikeSettings
from stabilitylab.analysis.explain import explain_episodes
from stabilitylab.run.analysed import AnalysedRun
from stabilitylab.run.answers import Subject, answer_run
from stabilitylab.run.experiments import load_experiments, suggested_commands
from stabilitylab.run.series import load_series
from stabilitylab.store.reader import open_run


def load_run(
    run_dir: Path,
    settings: SpikeSettings | None = None,
    *,
    keep: bool = True,
    **subject: Unpack[Subject],
) -> AnalysedRun:
    """Load and analyse the run in ``run_dir``; see `answer_run` for the arguments. Works without gradients and while
    the run is being written."""
    answer = answer_run(run_dir, settings, keep=keep, need_gradients=False, **subject)
    experiments = load_experiments(run_dir)
    with open_run(run_dir) as reader:  # after the analysis: in a live run, the data then covers every result
        curve = reader.table("iterations")
        known = [name for name in ("seed", "device", "git_commit") if reader.meta.get(name)]
        versions = sorted(name for name in reader.meta if name.endswith("_version"))
        explanations = explain_episodes(
            answer.analysis,
            reader.config,
            ours="optim" in reader.config,
            checkpoints=any((run_dir / "checkpoints").glob("*")),
        )
        return AnalysedRun(
            series=load_series(reader),
            analysis=answer.analysis,
            config=reader.config,
            status=reader.status,
            created_at=reader.meta.get("created_at", ""),
            loss=(curve["iteration"], curve["loss"]) if len(curve["iteration"]) else None,
            provenance={name: reader.meta[name] for name in (*known, *versions)},
            events=[(e.iteration, e.kind, e.detail) for e in reader.events()],
            explanations=[(one.text, one.next) for one in explanations],
            problems=tuple(reader.problems),
            experiments=experiments,
            next_experiments=suggested_commands(run_dir, answer.analysis.episodes or (), experiments),
        )
