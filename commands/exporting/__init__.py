"""What others load of a run: a timm folder, its model card, and ONNX."""

from litcam.commands.exporting.card import write_card
from litcam.commands.exporting.onnx_file import check_installed, write_onnx
from litcam.commands.exporting.photos import images_to_compare
from litcam.commands.exporting.source import Source, find_source
from litcam.commands.exporting.timm_folder import write_timm

__all__ = [
    "Source",
    "check_installed",
    "find_source",
    "images_to_compare",
    "write_card",
    "write_onnx",
    "write_timm",
]
