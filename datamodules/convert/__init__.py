"""From photos in any layout to shards: what `litcam convert` does."""

from litcam.datamodules.convert.manifest import FORMAT, MANIFEST, check
from litcam.datamodules.convert.pipeline import CHUNK_BYTES, convert

__all__ = ["CHUNK_BYTES", "FORMAT", "MANIFEST", "check", "convert"]
