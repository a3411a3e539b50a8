"""The page of the worst mentions of a real run on a malicious data set."""

from __future__ import annotations

import base64
import io
import json
import shutil

import pytest
import torch
from PIL import Image

from mimic_pl.cli import main
from mimic_pl.errors import ConfigError, DataError
from mimic_pl.linking.attention_and_gates import split_patches, tokens_of
from mimic_pl.linking.thumbnails import heat_map
from mimic_pl.records import Mention
from mimic_pl.report import open_finished, write_errors_page
from mimic_pl.report.gates import gates_of
from mimic_pl.report.loaded import LoadedRun
from mimic_pl.report.page_parts import marked
from mimic_pl.report.worst import worst_cases
from tests.html_page import Page
from tests.report.conftest import IMAGE_INJECTION, SCRIPT_INJECTION
from tests.results import read_jsonl

ALLOWED_TAGS = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "code", "div", "table", "tr", "th", "td",
    "section", "mark", "figure", "img", "b", "small", "figcaption", "span", "br",
}  # fmt: skip


@pytest.fixture(scope="module")
def loaded(malicious_run) -> LoadedRun:
    return LoadedRun(open_finished(malicious_run))


@pytest.fixture(scope="module")
def reported(malicious_run, tmp_path_factory):
    """The output folder of one report command."""
    output = tmp_path_factory.mktemp("out")
    main(["report", str(malicious_run), "--gates", "--errors", str(malicious_run), "--output", str(output)])
    return output


@pytest.fixture(scope="module")
def page(reported) -> Page:
    return Page((reported / "errors.html").read_text(encoding="utf-8"))


def records(run):
    return read_jsonl(run / "predictions.jsonl")


def test_the_page_runs_and_fetches_nothing(page):
    assert not page.all("script")
    for tag, attributes in page.elements:
        assert tag in ALLOWED_TAGS, tag
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            assert attributes.get(name, "data:image/jpeg;base64,").startswith("data:image/jpeg;base64,")
    # and all of it is there as text
    assert page.text.count(SCRIPT_INJECTION) >= 9 and IMAGE_INJECTION in page.text


def test_wrong_mentions_are_shown_with_images_gold_candidates_and_attention(page, malicious_run):
    wrong = [record for record in records(malicious_run) if record["rank"]["overall"] > 1]
    assert len(page.all("section")) == len(wrong) > 3
    # The first mention does not occur in its sentence.
    assert len(page.all("mark")) == sum(not record["mention"].endswith(SCRIPT_INJECTION) for record in wrong)
    gold_rows = len(page.all("tr", "gold"))
    assert gold_rows == len(wrong)
    images = page.all("img")
    assert all(Image.open(io.BytesIO(base64.b64decode(a["src"].partition(",")[2]))).width <= 128 for a in images)
    assert sum(a["alt"] == "attention over patches" for a in images) == len(wrong)
    assert len(page.all("div", "words")) == 2 * len(wrong)


def test_worst_mentions_come_first_and_golds_have_their_ranking_scores(loaded, malicious_run):
    by_id = {record["id"]: record for record in records(malicious_run)}
    cases = worst_cases(loaded, 4)
    kept = 0
    order = []
    for case in worst_cases(loaded, 99):
        record = by_id[case.mention.id]
        first, gold = record["candidates"][0], record["golds"][0]["qid"]
        assert case.gold.entity.id == gold and case.gold.rank == record["rank"]["overall"]
        assert [shown.entity.id for shown in case.candidates] == [c["qid"] for c in record["candidates"][:5]]
        for candidate in record["candidates"]:
            if candidate["qid"] == gold:  # the scores that the ranking wrote for the gold
                kept += 1
                assert case.gold.scores == pytest.approx(candidate["scores"], abs=1e-4)
                assert case.margin == pytest.approx(
                    first["scores"]["overall"] - candidate["scores"]["overall"], abs=1e-4
                )
        order.append((-record["rank"]["overall"], -case.margin))
        assert sum(token.weight for token in case.gold.words) == pytest.approx(1, abs=1e-5)
        assert float(case.patches.grid.sum()) + case.patches.rest == pytest.approx(1, abs=1e-5)
    assert kept > 0 and order == sorted(order)
    assert [case.mention.id for case in cases] == [case.mention.id for case in worst_cases(loaded, 99)[:4]]


def test_gates_equal_those_of_the_units_for_every_gold(loaded, reported):
    found = gates_of(loaded)
    gates = {"vision": ("entity to mention", "mention to entity"), "cross_modal": ("mention", "entity")}
    assert set(found) == {f"{unit}, {gate}" for unit, own in gates.items() for gate in own}
    matcher, data = loaded.model.matcher, loaded.data
    mentions, entities = loaded.mentions(range(9)).features, loaded.entities(range(12)).features
    golds = [int(mention.golds[0][1:]) for mention in data.mentions["test"]]
    unit = matcher.units["vision"]
    with torch.no_grad():
        # Pair by pair; the figure takes the diagonal of a matrix.
        pairs = [(mentions.rows(slice(i, i + 1)), entities.rows(slice(gold, gold + 1))) for i, gold in enumerate(golds)]
        expected = torch.cat([unit.gates(*pair)["entity_to_mention"][0] for pair in pairs])
        cross = torch.cat([matcher.units["cross_modal"].gates(*pair)["mention"] for pair in pairs])
    torch.testing.assert_close(torch.from_numpy(found["vision, entity to mention"]["gold entities"]), expected)
    torch.testing.assert_close(torch.from_numpy(found["cross_modal, mention"]["gold entities"]), cross)
    assert [path.name for path in reported.glob("gates_*.png")]


def test_data_that_changed_since_the_test_is_rejected(malicious_run, tmp_path):
    run = tmp_path / "version_0"
    shutil.copytree(malicious_run, run)
    text = (run / "predictions.jsonl").read_text()
    (run / "predictions.jsonl").write_text(text.replace('"id": "test-3', '"id": "other-3'))
    summary = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**summary, "predictions_sha256": None}))
    with pytest.raises(DataError, match="are not of the test split"):
        write_errors_page(open_finished(run), tmp_path / "errors.html")
    assert not (tmp_path / "errors.html").exists()


@pytest.mark.parametrize(
    ("sentence", "mention", "expected"),
    [
        ("the Jaguar runs", "jaguar", ("the ", "Jaguar", " runs")),
        ("no such word", "jaguar", ("no such word", "", "")),
        ("İ is longer in lower case: x", "x", ("İ is longer in lower case: x", "", "")),
    ],
)
def test_the_mention_is_marked_in_its_sentence(sentence, mention, expected):
    assert marked(Mention("1", mention, sentence)) == expected


@pytest.mark.parametrize(("tokens", "rows", "others"), [(50, 7, 1), (49, 7, 0), (197, 14, 1), (261, 16, 5)])
def test_patches_are_separated_from_other_tokens(tokens, rows, others):
    weights = torch.arange(tokens, dtype=torch.float64)
    found = split_patches(weights)
    assert found.grid.shape == (rows, rows)
    assert found.rest == sum(range(others)) and found.grid[0, 1] == others + 1 and found.grid[-1, -1] == tokens - 1


def test_the_heat_map_is_hot_where_the_weight_is():
    drawn = heat_map(Image.new("RGB", (100, 50), "white"), torch.tensor([[0.0, 0.0], [0.2, 0.0]]))
    assert drawn.size == (100, 50)
    assert drawn.getpixel((75, 10)) == drawn.getpixel((75, 40)) == (255, 255, 255)
    red, green, blue = drawn.getpixel((25, 40))
    assert red > green + 60 > blue


def test_tokens_keep_all_the_weight_and_padding_is_one(loaded):
    tokenizer = loaded.model.processor.tokenizer.tokenizer
    ids, mask = loaded.model.encoder.build_tokenizer()(["jaguar runs"])
    weights = [1 / 16] * 16
    found = tokens_of(tokenizer, ids[0].tolist(), mask[0].tolist(), weights)
    assert [token.text for token in found] == ["[CLS]", "jaguar", "runs", "[EOS]", "padding × 12"]
    assert [token.kind for token in found] == ["special", "word", "word", "special", "padding"]
    assert found[-1].weight == pytest.approx(12 / 16)


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        ([], 3, "report needs tested runs"),
        (["nowhere"], 3, "nowhere is not a run"),
        (["--errors", "{run}", "--worst", "0"], 3, "worst is 0; it must be"),
        (["{run}", "--bogus"], 2, "--bogus"),
    ],
)
def test_invalid_options_are_rejected(malicious_run, tmp_path, monkeypatch, capsys, arguments, code, word):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main(["report", *(argument.format(run=malicious_run) for argument in arguments)])
    assert exit_.value.code == code
    assert word in capsys.readouterr().err


def test_worst_must_be_positive(loaded):
    with pytest.raises(ConfigError, match="worst is 0; it must be an integer of at least 1"):
        worst_cases(loaded, 0)
