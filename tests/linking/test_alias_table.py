"""An alias table's priors join the score as a unit."""

import json

import pytest
import torch

from mimic_pl import MIMIC, Linker
from mimic_pl.encoders import CLIPEncoder
from mimic_pl.errors import ConfigError, DataError
from mimic_pl.processor import AliasTable, Processor
from mimic_pl.units import GlobalCosine, Lexical
from tests import tiny

ENTITIES = [{"id": f"Q{n}", "name": f"entity {n}", "attr": "a river"} for n in range(6)]
ROWS = [("Big Apple", "Q4", 0.75), ("big  apple", "Q2", 0.25), ("apple", "Q1", None), ("apple", "Q5", None)]


def write(folder, form):
    path = folder / f"aliases.{form}"
    if form == "csv":
        cells = [f"{alias},{id},{'' if prior is None else prior}" for alias, id, prior in ROWS]
        path.write_text("\n".join(["alias,id,prior", *cells]))
    else:
        path.write_text("\n".join(json.dumps(dict(zip(("alias", "id", "prior"), row, strict=True))) for row in ROWS))
    return str(path)


@pytest.mark.own_process
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_the_prior_is_the_score_of_the_unit(tmp_path, form):
    torch.manual_seed(0)
    units = {"prior": lambda dims: Lexical(dims, scale=40.0, feature="aliases"), "text": GlobalCosine}
    processor = Processor(features={"aliases": AliasTable(write(tmp_path, form))})
    linker = Linker(MIMIC(CLIPEncoder(**tiny.ENCODER), processor, units=units).eval())
    linker = linker.with_knowledge_base(linker.index(ENTITIES, tmp_path / "kb", show_progress_bar=False))
    asked = [{"mention": word, "sentence": "somewhere"} for word in ("BIG apple", "apple", "pear")]
    found = linker.link(asked)
    priors = [{link.entity.id: link.units["prior"] for link in links if link.units["prior"]} for links in found]
    assert priors == [
        pytest.approx({"Q4": 30.0, "Q2": 10.0}),
        pytest.approx({"Q1": 20.0, "Q5": 20.0}),
        {},
    ]
    assert [link.entity.id for link in found[0]][:2] == ["Q4", "Q2"]
    assert {link.entity.id for link in found[1].candidates[:2]} == {"Q1", "Q5"}


def test_the_largest_priors_are_kept(tmp_path):
    table = AliasTable(write(tmp_path, "csv"), max_entities=1)
    assert len(table) == 2
    from mimic_pl.records import Mention

    found = table.mentions([Mention("", "big apple", "")], [""])
    assert found["weights"].tolist() == [[0.75]]


@pytest.mark.parametrize(
    ("text", "message"),
    [("alias,id,prior\nx,Q1,-1", "line 2: 'prior' is '-1'"), ("alias,prior\nx,1", "no 'id'"), ("", "is empty")],
)
def test_damaged_tables(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        AliasTable(str(tmp_path / "a.csv"))
    (tmp_path / "a.jsonl").write_text('{"alias": "x", "id": "Q1"}\n{"alias": "y", "id": \n')
    with pytest.raises(DataError, match="line 2: the record is incomplete"):
        AliasTable(str(tmp_path / "a.jsonl"))
    with pytest.raises(ConfigError, match="max_entities"):
        AliasTable("a.csv", max_entities=0)
