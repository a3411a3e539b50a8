"""Vectors in a Milvus collection: an embedded file, a server, or a cluster."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mimic_pl.errors import ConfigError, StoreError
from mimic_pl.formats.optional_package import optional_package
from mimic_pl.remote_path import Folder
from mimic_pl.retrieval.candidate_store import Numbers, Rows, Vectors, VectorStore
from mimic_pl.retrieval.retriever import Allowed

Consistency = Literal["Strong", "Session", "Bounded", "Eventually"]
"""Milvus's consistency levels: what a search must see of earlier writes."""

TOKEN = "MILVUS_TOKEN"
"""Environment variable with the token, or ``user:password``, of a server that asks for one."""

_MARKER = -1
"""Order number of the row whose checksum is the version of the knowledge base."""

_MOST = 16_384
"""Milvus's maximum number of results."""

_AT_ONCE = 2048
_TYPE_BYTES = 512


class MilvusStore(VectorStore):
    """A collection with the fields ``order`` (the primary key), ``checksum``, ``type`` and ``vector``.

    The knowledge base is the truth. One more row, with the order number -1, has the version of the knowledge base that
    the collection equals: it is written last, so that a collection that lags behind, because a process was killed or
    others have changed the knowledge base meanwhile, says so. Rows are written by upsert: to write one twice is
    harmless.

    Args:
        folder: Folder of the knowledge base, after which the collection is named by default.
        width: Width of the vectors.
        uri: ``http://HOST:19530`` of a server or cluster, or a file, for Milvus Lite in one process.
        collection: Name of the collection.
        index: Milvus's kind of index; ``AUTOINDEX`` leaves the choice to the server.
        effort: Entities that a search of a graph keeps in view, at least k.
        consistency: With ``Strong``, a search sees all writes of all processes before it.
        timeout: Seconds after which a server counts as not reachable.
    """

    def __init__(
        self,
        folder: Folder,
        width: int,
        uri: str,
        collection: str | None = None,
        index: str = "AUTOINDEX",
        effort: int = 200,
        consistency: Consistency = "Strong",
        timeout: float = 60.0,
    ) -> None:
        super().__init__(width)
        self._pymilvus: Any = optional_package("pymilvus", "The Milvus retriever", "milvus")
        self.uri = uri
        own = "".join(character if character.isalnum() else "_" for character in folder.name)
        digest = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
        self.collection = collection or f"mimic_{own}_{digest}"
        self.index = index
        self.effort = effort
        self.consistency: Consistency = consistency
        self.timeout = timeout
        self._reached = False
        with self._talking():
            self._client = self._pymilvus.MilvusClient(uri=uri, token=os.environ.get(TOKEN, ""), timeout=timeout)
        self.reopen()
        self._reached = True

    @property
    def settings(self) -> dict[str, Any]:
        """The kind of index."""
        return {"engine": "milvus", "index": self.index}

    @property
    def description(self) -> str | None:
        """The description of the collection."""
        return self._description

    @property
    def version(self) -> int | None:
        """From the marker row."""
        if self._description is None:
            return None
        with self._talking():
            found = self._query(f"order == {_MARKER}", ["checksum"])
        return int(found[0]["checksum"]) if found else None

    def reopen(self) -> None:
        """Load the collection, if there is one."""
        self._description: str | None = None
        with self._talking():
            if self._client.has_collection(self.collection, timeout=self.timeout):
                self._description = self._client.describe_collection(self.collection)["description"]
                self._client.load_collection(self.collection, timeout=self.timeout)

    def __len__(self) -> int:
        """Number of rows but the marker."""
        if self._description is None:
            return 0
        with self._talking():
            return int(self._query("order >= 0", ["count(*)"])[0]["count(*)"])

    def rows(self) -> tuple[Numbers, Numbers]:
        """Read from the server: 16 bytes for each entity."""
        parts = [np.empty((0, 2), np.int64)]
        with self._talking():
            iterator = self._client.query_iterator(
                self.collection,
                batch_size=_AT_ONCE,
                filter="order >= 0",
                output_fields=["order", "checksum"],
                consistency_level=self.consistency,
            )
            while batch := iterator.next():
                parts.append(np.array([(row["order"], row["checksum"]) for row in batch], np.int64))
            iterator.close()
        order, checksums = np.concatenate(parts).T
        return order, checksums

    def clear(self, description: str) -> None:
        """Drop the collection, and create it."""
        types = self._pymilvus.DataType
        with self._talking():
            self._client.drop_collection(self.collection, timeout=self.timeout)
            schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False, description=description)
            schema.add_field("order", types.INT64, is_primary=True)
            schema.add_field("checksum", types.INT64)
            schema.add_field("type", types.VARCHAR, max_length=_TYPE_BYTES)
            schema.add_field("vector", types.FLOAT_VECTOR, dim=self.width)
            index = self._client.prepare_index_params()
            parameters = {"M": 16, "efConstruction": 200} if "HNSW" in self.index else {}
            index.add_index("vector", index_type=self.index, metric_type="IP", params=parameters)
            self._client.create_collection(
                self.collection, schema=schema, index_params=index, consistency_level=self.consistency
            )
        self.reopen()

    def delete(self, order: Numbers) -> None:
        """By primary key."""
        with self._talking():
            for start in range(0, len(order), _AT_ONCE):
                self._client.delete(self.collection, ids=order[start : start + _AT_ONCE].tolist())

    def add(self, rows: Rows) -> None:
        """By upsert."""
        kinds = [_type_of(entity.fields.get("type", "")) for entity in rows.entities]
        self._upsert(rows.order.tolist(), rows.checksums.tolist(), kinds, rows.vectors)

    def commit(self, version: int) -> None:
        """Flush, then write the marker, and flush that."""
        with self._talking():
            self._client.flush(self.collection)
        self._upsert([_MARKER], [version], [""], np.zeros((1, self.width), np.float32))
        with self._talking():
            self._client.flush(self.collection)

    def nearest(self, vectors: Vectors, k: int, allowed: Allowed | None) -> list[Tensor]:
        """The engine's search; by type, or by order number under any other condition."""
        condition = ""
        if allowed is not None and allowed.type is not None and len(allowed.type.encode()) <= _TYPE_BYTES:
            condition = f"type == {_literal(allowed.type)}"
        elif allowed is not None:
            condition = f"order in {allowed.order.tolist()}"
        limit = min(k + 1, _MOST)  # the marker may be among them
        with self._talking():
            found = self._client.search(
                self.collection,
                data=list(np.ascontiguousarray(vectors, np.float32)),
                filter=condition,
                limit=limit,
                output_fields=["order"],
                search_params={"metric_type": "IP", "params": {"ef": max(limit, self.effort)}},
                consistency_level=self.consistency,
                timeout=self.timeout,
            )
        order = [[hit["entity"].get("order", hit.get("order", hit.get("id"))) for hit in hits] for hits in found]
        return [torch.tensor([n for n in own if n != _MARKER][:k], dtype=torch.int64) for own in order]

    def _query(self, condition: str, fields: list[str]) -> Sequence[Any]:
        return self._client.query(
            self.collection, filter=condition, output_fields=fields, consistency_level=self.consistency
        )

    def _upsert(self, order: list[int], checksums: list[int], kinds: Sequence[str], vectors: Vectors) -> None:
        data = [
            {"order": number, "checksum": checksum, "type": kind, "vector": vector}
            for number, checksum, kind, vector in zip(order, checksums, kinds, vectors, strict=True)
        ]
        with self._talking():
            for start in range(0, len(data), _AT_ONCE):
                self._client.upsert(self.collection, data[start : start + _AT_ONCE])

    @contextmanager
    def _talking(self) -> Iterator[None]:
        """Turn errors of the client into those of this package."""
        try:
            yield
        except self._pymilvus.MilvusException as error:
            kind, what = (StoreError, "failed") if self._reached else (ConfigError, "cannot be reached")
            raise kind(
                f"Milvus at {self.uri} {what}: "
                f"{' '.join(str(error.message or error).split())}. Check the address and the server, and for one that "
                f"asks for a password the environment variable {TOKEN}; a file needs the package milvus-lite."
            ) from error


def _type_of(text: str) -> str:
    """A type as it is stored: cut where it does not fit, in which case it is not searched for by type."""
    return text.encode()[:_TYPE_BYTES].decode(errors="ignore")


def _literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
