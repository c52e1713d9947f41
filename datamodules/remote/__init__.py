"""Files behind an address, and where they are kept: one client, and one cache a node."""

from litcam.datamodules.remote.store import Plan, Reader, Store, StoredFile, open_store

__all__ = ["Plan", "Reader", "Store", "StoredFile", "open_store"]
