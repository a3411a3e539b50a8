"""Vectors in a FAISS index: one file, read into memory, that can always be made again."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mimic_pl.errors import StoreError
from mimic_pl.files import sync_folder, write_error, write_file
from mimic_pl.formats.optional_package import optional_package
from mimic_pl.retrieval.candidate_store import Numbers, Rows, Vectors, VectorStore
from mimic_pl.retrieval.retriever import Allowed

_MANIFEST = "manifest.json"
_TRAINED_ON = 64
"""Vectors per list that lists are learned from."""

_ENOUGH = 4
"""Entities to look at for each one to find, if a condition leaves only some."""


class FaissStore(VectorStore):
    """The folder ``candidates/faiss``: an index, the order numbers and checksums of its entities, and a manifest.

    The manifest names the files with their checksums and the version of the knowledge base. It is replaced last, so
    that a kill leaves the previous version, or none. A damaged file counts as none, and the index is built again.

    Changes are made in memory and written as a whole: FAISS's file cannot be changed in place.

    Args:
        folder: The folder.
        width: Width of the vectors.
        index_from: Entities from which on they are in lists of similar ones, with 8 bits a number; fewer are compared
            one by one.
        probes: Lists that a search looks into.
    """

    def __init__(self, folder: Path, width: int, index_from: int = 20_000, probes: int = 32) -> None:
        super().__init__(width)
        self._faiss: Any = optional_package("faiss", "The FAISS retriever", "faiss")
        self.folder = folder
        self.index_from = index_from
        self.probes = probes
        self.reopen()

    @property
    def settings(self) -> dict[str, Any]:
        """The engine."""
        return {"engine": "faiss"}

    @property
    def description(self) -> str | None:
        """From the manifest."""
        return self._description

    @property
    def version(self) -> int | None:
        """From the manifest."""
        return self._version

    def reopen(self) -> None:
        """Read the files that the manifest names."""
        self._description: str | None = None
        self._version: int | None = None
        self._index: Any = None
        self._order = self._checksums = np.empty(0, np.int64)
        self._pending: list[Vectors] = []
        try:
            manifest = json.loads((self.folder / _MANIFEST).read_bytes())
            files = {(self.folder / name).suffix: self.folder / name for name in manifest["files"]}
            if any(_crc32(path) != manifest["files"][path.name] for path in files.values()):
                return
            self._index = self._faiss.read_index(str(files[".faiss"]))
            self._order, self._checksums = np.fromfile(files[".rows"], np.int64).reshape(2, -1)
            self._description, self._version = manifest["description"], manifest["version"]
        except (OSError, ValueError, KeyError, TypeError, RuntimeError):
            self._index = None  # nothing, or nothing that can be used

    def __len__(self) -> int:
        """Number of vectors."""
        return len(self._order)

    def rows(self) -> tuple[Numbers, Numbers]:
        """From memory."""
        return self._order, self._checksums

    def clear(self, description: str) -> None:
        """In memory; the files stay until the next commit."""
        self._index = None
        self._order = self._checksums = np.empty(0, np.int64)
        self._pending = []
        self._description, self._version = description, None

    def delete(self, order: Numbers) -> None:
        """In memory."""
        if not len(order):
            return
        self._index.remove_ids(self._faiss.IDSelectorBatch(order))
        kept = ~np.isin(self._order, order)
        self._order, self._checksums = self._order[kept], self._checksums[kept]

    def add(self, rows: Rows) -> None:
        """In memory; the first vectors are kept until there are enough to learn lists from."""
        self._order = np.concatenate([self._order, rows.order])
        self._checksums = np.concatenate([self._checksums, rows.checksums])
        if self._index is None:
            self._pending.append(rows.vectors.astype(np.float16))
        else:
            self._index.add_with_ids(np.ascontiguousarray(rows.vectors), rows.order)

    def commit(self, version: int) -> None:
        """Write the files, and then the manifest."""
        if self._index is None:
            self._build()
        elif self._flat and len(self) >= self.index_from:
            self._pending = [self._index.index.reconstruct_n(0, len(self))]
            self._order, self._checksums = self._in_order_of_ids()
            self._build()
        written = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, content in (
                (f"v{version}.faiss", self._faiss.serialize_index(self._index)),
                (f"v{version}.rows", np.stack([self._order, self._checksums]).reshape(-1).view(np.uint8)),
            ):
                written[name] = zlib.crc32(content.data)
                write_file(self.folder / name, content.data)
            manifest = {"description": self._description, "version": version, "files": written}
            write_file(self.folder / _MANIFEST, json.dumps(manifest).encode())
            for path in self.folder.iterdir():
                if path.name not in (*written, _MANIFEST):
                    path.unlink()
            sync_folder(self.folder)
        except OSError as error:
            raise write_error(error, self.folder, 0) from error
        self._version = version

    def nearest(self, vectors: Vectors, k: int, allowed: Allowed | None) -> list[Tensor]:
        """FAISS's search, with a selector of order numbers under a condition."""
        if self._index is None:
            return [torch.empty(0, dtype=torch.int64)] * len(vectors)
        options: dict[str, Any] = {}
        lists = 1 if self._flat else self._index.nlist
        probes = min(self.probes, lists)
        if allowed is not None:
            order = np.ascontiguousarray(allowed.order.cpu().numpy())
            options["sel"] = self._faiss.IDSelectorBatch(order)
            # To look at as many entities as without a condition, and at some times as many as are to be found.
            probes = min(lists, -(-max(probes * len(self), _ENOUGH * k * lists) // len(order)))
        parameters = (
            self._faiss.SearchParameters(**options)
            if self._flat
            else self._faiss.SearchParametersIVF(nprobe=probes, **options)
        )
        _, order = self._index.search(np.ascontiguousarray(vectors, np.float32), k, params=parameters)
        return [torch.from_numpy(row[row >= 0].copy()) for row in order]

    @property
    def _flat(self) -> bool:
        return isinstance(self._index, self._faiss.IndexIDMap)

    def _in_order_of_ids(self) -> tuple[Numbers, Numbers]:
        """Order numbers and checksums in the order in which FAISS keeps the vectors."""
        ids = self._faiss.vector_to_array(self._index.id_map)
        rows = np.argsort(self._order)[np.searchsorted(np.sort(self._order), ids)]
        return ids, self._checksums[rows]

    def _build(self) -> None:
        faiss, pending = self._faiss, self._pending
        inner = faiss.METRIC_INNER_PRODUCT
        count = len(self)
        if count < self.index_from:
            self._index = faiss.IndexIDMap(faiss.IndexFlatIP(self.width))
        else:
            lists = max(1, round(count**0.5))
            quantizer = faiss.IndexFlatIP(self.width)
            self._index = faiss.IndexIVFScalarQuantizer(
                quantizer, self.width, lists, faiss.ScalarQuantizer.QT_8bit, inner
            )
            rng, share = np.random.default_rng(0), min(1.0, _TRAINED_ON * lists / count)
            some = [part[rng.random(len(part)) < share] for part in pending]
            self._index.train(np.concatenate(some).astype(np.float32))
        start = 0
        for part in pending:
            self._index.add_with_ids(part.astype(np.float32), self._order[start : start + len(part)])
            start += len(part)
        if start != count:
            raise StoreError(f"{self.folder} has lost vectors. Delete it; it is built again.")
        self._pending = []


def _crc32(path: Path) -> int:
    """CRC-32 of a file, which is read in blocks."""
    crc32 = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            crc32 = zlib.crc32(block, crc32)
    return crc32
