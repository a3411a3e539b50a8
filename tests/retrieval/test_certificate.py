"""A proof that the first candidate is the first of all entities is never wrong, however few candidates there are."""

import pytest

from mimic_pl.errors import ConfigError
from tests.launch import needs_fork
from tests.retrieval.engines import ENGINES, ENTITIES, copied, mentions

pytestmark = [pytest.mark.own_process, needs_fork]


@pytest.mark.parametrize("engine", ["lance", "faiss, indexed"])
def test_what_is_certified_is_the_exact_first(tmp_path, whole, engine):
    exact = copied(whole, tmp_path)
    records = [*mentions(), *({**mention, "entity_type": "rare"} for mention in mentions()[:4])]
    expected = [links[0].entity.id for links in exact.link(records, top_k=1)]
    shares = []
    for k in (1, 20, 150, ENTITIES - 1):
        linker = exact.with_retriever(ENGINES[engine](k=k))
        found = linker.link(records, top_k=1, certify=True)
        certified = [links.certified for links in found]
        right = [links[0].entity.id == best for links, best in zip(found, expected, strict=True)]
        assert not any(proven and not one for proven, one in zip(certified, right, strict=True))
        shares.append(sum(certified))
    assert shares == sorted(shares) and shares[0] < shares[-1] == len(records)


def test_without_candidates_without_a_retriever_and_unless_asked(tmp_path, whole):
    exact = copied(whole, tmp_path)
    linker = exact.with_retriever(ENGINES["lance"](k=5))
    record = mentions()[0]
    assert linker.link(record).certified is None and exact.link(record).certified is None
    assert exact.link(record, certify=True).certified is True
    assert exact.link(record, top_k=None, certify=True).certified is True
    nothing = {**record, "filter": "type = 'none'"}
    assert linker.link(nothing, certify=True).certified is True and len(linker.link(nothing)) == 0
    stream = linker.link_stream(mentions(), certify=True)
    assert sum(bool(links.certified) for links in stream) == stream.counts.certified


def test_the_order_of_a_reranker_is_not_certified(tmp_path, whole):
    linker = copied(whole, tmp_path)
    linker.reranker = lambda mention, links: [0.0] * len(links)
    with pytest.raises(ConfigError, match="reranker"):
        linker.link(mentions()[0], certify=True)
