"""`python -m benchmarks --gpu`, from the repository's folder; see `benchmarks/speed/gpu.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "speed"))  # scripts import each other by name

from gpu import main

main()
