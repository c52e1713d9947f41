"""From what an encoder sees of an image to the pixels it did not see."""

from litcam.lightning_modules.masked.decoders.choosing import (
    choose_size,
    count_flops,
    create_decoder,
)
from litcam.lightning_modules.masked.decoders.transformer import Decoder, sincos_positions
from litcam.lightning_modules.masked.decoders.unet import UNetDecoder

__all__ = [
    "Decoder",
    "UNetDecoder",
    "choose_size",
    "count_flops",
    "create_decoder",
    "sincos_positions",
]
