"""Bringing a derived store to the version of its knowledge base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor
from tqdm.auto import tqdm

from mimic_pl.errors import StoreError
from mimic_pl.files import lock_folder, write_file
from mimic_pl.knowledge_base import KnowledgeBase
from mimic_pl.model import MIMIC
from mimic_pl.ranking import fingerprint
from mimic_pl.ranking.engine import in_float32
from mimic_pl.remote_path import RemotePath
from mimic_pl.retrieval.candidate_store import CandidateStore, Numbers, Rows

FOLDER = "candidates"
"""Folder of everything derived for retrieval in that of a knowledge base; it may be deleted at any time."""

_FORMAT = 1
_AT_ONCE = 4096
_WAIT = 24 * 3600.0
"""Seconds that a process waits for another one, which builds the same."""

_SHOWN_FROM = 20_000
"""Entities from which on a progress bar is shown."""

_SAMPLE = 64
_DRIFT = 0.05
"""Relative change of sampled vectors from which on all are computed again."""


class KeyVectors(NamedTuple):
    """The vectors by which entities of a knowledge base are found.

    Attributes:
        model: The model of their states.
        unit: Unit whose vectors they are; all units' if None.
    """

    model: MIMIC
    unit: str | None = None

    @torch.no_grad()
    def __call__(self, kb: KnowledgeBase, order: Tensor) -> Tensor:
        """Vectors of some entities, float32 ``[n, width]`` on the CPU."""
        matcher = in_float32(self.model.matcher)
        return matcher.key_vectors(kb.index.select(order).states, self.unit).float().cpu()


def catch_up(store: CandidateStore, kb: KnowledgeBase, vectors: KeyVectors, name: str) -> None:
    """Bring a store to a version of a knowledge base: rows that differ are deleted and added.

    A kill at any moment costs what was not committed by the engine; the next call goes on. A store of another model,
    of other settings or with a damaged description is built again, and so is one whose vectors have drifted: the mean
    of a centred unit moves with every change, and the vectors of entities that stay with it.

    A reader of an old version of the knowledge base leaves a store at a newer one alone.

    Args:
        store: The store.
        kb: The knowledge base.
        vectors: The vectors of its entities.
        name: Name of the store, for its sample of vectors.

    Raises:
        StoreError: The folder of the knowledge base is not writable, or in object storage, or the disk is full.
    """
    model = vectors.model
    description = json.dumps(
        {
            "format": _FORMAT,
            # Entities' states depend on the encoder, whose weights the knowledge base names: hashing them takes long.
            "model": [kb.description.get("model"), fingerprint(model.matcher)],
            "text": model.processor.entity_template.template,
            "width": store.width,
            **({} if vectors.unit is None else {"unit": vectors.unit}),
            **store.settings,
        },
        sort_keys=True,
    )

    def current() -> bool:
        return store.description == description and store.version == kb.version and len(store) == len(kb)

    if current():
        return
    if isinstance(kb.folder, RemotePath):
        raise StoreError(
            f"{kb.folder} has no candidates of the retriever {name!r} for its version {kb.version} and this model, and "
            "none can be written there. Link once with this retriever in the local folder that it was copied from, and "
            f"copy its folder {FOLDER!r} there again."
        )
    folder = kb.folder / FOLDER
    lock = lock_folder(folder, _WAIT, f".{name}.lock")
    try:
        store.reopen()
        if current():  # another process has done it meanwhile
            return
        sample = _Sample(folder / f"{name}.sample.safetensors", vectors)
        if store.description == description and (store.version or 0) > kb.version and _newest(kb) > kb.version:
            return
        order, checksums = (part.numpy() for part in kb.checksums())
        if store.description == description:
            stored = store.rows()
            if store.has_vectors and sample.drifted(kb, order[_same(order, checksums, *stored)]):
                store.clear(description)
        else:
            store.clear(description)
        stored = store.rows()
        if not len(stored[0]):
            sample.path.unlink(missing_ok=True)
        store.delete(stored[0][~_same(*stored, order, checksums)])
        missing = ~_same(order, checksums, *stored)
        _add(store, kb, vectors, order[missing], checksums[missing], sample)
        store.commit(kb.version)
    finally:
        lock.release()


def _add(
    store: CandidateStore,
    kb: KnowledgeBase,
    vectors: KeyVectors,
    order: Numbers,
    checksums: Numbers,
    sample: _Sample,
) -> None:
    processor = vectors.model.processor
    shown = len(order) >= _SHOWN_FROM
    with tqdm(total=len(order), desc="Indexing candidates", unit=" entities", disable=not shown) as bar:
        for start in range(0, len(order), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            numbers = torch.from_numpy(order[part])
            entities = kb.entities(numbers)
            texts = [processor.entity_text(entity) for entity in entities]
            keys = vectors(kb, numbers) if store.has_vectors else torch.empty((len(entities), 0))
            if store.has_vectors:
                sample.keep(numbers, keys)
            store.add(Rows(order[part], checksums[part], entities, texts, keys.numpy()))
            bar.update(len(entities))


def _same(order: Numbers, checksums: Numbers, other: Numbers, other_checksums: Numbers) -> np.ndarray:
    """Which of some rows are among other rows, bool ``[n]``."""
    if not len(other):
        return np.zeros(len(order), bool)
    ascending = np.argsort(other, kind="stable")
    places = np.searchsorted(other, order, sorter=ascending).clip(max=len(other) - 1)
    rows = ascending[places]
    return (other[rows] == order) & (other_checksums[rows] == checksums)


def _newest(kb: KnowledgeBase) -> int:
    return kb.versions()[-1].number


class _Sample:
    """Key vectors of some entities as they were when a store was built."""

    def __init__(self, path: Path, vectors: KeyVectors) -> None:
        self.path = path
        self.vectors = vectors
        self.has_totals = vectors.model.matcher.has_totals

    def keep(self, order: Tensor, keys: Tensor) -> None:
        """Keep the first vectors of a new store."""
        if self.has_totals and not self.path.exists():
            write_file(self.path, save({"order": order[:_SAMPLE], "keys": keys[:_SAMPLE].contiguous()}))

    def drifted(self, kb: KnowledgeBase, unchanged: Numbers) -> bool:
        """Whether the vectors of unchanged entities have moved since then, or cannot be compared."""
        if not self.has_totals:
            return False
        if not self.path.exists():
            return True
        kept = load(self.path.read_bytes())
        rows = torch.from_numpy(np.isin(kept["order"].numpy(), unchanged))
        if not rows.any():
            return True
        keys, before = self.vectors(kb, kept["order"][rows]), kept["keys"][rows]
        return bool((keys - before).norm() > _DRIFT * before.norm())
