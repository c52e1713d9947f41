"""What is trained: classifiers over any timm backbone."""

from litcam.lightning_modules.classifier import Classifier

__all__ = ["Classifier"]
