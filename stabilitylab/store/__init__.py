"""The store: one folder per run, which contains one run.duckdb after the run has ended."""
