"""Train runs on a cluster: one Slurm job per run, through submitit."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stabilitylab.config import Config
from stabilitylab.errors import ConfigError
from stabilitylab.studies.restarting import Preempted, attempt

_LOOK_EVERY = 1.0  # seconds between checks of the jobs


def run_on_cluster(
    jobs: Sequence[tuple[str, Config]],
    root: Path,
    parameters: Mapping[str, Any],
    ended: Callable[[str, str], None] = lambda *_: None,
    *,
    cluster: str = "slurm",
) -> dict[str, str]:
    """Submit each run as a job and wait for all. Returns the failures by name. ``parameters`` are passed to submitit
    (``slurm_partition``, ``gpus_per_node``, ``timeout_min``, ...); ``cluster``: ``slurm``, or ``local`` or ``debug`` in
    tests. ``root`` must be on a file system shared by the nodes. A job that is preempted, or about to exceed its time
    limit, writes a checkpoint and is submitted again. The next call resumes jobs that Slurm killed. Raises ConfigError
    if submitit is missing or rejects the parameters."""
    try:
        import submitit
    except ImportError:
        raise ConfigError("submitting to Slurm needs submitit: pip install 'stabilitylab[slurm]'") from None
    try:
        executor = submitit.AutoExecutor(root / ".submitit", cluster=cluster)
    except RuntimeError as error:  # no srun on this machine
        raise ConfigError(f"cannot submit to Slurm from here: {error}") from None
    try:
        executor.update_parameters(**parameters)
    except (NameError, AssertionError, TypeError, ValueError) as error:
        raise ConfigError(f"submitit rejects these job settings: {error}") from None
    root = root.resolve()
    configs = dict(jobs)
    submitted = {name: executor.submit(_job, config, root, name) for name, config in jobs}
    failures: dict[str, str] = {}
    while submitted:
        for name in [name for name, job in submitted.items() if job.done()]:
            job = submitted.pop(name)
            failure = job.exception()  # of the job itself: killed or timed out
            if failure is None:
                why, preempted = job.result()
                if preempted:
                    submitted[name] = executor.submit(_job, configs[name], root, name)
                    continue
            else:
                why = (str(failure).strip() or type(failure).__name__).splitlines()[0]
            if why:
                failures[name] = why
            ended(name, why)
        if submitted:
            time.sleep(_LOOK_EVERY)
    return failures


def _job(config: Config, root: Path, name: str) -> tuple[str, bool]:
    """The reason why a run ended early, or an empty string, and whether it was preempted. submitit announces preemption
    and the time limit with SIGUSR2, and would only restart a function from its arguments."""
    try:
        return attempt(config, root, name, interruptible=True), False
    except Preempted as signal:
        return str(signal), True
