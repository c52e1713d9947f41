"""`python -m benchmarks --gpu`, from the repository's folder; see `benchmarks/gpu.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # the scripts here import each other by name

from gpu import main

main()
