"""Many runs that differ in a few options: planned, run, and compared."""

from litcam.sweeps.arms import Arm
from litcam.sweeps.description import Sweep, read_sweep
from litcam.sweeps.results import Results
from litcam.sweeps.running import run_arms
from litcam.sweeps.search import plan

__all__ = ["Arm", "Results", "Sweep", "plan", "read_sweep", "run_arms"]
