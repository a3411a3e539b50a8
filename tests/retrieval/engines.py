"""A small knowledge base with a retriever of every engine, for tests that all of them must pass."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch

from mimic_pl import MIMIC, Linker
from mimic_pl.encoders import CLIPEncoder
from mimic_pl.processor import Processor
from mimic_pl.retrieval import ExactRetriever, FaissRetriever, LanceRetriever, MilvusRetriever, Queries, Retriever
from mimic_pl.units import CMFU, TGLU, VDLU, GlobalCosine
from tests import tiny

ENTITIES = 320
RARE = 16
"""Entities of the type 'rare', 5 % of all."""


def faiss(**options) -> Retriever:
    pytest.importorskip("faiss")
    return FaissRetriever(**options)


def milvus_lite(**options) -> Retriever:
    """Milvus in this process, with a file of each test's own."""
    pytest.importorskip("pymilvus")
    pytest.importorskip("milvus_lite")
    return LocalMilvus(**options)


class LocalMilvus(MilvusRetriever):
    """Milvus Lite with a file beside the knowledge base."""

    def _vector_store(self, width):
        self.uri = str(self.knowledge_base.folder.parent / "milvus.db")
        return super()._vector_store(width)


ENGINES = {
    "exact": ExactRetriever,
    "lance": LanceRetriever,
    "lance, indexed": lambda **options: LanceRetriever(index_from=1, **options),
    "lance, graph": lambda **options: LanceRetriever(index="IVF_HNSW_SQ", index_from=1, **options),
    "faiss": faiss,
    "faiss, indexed": lambda **options: faiss(index_from=1, **options),
    "milvus lite": milvus_lite,
}
"""A retriever of every engine, with and without the index that large knowledge bases get."""

DERIVED = {name: make for name, make in ENGINES.items() if name != "exact"}


def model_of(seed: int = 0, **arguments) -> MIMIC:
    torch.manual_seed(seed)
    units = {
        "text": lambda dims: TGLU(dims, hidden_dim=8),
        "vision": lambda dims: VDLU(dims, hidden_dim=8),
        "cross_modal": lambda dims: CMFU(dims, hidden_dim=8),
        "means": lambda dims: GlobalCosine(dims, modality="text", centered=True, scale=3.0),
    }
    encoder = CLIPEncoder(**tiny.ENCODER)
    return MIMIC(encoder, Processor(entity_template="{name} [SEP] {attr}"), units=units, **arguments).eval()


def entities(count: int = ENTITIES) -> list[dict[str, str]]:
    rng = random.Random(0)
    words = [*tiny.WORDS]
    return [
        {
            "id": f"Q{n}",
            "name": f"{rng.choice(tiny.NAMES)} {rng.choice(words)}",
            "attr": " ".join(rng.choices(words, k=5)),
            "type": "rare" if n % 20 == 3 else "common",
        }
        for n in range(count)
    ]


def mentions() -> list[dict[str, str]]:
    rng = random.Random(1)
    found = []
    for _ in range(12):
        name = rng.choice(tiny.NAMES)
        found.append({"mention": name, "sentence": f"the {name} {' '.join(rng.choices(tiny.WORDS, k=6))}"})
    return found


def indexed(folder: Path, count: int) -> Linker:
    """A linker that ranks all entities of a new knowledge base."""
    linker = Linker(model_of())
    linker.index(entities(count), folder / "kb", show_progress_bar=False)
    return linker.with_knowledge_base(folder / "kb")


def copied(source: Path, folder: Path) -> Linker:
    """A linker that ranks all entities of a copy of a knowledge base."""
    shutil.copytree(source, folder / "kb")
    return Linker(model_of()).with_knowledge_base(folder / "kb")


def queries_of(linker: Linker, records: list[dict[str, str]]) -> Queries:
    from mimic_pl import Mention

    given = [Mention.of(record) for record in records]
    return Queries.of(linker.model, given, linker.model.encode_mentions(given))
