"""What W&B wrote on this machine, by its own reader."""

import json
import subprocess
import sys


def inspect(folder):
    """The records of a W&B run, given by its folder or its file."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def read_history(folder):
    """Its rows of metrics and pictures, in the order they were logged."""
    return [record["history"]["item"] for record in inspect(folder) if "history" in record]
