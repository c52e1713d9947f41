"""From photos in any layout to shards: what `litcam convert` does."""

from litcam.datamodules.convert.manifest import check
from litcam.datamodules.convert.pipeline import CHUNK_BYTES, convert
from litcam.datamodules.shard_format import FORMAT, MANIFEST

__all__ = ["CHUNK_BYTES", "FORMAT", "MANIFEST", "check", "convert"]
