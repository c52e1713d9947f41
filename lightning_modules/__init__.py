"""What is trained: classifiers over any timm backbone, and masked autoencoders of it."""

from litcam.lightning_modules.atomic_checkpoints import AtomicCheckpointIO
from litcam.lightning_modules.classifier import Classifier
from litcam.lightning_modules.mae import MAE
from litcam.lightning_modules.parallel.fully_sharded import FullyShardedStrategy

__all__ = ["MAE", "AtomicCheckpointIO", "Classifier", "FullyShardedStrategy"]
