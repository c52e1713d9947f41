"""Photos, and networks of any origin: for `explain`, `predict` and `export`."""
