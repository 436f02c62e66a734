"""One thread per process: tests run in parallel (``-n auto``), and with one thread a run is bit-reproducible."""

from __future__ import annotations

import os
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch or numpy
# Lists of files are cached, but not in the developer's home.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="stablab-cache-")
