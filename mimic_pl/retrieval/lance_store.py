"""Candidates in a Lance dataset beside the knowledge base: vectors, names and texts with the engine's own indexes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from bm25s.stopwords import STOPWORDS_EN
from torch import Tensor

from mimic_pl.ranking.lance_dataset import address_of, dataset_at, dataset_exists, lance, reading
from mimic_pl.ranking.lance_rows import ORDER
from mimic_pl.ranking.lance_writer import append_table, delete_dataset, remove_unfinished, writing
from mimic_pl.ranking.text_columns import TYPE, column_of
from mimic_pl.remote_path import Folder, local_folder
from mimic_pl.retrieval.candidate_store import Numbers, Rows, Vectors, VectorStore
from mimic_pl.retrieval.retriever import Allowed

VectorIndex = Literal["IVF_HNSW_SQ", "IVF_RQ", "IVF_SQ"]
"""Lance's index: a graph over 8-bit vectors, or lists of vectors with some bits, or 8, a number."""

CHECKSUM, TEXT, VECTOR = "#checksum", "#text", "#vector"
_VECTOR_INDEX = "vector"
_DESCRIPTION = b"mimic_pl.candidates"
_VERSION = "mimic_pl.version"

_DELETED_AT_ONCE = 10_000
_KEEP = timedelta(hours=24)
"""Age of the files of earlier versions that are kept for their readers."""

_UNINDEXED = 4096, 0.02
"""Rows, and fraction of all rows, that are searched without an index before it is updated."""

_MOST_FRAGMENTS = 256
_GRAPH = 250_000
"""Entities of one graph; partitions of a graph index are large, since each is searched separately."""


class LanceStore(VectorStore):
    """The dataset ``candidates/NAME`` in the folder of a knowledge base.

    A row has an entity's order number and checksum, its record's texts in the same columns as in the knowledge base,
    so that the same conditions select the same entities, and its vector in half precision. New rows are found at once:
    those that no index has yet are searched without.

    Args:
        folder: Folder of the dataset.
        width: Width of the vectors; 0 for texts alone.
        index: Kind of vector index.
        index_from: Entities from which on vectors and types are indexed; fewer are compared one by one.
        probes: Partitions that a search looks into, of an index of lists; more if few entities are allowed.
        effort: Entities that a search of a graph keeps in view, at least k.
    """

    def __init__(
        self,
        folder: Folder,
        width: int,
        index: VectorIndex = "IVF_RQ",
        index_from: int = 20_000,
        probes: int = 256,
        effort: int = 200,
    ) -> None:
        super().__init__(width)
        self.has_vectors = width > 0
        self.folder: Folder = folder
        self.index: VectorIndex = index
        self.index_from = index_from
        self.probes = probes
        self.effort = effort
        self._dataset: Any = None
        self.reopen()

    @property
    def settings(self) -> dict[str, Any]:
        """The kind of index."""
        return {"engine": "lance", "index": self.index if self.has_vectors else None}

    def reopen(self) -> None:
        """Open the newest version of the dataset."""
        self._dataset = None
        if dataset_exists(self.folder):
            with reading(self.folder):
                self._dataset = dataset_at(self.folder)

    @property
    def _writable(self) -> Path:
        return local_folder(self.folder)

    @property
    def description(self) -> str | None:
        """In the metadata of the schema."""
        if self._dataset is None:
            return None
        text = (self._dataset.schema.metadata or {}).get(_DESCRIPTION)
        return None if text is None else text.decode()

    @property
    def version(self) -> int | None:
        """In the configuration of the dataset."""
        version = None if self._dataset is None else self._dataset.config().get(_VERSION)
        return None if version is None else int(version)

    def __len__(self) -> int:
        """Number of rows."""
        return 0 if self._dataset is None else int(self._dataset.count_rows())

    def rows(self) -> tuple[Numbers, Numbers]:
        """Read from the dataset."""
        with reading(self.folder):
            table = self._dataset.to_table(columns=[ORDER, CHECKSUM])
            return table.column(0).to_numpy(), table.column(1).to_numpy()

    def clear(self, description: str) -> None:
        """Replace the dataset by an empty one; readers of what was there keep it."""
        if self.description is None:  # nothing, or what cannot be read
            delete_dataset(self._writable)
            self._dataset = None
        fields = [
            pa.field(ORDER, pa.int64()),
            pa.field(CHECKSUM, pa.int64()),
            pa.field("id", pa.string()),
            pa.field("name", pa.string()),
            pa.field(TEXT, pa.string()),
            *([pa.field(VECTOR, pa.list_(pa.float16(), self.width))] if self.has_vectors else []),
        ]
        schema = pa.schema(fields, {_DESCRIPTION: description.encode()})
        with writing(self._writable):
            mode = "create" if self._dataset is None else "overwrite"
            dataset = lance().write_dataset(schema.empty_table(), address_of(self._writable), mode=mode)
            if _VERSION in dataset.config():
                dataset.delete_config_keys([_VERSION])
        self.reopen()

    def delete(self, order: Numbers) -> None:
        """One commit for some thousands."""
        for start in range(0, len(order), _DELETED_AT_ONCE):
            with writing(self._writable):
                self._dataset.delete(_among(order[start : start + _DELETED_AT_ONCE]))
        self.reopen()

    def add(self, rows: Rows) -> None:
        """One commit."""
        fields = sorted({field for entity in rows.entities for field in entity.fields})
        new = [column for field in fields if (column := column_of(field)) not in self._dataset.schema.names]
        if new:
            with writing(self._writable):
                self._dataset.add_columns([pa.field(column, pa.string()) for column in new])
            self.reopen()
        columns: dict[str, Any] = {
            ORDER: rows.order,
            CHECKSUM: rows.checksums,
            "id": [entity.id for entity in rows.entities],
            "name": [entity.name for entity in rows.entities],
            TEXT: list(rows.texts),
            **{column_of(field): [entity.fields.get(field) for entity in rows.entities] for field in fields},
        }
        if self.has_vectors:
            flat = pa.array(rows.vectors.astype(np.float16).reshape(-1), pa.float16())
            columns[VECTOR] = pa.FixedSizeListArray.from_arrays(flat, self.width)
        schema = self._dataset.schema
        table = pa.table(
            [
                columns[name] if name == VECTOR else pa.array(columns.get(name, [None] * len(rows.order)), kind)
                for name, kind in zip(schema.names, schema.types, strict=True)
            ],
            schema=schema,
        )
        append_table(self._writable, table)
        self.reopen()

    def commit(self, version: int) -> None:
        """Index what is not indexed, unless that is little."""
        remove_unfinished(self._writable)
        with writing(self._writable):
            if len(self._dataset.get_fragments()) > _MOST_FRAGMENTS:
                self._dataset.optimize.compact_files(num_threads=1)
                self.reopen()
            self._index()
            self._dataset.update_config({_VERSION: str(version)})
            self._dataset.cleanup_old_versions(_KEEP, delete_unverified=True)
        self.reopen()

    def nearest(self, vectors: Vectors, k: int, allowed: Allowed | None) -> list[Tensor]:
        """The engine's search, all mentions at once."""
        if not len(vectors):
            return []
        condition = _condition(allowed)
        nearest = {
            **{"column": VECTOR, "q": np.ascontiguousarray(vectors, np.float32), "k": k, "metric": "dot"},
            **({"ef": max(k, self.effort)} if "HNSW" in self.index else {}),
            "nprobes": self._probes(allowed),
        }
        with reading(self.folder):
            table = self._dataset.to_table(
                nearest=nearest, columns=["query_index", ORDER], filter=condition, prefilter=condition is not None
            )
            mention, order = (table.column(name).to_numpy() for name in ("query_index", ORDER))
        return [torch.from_numpy(order[mention == row].copy()) for row in range(len(vectors))]

    def matching(self, column: str, texts: Sequence[str], k: int, allowed: Allowed | None) -> list[Tensor]:
        """Order numbers of the k entities that match each text best, by BM25 over a column.

        Args:
            column: ``name``, or :data:`TEXT`.
            texts: The texts.
            k: Number of entities.
            allowed: The only entities that may be found.
        """
        if not len(self):
            return [torch.empty(0, dtype=torch.int64)] * len(texts)
        lance()
        from lance.query import MatchQuery

        condition, found = _condition(allowed), []
        for text in texts:
            with reading(self.folder):
                table = self._dataset.to_table(
                    full_text_query=MatchQuery(text, column),
                    columns=[ORDER],
                    limit=k,
                    filter=condition,
                    prefilter=condition is not None,
                )
            found.append(torch.from_numpy(table.column(ORDER).to_numpy().copy()))
        return found

    def _probes(self, allowed: Allowed | None) -> int:
        """Partitions to look into: more if few entities are allowed, whose nearest are farther away."""
        return self.probes if allowed is None else round(self.probes * (len(self) / len(allowed.order)) ** 0.25)

    def _index(self) -> None:
        """Create the indexes that are missing, and update those that lack many rows."""
        rows = len(self)
        known = {index.name for index in self._dataset.describe_indices()}
        texts: dict[str, dict[str, Any]] = {
            "name": {"remove_stop_words": False},  # names such as The Who consist of them
            TEXT: {"custom_stop_words": sorted(STOPWORDS_EN)},
        }
        for column, options in texts.items():
            if rows and column.strip("#") not in known:
                self._dataset.create_scalar_index(column, "INVERTED", column.strip("#"), stem=False, **options)
        if rows >= self.index_from and TYPE not in known and TYPE in self._dataset.schema.names:
            self._dataset.create_scalar_index(TYPE, "BITMAP", TYPE)
        if self.has_vectors and rows >= self.index_from and _VECTOR_INDEX not in known:
            graph = "HNSW" in self.index
            partitions = max(1, round(rows / _GRAPH if graph else rows**0.5))
            self._dataset = self._dataset.create_index(
                VECTOR, self.index, _VECTOR_INDEX, metric="dot", num_partitions=partitions
            )
        unindexed = [self._dataset.stats.index_stats(name)["num_unindexed_rows"] for name in known]
        if max(unindexed, default=0) > max(_UNINDEXED[0], _UNINDEXED[1] * rows):
            self._dataset.optimize.optimize_indices()


def _condition(allowed: Allowed | None) -> str | None:
    if allowed is None:
        return None
    return allowed.condition or _among(allowed.order.cpu().numpy())


def _among(order: Numbers) -> str:
    return f"`{ORDER}` IN ({','.join(map(str, order.tolist()))})"
