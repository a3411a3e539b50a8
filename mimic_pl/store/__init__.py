"""Arrays on disk, in shards: written safely, opened at once, read without being loaded."""

from mimic_pl.store.manifest import VERSION as STORE_VERSION
from mimic_pl.store.manifest import Column
from mimic_pl.store.reader import Store
from mimic_pl.store.writer import StoreWriter

__all__ = ["STORE_VERSION", "Column", "Store", "StoreWriter"]
