"""For any input bytes, readers return a valid result or raise a MimicError, and never silently a wrong result.

``--fuzz-inputs 100000`` tries more inputs than the default.
"""

from __future__ import annotations

import json
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from mimic_pl.checkpoints.published import read_published
from mimic_pl.checkpoints.reader import read_checkpoint
from mimic_pl.data import Entity, Mention
from mimic_pl.data.reader import read_entities, read_mentions
from mimic_pl.errors import CheckpointError, ConfigError, DataError, MimicError
from mimic_pl.evaluated_run import open_finished
from mimic_pl.processor.images import ImageError, open_image
from mimic_pl.processor.template import TextTemplate, available
from mimic_pl.runs import open_run
from tests.faults.mutation import Mutator
from tests.report.conftest import write_run

TIMEOUT = 20
"""Seconds within which every input has to be handled."""

Check = Callable[[], str]
"""Reads the files and returns the outcome; any exception that it raises is a failure."""


@contextmanager
def time_limit() -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"an input took more than {TIMEOUT} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(TIMEOUT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fuzz(files: list[Path], check: Check, inputs: int, seed: int, keep: Path) -> Counter[str]:
    """Mutate one file at a time, check, and restore it."""
    mutate, whole = Mutator(seed), {path: path.read_bytes() for path in files}
    outcomes: Counter[str] = Counter()
    for number in range(inputs):
        path = files[number % len(files)]
        changed = mutate(whole[path])
        path.write_bytes(changed)
        try:
            with time_limit():
                outcomes[check()] += 1
        except BaseException:
            keep.write_bytes(changed)
            print(f"input {number}, a mutation of {path.name}, is kept in {keep}")
            raise
        path.write_bytes(whole[path])
    return outcomes


@pytest.fixture
def inputs(request) -> int:
    return max(20, request.config.getoption("--fuzz-inputs"))


@pytest.fixture
def run(inputs, tmp_path):
    """Fuzz with a share of the inputs, and print the outcomes."""

    def run_share(name: str, share: float, files: list[Path], check: Check) -> None:
        begin, count = time.perf_counter(), round(inputs * share)
        outcomes = fuzz(files, check, count, len(name), tmp_path / "kept")
        print(f"{name}: {count:,} inputs in {time.perf_counter() - begin:.0f} s: {dict(outcomes)}")
        assert outcomes["error"] > count / 4

    return run_share


def is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):
        return False
    return True


def texts_of(record: Entity | Mention) -> Iterator[Any]:
    yield from record.fields.values()
    yield from record.fields
    yield from (record.id, record.name) if isinstance(record, Entity) else (record.id, record.mention, record.sentence)
    yield from record.images if isinstance(record, Entity) else record.golds


def test_knowledge_bases_and_their_ids(run, tmp_path):
    rows = [
        {"id": i, "qid": f"Q{i}", "entity_name": f"n%C3%A9 {i}", "attr": "é \U0001f600", "image_list": ["a/b.jpg", "c"]}
        for i in range(4)
    ]  # fmt: skip
    kb, ids = tmp_path / "kb.json", tmp_path / "qid2id.json"
    kb.write_text(json.dumps(rows, indent=1, ensure_ascii=False))
    ids.write_text(json.dumps({row["qid"]: row["id"] for row in rows}))

    def check() -> str:
        try:
            table = read_entities(kb, ids)
        except DataError as error:
            assert str(kb) in str(error)
            return "error"
        assert is_json(kb) and is_json(ids)
        assert len({entity.id for entity in table}) == len(table) > 0
        assert all(type(text) is str and text.encode() is not None for entity in table for text in texts_of(entity))
        assert not any(".." in name.split("/") or name.startswith("/") for e in table for name in e.images)
        return "valid"

    run("knowledge base and ids", 0.25, [kb, kb, ids], check)


def test_mentions(run, tmp_path):
    rows = [
        {"id": f"m-{i}", "mentions": "a%20b", "sentence": "é", "answer": ["Q1", "nil"], "imgPath": "x.jpg", "t": None}
        for i in range(3)
    ]  # fmt: skip
    path = tmp_path / "mentions.json"
    path.write_text(json.dumps(rows))

    def check() -> str:
        try:
            mentions = read_mentions(path)
        except DataError as error:
            assert str(path) in str(error)
            return "error"
        assert is_json(path)
        assert all(type(text) is str for mention in mentions for text in texts_of(mention))
        return "valid"

    run("mentions", 0.2, [path], check)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".csv.gz", ".json"])
def test_other_formats(inputs, tmp_path, suffix):
    rows = [{"id": f"{i}", "mentions": "a,b", "sentence": 'é "x"\ny', "answer": "Q1", "t": ""} for i in range(3)]
    path, table = tmp_path / f"x{suffix}", pyarrow.Table.from_pylist(rows)
    if suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
    elif suffix.startswith(".csv"):
        with pyarrow.output_stream(path) as sink:  # compressed as its name says
            pyarrow.csv.write_csv(table, sink)
    else:
        path.write_text(
            "".join(f"{json.dumps(row)}\n" for row in rows) if suffix == ".jsonl" else json.dumps({"x": rows})
        )

    def check() -> str:
        try:
            mentions = read_mentions(path)
        except DataError as error:
            assert str(path) in str(error)
            return "error"
        assert all(type(text) is str for mention in mentions for text in texts_of(mention))
        return "valid"

    outcomes = fuzz([path], check, round(inputs * 0.04), len(suffix), tmp_path / "kept")
    print(f"{suffix}: {dict(outcomes)}")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's warnings about corrupted TIFF files
def test_images(run, tmp_path):
    files = []
    for mode, kind in (("RGB", "jpg"), ("CMYK", "jpeg"), ("P", "png"), ("RGBA", "png2"), ("RGB", "gif"), ("RGB", "bmp"),
                       ("RGB", "webp"), ("RGB", "tiff"), ("L", "ppm"), ("RGB", "ico"), ("RGB", "tga")):  # fmt: skip
        path = tmp_path / f"x.{kind}"
        exif = Image.Exif()
        exif[0x0112] = 6
        options = {"exif": exif} if kind == "jpg" else {}
        Image.effect_noise((20, 16), 50).convert(mode).save(path, kind.rstrip("2").replace("jpg", "jpeg"), **options)
        files.append(path)
    sizes = {path: open_image(path).size for path in files}
    assert sizes[files[0]] == (16, 20)

    def check() -> str:
        outcome = "valid"
        for path in files:
            if path.read_bytes() != whole[path]:
                try:
                    assert open_image(path, max_pixels=100_000).mode == "RGB"
                except ImageError as error:
                    assert error.kind in ("unreadable", "oversized")
                    outcome = "error"
        return outcome

    whole = {path: path.read_bytes() for path in files}
    run("images", 0.15, files, check)


def plain(value: Any) -> Any:
    """A checkpoint as comparable values."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def test_checkpoints(run, tmp_path):
    path = tmp_path / "x.ckpt"
    state = {
        "encoder.clip.a": torch.randn(3, 4),
        "encoder.clip.b": torch.arange(5),
        "encoder.clip.c": torch.tensor(1.5),
    }
    torch.save({"state_dict": state, "epoch": 3, "callbacks": {"x": {"best": 0.5, "path": "a/b"}}}, path)
    expected = plain(read_checkpoint(path))

    def check() -> str:
        outcomes = set()
        for read, wanted in ((read_checkpoint, expected), (read_published, expected["state_dict"])):
            try:
                found = plain(read(path))
            except CheckpointError as error:
                assert str(path) in str(error)
                outcomes.add("error")
            else:
                assert found == wanted
                outcomes.add("identical")
        return "error" if "error" in outcomes else "identical"

    run("checkpoint", 0.1, [path], check)


def test_checkpoints_of_old_versions_of_torch(run, tmp_path):
    """They have no checksums: changed values are not noticed, but nothing else comes out than tensors by name."""
    path = tmp_path / "x.ckpt"
    state = {"encoder.clip.a": torch.randn(3, 4), "encoder.clip.b": torch.arange(5)}
    torch.save({"state_dict": state, "epoch": 3}, path, _use_new_zipfile_serialization=False)

    def check() -> str:
        outcomes = set()
        for read in (read_checkpoint, read_published):
            try:
                found = read(path)
            except CheckpointError as error:
                assert str(path) in str(error)
                outcomes.add("error")
            else:
                weights = found["state_dict"] if read is read_checkpoint else found
                assert all(type(name) is str for name in weights)
                outcomes.add("valid")
        return "error" if "error" in outcomes else "valid"

    run("checkpoint of an old version", 0.05, [path], check)


def test_safetensors(run, tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"encoder.clip.a": torch.randn(3, 4), "encoder.clip.b": torch.arange(5)}, path)

    def check() -> str:
        try:
            found = read_published(path)
        except CheckpointError as error:
            assert str(path) in str(error)
            return "error"
        assert all(type(name) is str and isinstance(tensor, torch.Tensor) for name, tensor in found.items())
        return "valid"

    run("safetensors", 0.05, [path], check)


def test_files_of_runs(run, tmp_path):
    folder = write_run(tmp_path / "runs" / "version_0", [1, 2, None, 3], curve={0: 0.25, 1: 0.5})
    (folder / "robustness.json").write_text(
        json.dumps(
            [{"kind": "blur", "side": "image", "strength": s, "metrics": {"overall": {"hits@1": 0.5}}} for s in (0, 2)]
        )
    )
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").touch()
    names = ["config.yaml", *["metrics.json"] * 3, *["predictions.jsonl"] * 5, *["robustness.json"] * 2]
    (events,) = folder.glob("events*")

    def check() -> str:
        try:
            finished = open_finished(folder)
            assert open_run(folder).read_config() == finished.config
            answers = finished.predictions
            assert {len(column) for column in answers.ranks.values()} == {len(answers.ids)} == {len(answers.golds)}
            assert answers.top.dtype == np.float64 and len(answers.hits) == len(answers.reciprocal_ranks)
            assert all(type(value) in (int, float) for row in finished.metrics.values() for value in row.values())
            assert isinstance(finished.robustness, list) and isinstance(finished.curve, list)
            assert finished.best_epoch in (None, *range(10**6))
        except (DataError, ConfigError) as error:
            assert str(folder) in str(error)
            return "error"
        return "valid"

    run("files of runs", 0.05, [*(folder / name for name in names), events], check)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["Q1", "nil", "../x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)
KEYS = ["id", "qid", "entity_name", "image_list", "mentions", "sentence", "answer", "imgPath", "attr", "\ud800"]
SUPPRESSED = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]


def test_records_of_any_values(inputs, tmp_path):
    """Valid JSON with values of unexpected types."""
    path, outcomes = tmp_path / "x.json", Counter()

    @settings(max_examples=round(inputs * 0.025), database=None, suppress_health_check=SUPPRESSED)
    @given(st.lists(st.dictionaries(st.sampled_from(KEYS), values, max_size=10) | values, max_size=3))
    def check(rows):
        path.write_text(json.dumps(rows))
        for read in (read_entities, read_mentions):
            with time_limit():
                try:
                    found = read(path)
                except MimicError as error:
                    assert str(path) in str(error)
                    outcomes["error"] += 1
                else:
                    assert len(found) == len(rows)
                    outcomes["valid"] += 1

    check()
    print(f"records of any values: {sum(outcomes.values()):,} inputs: {dict(outcomes)}")


def test_templates(inputs):
    outcomes: Counter[str] = Counter()
    fields = st.dictionaries(st.sampled_from(["attr", "name", "sentence", "x y", "é"]) | st.text(max_size=4), st.text())
    parts = st.sampled_from(["{name}", "{attr}", "{mention}", "{", "}", "{{", "{x y}", "{é}", "\\1", " [SEP] "])

    @settings(max_examples=round(inputs * 0.025), database=None, suppress_health_check=SUPPRESSED)
    @given(st.lists(parts | st.text(max_size=3), max_size=6).map("".join), st.text(), fields)
    def check(template, text, others):
        for record in (Entity("Q1", text, others), Mention("1", text, text, fields=others)):
            try:
                filled = TextTemplate(template)(record)
            except ConfigError:
                outcomes["error"] += 1
            else:
                assert isinstance(filled, str)
                known = available(record)
                assert all(known[name] in filled for name in re.findall(r"\{(\w+)\}", template))
                outcomes["valid"] += 1

    check()
    print(f"templates: {sum(outcomes.values()):,} inputs: {dict(outcomes)}")
