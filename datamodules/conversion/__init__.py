"""From photos in any layout to shards: what `litcam convert` does."""

from litcam.datamodules.conversion.manifest import FORMAT, MANIFEST, check
from litcam.datamodules.conversion.pipeline import CHUNK_BYTES, convert

__all__ = ["CHUNK_BYTES", "FORMAT", "MANIFEST", "check", "convert"]
