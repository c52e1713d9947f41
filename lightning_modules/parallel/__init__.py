"""Several processes: what they share, and what each keeps a part of."""
