"""Links with texts that careless writers change."""

from __future__ import annotations

from hypothesis import strategies as st

from mimic_pl import Entity, Mention
from mimic_pl.errors import DataError
from mimic_pl.links import Link, Links

HARD = [
    *('"', "'", ",", ";", "\t", "\n", "\r\n", "\r", "\\", "\x00", " x ", "=1+1", "@SUM(A1)", "-5", "'=1", "[a]", "{}"),
    *("null", "NA", "007", "é", "e\u0301", "שלום", "مرحبا 1", "\u202eabc", "👩‍👩‍👧", "日本", "\u2028", "\ufeffx"),
]
hard = st.sampled_from(HARD)
texts = hard | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
names = texts.filter(str.strip)
scores = st.floats(allow_nan=False, allow_infinity=False, width=32)
shares = st.none() | st.floats(0, 1)
found = st.lists(
    st.builds(
        Link,
        st.builds(Entity, names, texts),
        scores,
        shares,
        st.dictionaries(st.sampled_from(["text", "vision", "="]), scores, max_size=2),
    ),
    max_size=3,
).map(tuple)


@st.composite
def mentions(draw):
    before, word, after = draw(texts), draw(names), draw(texts)
    span = (len(before), len(before + word)) if draw(st.booleans()) else None
    golds = tuple(draw(st.lists(names.filter(lambda gold: gold.lower() != "nil"), max_size=2, unique=True)))
    image = draw(st.none() | st.sampled_from(["a.jpg", "/b/ç d.png"]))
    fields = draw(st.dictionaries(st.sampled_from(["topic", "=x"]), texts, max_size=2))
    return Mention(draw(names), word, before + word + after, golds, image, fields, {}, span)


links = st.builds(Links, mentions(), found, shares, st.none(), st.integers(0, 9)) | st.builds(
    Links, st.none(), error=texts.filter(str.strip).map(DataError), number=st.integers(0, 9)
)
several = st.lists(links, min_size=1, max_size=4)


def plain(values: list[Links]):
    """Links in a form that compares errors by their messages."""
    return [(v.mention, v.candidates, v.nil_probability, v.error and str(v.error), v.number) for v in values]
