"""The printed table of results."""

from __future__ import annotations

import re

import pytest

from mimic_pl.callbacks import ResultTable


def rows(output: str) -> dict[str, list[str]]:
    """First cell of each row -> its other cells."""
    cells = [[cell.strip() for cell in re.split("[│┃|]", line)[1:-1]] for line in output.splitlines()]
    return {line[0]: line[1:] for line in cells if line}


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")


def test_test_prints_scores_and_published_results(make_trainer, given_scores, published_records, capsys):
    model = given_scores()
    make_trainer(ResultTable()).test(model, published_records, verbose=False)
    output = capsys.readouterr().out
    table = rows(output)
    assert table["score"] == ["H@1", "H@3", "H@5", "H@10", "H@20", "MRR", "MR"]
    for name in ("overall", "text"):
        ranks = [model.rank(name, index) for index in range(11)]
        assert float(table[name][0]) == pytest.approx(100 * sum(r == 1 for r in ranks) / 11, abs=0.0051)
        assert float(table[name][5]) == pytest.approx(100 * sum(1 / r for r in ranks if r) / 11, abs=0.0051)
        assert float(table[name][6]) == pytest.approx(sum(r or 9 for r in ranks) / 11, abs=0.0051)
    assert table["published"] == ["87.98", "", "", "", "", "91.82", "11.02"]
    caption = "11 mentions, ranked among 8 entities; 1 without a gold in the knowledge base count as misses"
    assert caption in " ".join(output.split())


def test_no_published_row_where_nothing_is_published(make_trainer, given_scores, records, capsys):
    make_trainer(ResultTable()).test(given_scores(), records, verbose=False)
    assert "published" not in rows(capsys.readouterr().out)


def test_validate_prints_a_table_and_fit_none(make_trainer, given_scores, published_records, capsys):
    make_trainer(ResultTable()).validate(given_scores(), published_records, verbose=False)
    table = rows(capsys.readouterr().out)
    assert set(table) == {"score", "overall", "text"}  # published results are of the test split
    make_trainer(ResultTable(), max_epochs=1).fit(given_scores(), published_records)
    assert rows(capsys.readouterr().out) == {}
