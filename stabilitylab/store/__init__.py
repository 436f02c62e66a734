"""The store: one folder a run, one run.duckdb in it when the run has ended."""
