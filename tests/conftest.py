"""One thread a process: tests run side by side (``-n auto``), and on one thread a run is repeatable to the bit."""

from __future__ import annotations

import os
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch or numpy
# Lists of files are cached, but not in the developer's home.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="stablab-cache-")
