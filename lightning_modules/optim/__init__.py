"""From a recipe to an optimiser and its schedule."""

from litcam.lightning_modules.optim.groups import parameter_groups
from litcam.lightning_modules.optim.optimizers import check_optimizer, create_optimizer
from litcam.lightning_modules.optim.recipe import Recipe, configure
from litcam.lightning_modules.optim.schedule import (
    REFERENCE_BATCH,
    effective_batch_size,
    schedule_lengths,
    warmup_cosine,
    warmup_stairs,
)

__all__ = [
    "REFERENCE_BATCH",
    "Recipe",
    "check_optimizer",
    "configure",
    "create_optimizer",
    "effective_batch_size",
    "parameter_groups",
    "schedule_lengths",
    "warmup_cosine",
    "warmup_stairs",
]
