"""Training steps: repeatable, finite, taken whole or not at all, and timed."""

from litcam.lightning_modules.steps.guarded import GuardedSteps, run_seed

__all__ = ["GuardedSteps", "run_seed"]
