"""Generated images with labels, boxes and masks."""

from litcam.datamodules.synthetic.datamodule import SyntheticDataModule

__all__ = ["SyntheticDataModule"]
