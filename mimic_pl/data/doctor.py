"""Checks a data folder before training: its content, its problems, and how to fix them."""

from __future__ import annotations

import itertools
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from logging.handlers import BufferingHandler
from typing import Any, Literal, TypeVar

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mimic_pl.data.base import BaseDataModule
from mimic_pl.data.datamodule import MELDataModule
from mimic_pl.data.image_scan import ScannedImage, failures, scan
from mimic_pl.data.malformed_records import MalformedRecordsError
from mimic_pl.data.table import EntityTable, as_table
from mimic_pl.errors import ConfigError, DataError
from mimic_pl.escaping import printable
from mimic_pl.formats import row_parser
from mimic_pl.processor import TextTemplate
from mimic_pl.processor.images import FAILURES
from mimic_pl.records import Entity, Mention

Verdict = Literal["ok", "note", "warning", "ERROR"]

SPLITS = ("train", "val", "test")
# How mentions without a gold in the knowledge base are handled; those of predict_file need none.
_OUTCOMES = {"train": "excluded from training", "val": "counted as not found", "test": "counted as not found"}
_STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "ERROR": "bold red"}
_SHOWN = 5
_UNLIMITED = 1 << 20
_T = TypeVar("_T")


@dataclass(frozen=True)
class Finding:
    """One row of the report.

    Attributes:
        subject: The checked property.
        value: The result.
        verdict: ``ok``, ``note`` (good to know), ``warning`` (results suffer), or ``ERROR`` (must be fixed before a
            run).
        advice: What to do; empty if nothing.
        count: Number of records or images that it is about, if any.
        file: The file or folder with them, if it is about one.
        place: Place of the first of them in the file.
    """

    subject: str
    value: str
    verdict: Verdict = "ok"
    advice: str = ""
    count: int | None = None
    file: str | None = None
    place: str | None = None


@dataclass
class Report:
    """All findings, in the order of the checks."""

    findings: list[Finding] = field(default_factory=list)

    def add(self, subject: str, value: object, verdict: Verdict = "ok", advice: str = "", **details: Any) -> None:
        """Add a row."""
        self.findings.append(Finding(subject, str(value), verdict, advice, **details))

    def add_share(
        self, subject: str, count: int, total: int, verdict: Verdict = "ok", advice: str = "", **details: Any
    ) -> None:
        """Add a row about some of all records or images."""
        share = f"{count:,} of {total:,} ({count / total:.1%})" if total else f"{count:,}"
        self.add(subject, share, verdict, advice, count=count, **details)

    @property
    def has_errors(self) -> bool:
        """Whether something must be fixed before a run."""
        return any(finding.verdict == "ERROR" for finding in self.findings)

    def table(self) -> Table:
        """The report as a table to print."""
        table = Table(box=box.SIMPLE_HEAD)
        for name in ("subject", "found", "verdict", "what to do"):
            table.add_column(name, overflow="fold")
        for finding in self.findings:
            verdict = Text(finding.verdict, style=_STYLES[finding.verdict])
            table.add_row(*map(_text, (finding.subject, finding.value)), verdict, _text(finding.advice))
        return table


def _text(text: str) -> Text:
    return Text(printable(text))  # text of the data set is not markup, and must not control the terminal


def run_doctor(datamodule: BaseDataModule, as_json: bool = False) -> int:
    """Check the folders of all data sets of a data module, and print the report.

    Args:
        datamodule: The data module, with a processor, which defines templates and image policy.
        as_json: Print one JSON document instead of tables.

    Returns:
        The exit status: 0, or that of a :class:`~mimic_pl.errors.DataError` if there are errors.
    """
    for part in datamodule.parts:
        part.processor = datamodule.processor
    reports = [examine(part) for part in datamodule.parts]
    errors = any(report.has_errors for report in reports)
    if as_json:
        sets = [
            {"root": str(part.folder), "findings": [asdict(finding) for finding in report.findings]}
            for part, report in zip(datamodule.parts, reports, strict=True)
        ]
        print(json.dumps({"errors": errors, "data_sets": sets}, indent=2))
    else:
        for report in reports:
            _print(report.table())
    return DataError.exit_code if errors else 0


def _print(table: Table) -> None:
    console = Console()
    if console.is_terminal:
        console.print(table)
        return
    console = Console(width=_UNLIMITED)  # a log file has no width at which lines would have to break
    with console.capture() as captured:
        console.print(table)
    print("\n".join(map(str.rstrip, captured.get().splitlines())))


def examine(datamodule: MELDataModule) -> Report:
    """Check everything in the folder of a data module with a processor; problems are reported, not raised."""
    report = Report()
    datamodule.prepare_data()
    datamodule.check_root(datamodule.root)
    files = sorted(path.name for path in datamodule.folder.iterdir())
    report.add("folder", f"{datamodule.folder}: {', '.join(files[:12])}{', ...' if len(files) > 12 else ''}")
    published = datamodule.published
    entities = as_table(_read(report, "knowledge base", datamodule.read_entities))
    report.add("entities", *_compared(len(entities), published.entities if published else None))
    mentions: dict[str, Sequence[Mention]] = {}
    splits = SPLITS if datamodule.predict_file is None else (*SPLITS, "predict")
    for split in splits:
        mentions[split] = _read(report, f"{split} file", partial(datamodule.split_mentions, split))
        expected = published.mentions[split] if published and split in SPLITS else None
        report.add(f"{split} mentions", *_compared(len(mentions[split]), expected))
    _examine_entities(report, entities, datamodule.processor.entity_template)
    for split in splits:
        _examine_split(report, split, mentions[split], entities, datamodule)
    ids = [id_ for split in SPLITS for id_ in {mention.id for mention in mentions[split]}]
    _duplicates(report, "mention ids across splits", ids, "warning")
    _examine_images(report, datamodule, entities, mentions)
    for split in ("val", "test"):
        sentences = {mention.sentence for mention in mentions["train"]}
        shared = sum(mention.sentence in sentences for mention in mentions[split])
        _leakage(report, f"{split} mentions whose sentence is also in train", shared, len(mentions[split]))
    return report


def _read(report: Report, subject: str, read: Callable[[], Sequence[_T]]) -> Sequence[_T]:
    """Read a file; its problems and what is logged become findings, and the valid records are returned."""
    logged = BufferingHandler(_UNLIMITED)
    logged.setLevel(logging.WARNING)
    logger = logging.getLogger(row_parser.__name__)
    logger.addHandler(logged)
    try:
        records = read()
    except MalformedRecordsError as error:
        for problem in error.problems[:_SHOWN]:
            where = {"count": problem.count, "file": str(error.path), "place": problem.place}
            report.add(subject, f"{error.path.name}, {problem}", "ERROR", "fix the record", **where)
        if len(error.problems) > _SHOWN:
            more = len(error.problems) - _SHOWN
            report.add(subject, f"{more:,} more problems", "ERROR", "fix the records", count=more, file=str(error.path))
        return error.records
    except DataError as error:
        report.add(subject, error, "ERROR", "this file is required")
        return []
    finally:
        logger.removeHandler(logged)
        for record in logged.buffer:
            report.add(f"{subject}, while reading", record.getMessage(), "note")
    if not records:
        report.add(subject, "empty", "ERROR", "unpack the file again")
    return records


def _examine_entities(report: Report, entities: Sequence[Entity], template: TextTemplate) -> None:
    if not entities:
        return
    empty = [entity.id for entity in entities if "attr" in entity.fields and not entity.fields["attr"].strip()]
    advice = "the model sees only their names and images" if empty else ""
    report.add_share("entities with empty attributes", len(empty), len(entities), _note(empty), advice)
    without = sum(not entity.image_files for entity in entities)
    report.add_share("entities without an image", without, len(entities), _note(without))
    same = sum(count for count in Counter(entity.name for entity in entities).values() if count > 1)
    report.add_share("entities with a non-unique name", same, len(entities), "note")
    _try_template(report, "entity text", template, entities)


def _try_template(
    report: Report, subject: str, template: TextTemplate, records: Sequence[Entity] | Sequence[Mention]
) -> None:
    try:
        for record in records:
            template(record)
    except ConfigError as error:
        report.add(subject, error, "ERROR", "name another field in the template, or add it to the records")


def _examine_split(
    report: Report,
    split: str,
    mentions: Sequence[Mention],
    entities: EntityTable,
    datamodule: MELDataModule,
) -> None:
    if not mentions:
        return
    total = len(mentions)
    _duplicates(report, f"{split} mention ids", [mention.id for mention in mentions])
    if split in _OUTCOMES:
        nil = sum(not mention.golds for mention in mentions)
        outcome = _OUTCOMES[split] if nil else ""
        report.add_share(f"{split} mentions without gold (nil)", nil, total, _note(nil), outcome)
    if entities and split in _OUTCOMES:  # without entities, every gold would be unknown
        _examine_golds(report, split, mentions, entities, datamodule.batch_size)
    without = sum(mention.image is None for mention in mentions)
    report.add_share(f"{split} mentions without an image", without, total, _note(without))
    _try_template(report, f"{split} text", datamodule.processor.mention_template, mentions)


def _examine_golds(
    report: Report, split: str, mentions: Sequence[Mention], entities: EntityTable, batch_size: int
) -> None:
    total = len(mentions)
    known = entities.positions
    unknown = [m.id for m in mentions if m.golds and not any(gold in known for gold in m.golds)]
    advice = f"{_OUTCOMES[split]}; for example {_examples(unknown)}" if unknown else ""
    report.add_share(f"{split} golds not in the knowledge base", len(unknown), total, _warning(unknown), advice)
    linked = [[entities[known[gold]] for gold in mention.golds if gold in known] for mention in mentions]
    if split == "train" and not any(linked):
        report.add("train mentions with a gold", 0, "ERROR", "training needs golds that are in the knowledge base")
    equal = sum(
        any(mention.mention.casefold() == gold.name.casefold() for gold in golds)
        for mention, golds in zip(mentions, linked, strict=True)
    )
    report.add_share(f"{split} mentions equal to their gold's name", equal, total, "note")
    if split == "train":
        golds = [golds[0].id for golds in linked if golds]
        expected = batch_mates_with_same_gold(golds, batch_size)
        often = expected > 0.2
        report.add(
            f"train mentions that share their gold within a batch of {batch_size}",
            f"{expected:.1%} (expected)",
            "warning" if often else "note",
            "they are false negatives of each other: mask them in the loss or use smaller batches" if often else "",
        )


def batch_mates_with_same_gold(golds: Sequence[str], batch_size: int) -> float:
    """Expected fraction of mentions that share a random batch with another mention of the same gold.

    With n mentions, of which c have the gold, in batches of b: none of the c - 1 other mentions of the gold is among
    the b - 1 others of the batch with probability C(n - c, b - 1) / C(n - 1, b - 1).

    Args:
        golds: Gold of each training mention.
        batch_size: Mentions per batch.
    """
    total, mates = len(golds), min(batch_size, len(golds)) - 1
    share = 0.0
    for count in Counter(golds).values():
        alone = 1.0
        for other in range(count - 1):
            alone *= max(0.0, 1 - mates / (total - 1 - other))
        share += count * (1 - alone)
    return share / total if total else 0.0


def _examine_images(
    report: Report, datamodule: MELDataModule, entities: Sequence[Entity], mentions: dict[str, Sequence[Mention]]
) -> None:
    names = itertools.chain.from_iterable(entity.image_files for entity in entities)
    _scan(report, datamodule, "kb_image", "entity images", names)
    own = {split: [name for mention in found for name in mention.image_files] for split, found in mentions.items()}
    seen = _scan(report, datamodule, "mention_image", "mention images", itertools.chain(*own.values()))
    contents = {seen[name].digest for name in own["train"] if name in seen and seen[name].digest}
    for split in ("val", "test"):
        shared = sum(name in seen and seen[name].digest in contents for name in own[split])
        _leakage(report, f"{split} mentions whose image is also in train", shared, len(mentions[split]))


def _scan(
    report: Report, datamodule: MELDataModule, folder: str, title: str, names: Iterable[str]
) -> dict[str, ScannedImage]:
    try:
        images = datamodule.image_folder(folder, max_pixels=datamodule.processor.max_pixels)
    except DataError as error:
        report.add(title, error, "ERROR", "keep one folder")
        return {}
    option = "entity_image_folder" if folder == "kb_image" else "mention_image_folder"
    if getattr(datamodule, option) is None:
        report.add(title, f"not used: {option} is null", "note")
        return {}
    seen = scan(images, names, f"Opening {title}")
    failed = failures(seen)
    if seen and not images.folder.is_dir():
        report.add(title, f"no folder {folder} or {folder}s", "warning", "unpack the images there")
    report.add(title, f"{len(seen) - len(failed)} of {len(seen)} open")
    for kind in FAILURES:
        paths = [path for path, kind_ in failed if kind_ == kind]
        if kind == "ambiguous" and not paths:
            continue
        policy = datamodule.processor.image_policy
        # A run refuses a folder without any of the images.
        bad = policy == "error" or (kind == "missing" and len(paths) == len(seen))
        verdict: Verdict = "ok" if not paths else "ERROR" if bad else "warning"
        advice = f"policy {policy!r} applies; for example {_examples(paths)}" if paths else ""
        if kind == "missing" and paths and len(paths) == len(seen):
            advice = f"unpack them, or name their folder: --data.{option} FOLDER; null for none. For example {paths[0]}"
        report.add_share(f"{title}, {kind}", len(paths), len(seen), verdict, advice, file=str(images.folder))
    return seen


def _duplicates(report: Report, subject: str, ids: Sequence[str], bad: Verdict = "ERROR") -> None:
    twice = [id_ for id_, count in Counter(ids).items() if count > 1]
    advice = f"make them unique: {_examples(twice)}" if twice else ""
    report.add(f"{subject}, used more than once", len(twice), bad if twice else "ok", advice, count=len(twice))


def _leakage(report: Report, subject: str, shared: int, total: int) -> None:
    advice = "results on these are too good: report them separately, or remove them from train" if shared else ""
    report.add_share(subject, shared, total, _warning(shared), advice)


def _compared(count: int, published: int | None) -> tuple[str, Verdict, str]:
    """A count, compared with the published one."""
    if published is None:
        return f"{count:,}", "ok", ""
    same = count == published
    advice = "" if same else "differs from the paper: compare results with the paper's only if the difference is small"
    return f"{count:,} (published {published:,})", "ok" if same else "note", advice


def _note(found: Any) -> Verdict:
    return "note" if found else "ok"


def _warning(found: Any) -> Verdict:
    return "warning" if found else "ok"


def _examples(values: Sequence[str]) -> str:
    return ", ".join(values[:3])
