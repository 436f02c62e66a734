"""Training runs: one, several side by side, or a whole study."""

from stabilitylab.studies.local import train_side_by_side
from stabilitylab.studies.running import FinishedRun, probe_run, resume_run, train_run

__all__ = ["FinishedRun", "probe_run", "resume_run", "train_run", "train_side_by_side"]
