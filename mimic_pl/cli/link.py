"""``mimic-pl link``: link the mentions of a file to a knowledge base."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from jsonargparse import ArgumentParser, Namespace

from mimic_pl.cli.linking_options import (
    add_file_arguments,
    add_model_arguments,
    add_process_arguments,
    add_retriever_arguments,
    linker_for,
)
from mimic_pl.errors import DataError

if TYPE_CHECKING:
    from rich.table import Table

    from mimic_pl.distributed import ProcessGroup
    from mimic_pl.formats.link_writer import LinkWriter
    from mimic_pl.linking import Linker
    from mimic_pl.links import Links

_BINS = 10
"""Bars of the histogram of probabilities."""


def add_arguments(parser: ArgumentParser, complete: bool) -> None:
    """Add the options."""
    text = "File of mentions: JSON, JSON Lines, CSV, TSV or Parquet, in any of the known layouts."
    parser.add_argument("mentions", metavar="MENTIONS", type=str, help=text)
    text = "Folder of the knowledge base (see mimic-pl index), or its address s3://BUCKET/FOLDER."
    parser.add_argument("--kb", type=str, required=True, help=text)
    text = "File for the links; its suffix says the format: .jsonl, .csv, .parquet, ..."
    parser.add_argument("--out", type=str, required=True, help=text)
    add_model_arguments(parser)
    text = "Folder of a cross-encoder (see mimic-pl train-reranker) that scores the first candidates anew."
    parser.add_argument("--reranker", type=str | None, default=None, help=text)
    add_retriever_arguments(parser, "Score only candidates, found by")
    text = "Try to prove, by bounds of all scores, that the first candidate is the first of all entities."
    parser.add_argument("--certify", action="store_true", help=text)
    parser.add_argument("--top_k", type=int, default=10, help="Candidates per mention.")
    text = "Condition that entities must meet, such as \"type = 'person'\"."
    parser.add_argument("--filter", type=str | None, default=None, help=text)
    add_file_arguments(parser)
    parser.add_argument("--out_format", type=str | None, default=None, help="Format of the links.")
    parser.add_argument("--batch_size", type=int, default=64, help="Mentions that a process links at once.")
    parser.add_argument("--strict", action="store_true", help="Exit with 4 if any record fails.")
    add_process_arguments(parser)


def run(parser: ArgumentParser, args: list[str]) -> int:
    """Run the command; the exit status is 0 if every mention was linked or is NIL."""
    from rich.console import Console
    from tqdm.auto import tqdm

    from mimic_pl.cli.choice import short_path
    from mimic_pl.cli.processes import launched
    from mimic_pl.formats import open_writer, read_mentions
    from mimic_pl.home import expanded

    config = parser.parse_args(args)
    mentions, out = expanded(config.mentions), expanded(config.out)
    with launched(config) as (processes, config.device), ExitStack() as stack:  # of the first process's file
        linker = processes.run_together(lambda: _linker(config, processes))

        def counted() -> int | None:
            if not mentions.is_file():  # a pipe is read once
                return None
            return sum(1 for _ in read_mentions(mentions, config.format, image_folder=config.image_folder))

        def opened() -> LinkWriter:
            job = _job(config, mentions, linker)
            return stack.enter_context(open_writer(out, config.out_format, resume=True, job=job))

        total = processes.run_on_first(counted)
        writer = cast("LinkWriter", processes.run_together(lambda: None if processes.rank else opened()))
        before = processes.run_on_first(lambda: writer.written)
        stream = linker.link_stream(
            mentions,
            config.top_k,
            config.filter,
            config.batch_size,
            config.image_folder,
            config.format,
            before,
            config.certify,
            processes,
        )

        def write(batch: Iterable[Links]) -> None:
            for links in batch:
                writer.write(links)
                bar.update()
            writer.flush()

        others = processes.rank > 0
        with tqdm(None, "Linking", total, unit=" mentions", initial=before, mininterval=0.5, disable=others) as bar:
            for batch in stream.batches():
                processes.run_on_first(partial(write, batch))
        found, bins, certified = processes.run_on_first(lambda: _counted(writer.records()))
        processes.run_together(stack.close)
    if processes.rank:
        return 0
    Console().print(_table(found, bins, stream.counts.images, before, certified if config.certify else None))
    print(f"Written to {short_path(out)}.")
    failed = found["failed"]
    return DataError.exit_code if failed and (config.strict or failed == found.total()) else 0


def _linker(config: Namespace, processes: ProcessGroup) -> Linker:
    from mimic_pl.knowledge_base import KnowledgeBase
    from mimic_pl.linking.candidates import require_one_process
    from mimic_pl.linking.pretrained import default_device
    from mimic_pl.retrieval import CrossEncoder

    if config.retriever is not None:
        require_one_process(processes)  # before a model is loaded
    kb = KnowledgeBase(config.kb)
    reranker = None
    if config.reranker is not None:
        reranker = CrossEncoder.from_pretrained(config.reranker, config.device or default_device())
    return linker_for(kb, config, reranker)


def _counted(records: Iterable[Mapping[str, Any]]) -> tuple[Counter[str], list[int], int]:
    """What became of all mentions of the file, the histogram of the probabilities of those linked, proven firsts."""
    found, bins, certified = Counter({"linked": 0, "NIL": 0, "failed": 0}), [0] * _BINS, 0
    for record in records:
        kind = "failed" if record["error"] is not None else "NIL" if record["nil"] else "linked"
        found[kind] += 1
        certified += bool(record["certified"])
        if kind == "linked" and (probability := record["candidates"][0]["probability"]) is not None:
            bins[min(int(probability * _BINS), _BINS - 1)] += 1
    return found, bins, certified


def _job(config: Any, mentions: Path, linker: Any) -> str:
    """What determines the links, by which an interrupted command recognises its own."""
    from mimic_pl.ranking import fingerprint

    status = mentions.stat() if mentions.is_file() else None
    content = [str(mentions.resolve()), *([] if status is None else [status.st_size, status.st_mtime_ns])]
    kb = linker.knowledge_base
    calibration = linker.calibration and repr(linker.calibration)
    own = linker.reranker
    reranker = own and [fingerprint(own.model), own.first_stage_weight, own.top_k, own.largest_margin]
    retriever = linker.retriever and linker.retriever.description
    settings = [
        retriever,
        config.certify,
        config.top_k,
        config.filter,
        config.format,
        config.image_folder,
        reranker,
        calibration,
    ]
    return json.dumps([content, str(kb.folder.resolve()), kb.version, linker.weights, settings])


def _table(found: Counter[str], bins: list[int], images: Counter[str], before: int, certified: int | None) -> Table:
    from rich.table import Table

    table = Table(title="Links")
    table.add_column("mentions")
    table.add_column("number", justify="right")
    table.add_column("share", justify="right")
    rows = [*found.items(), *((f"image {kind}", number) for kind, number in sorted(images.items()))]
    for name, number in rows:
        table.add_row(name, f"{number:,}", f"{number / max(found.total(), 1):.1%}")
    if certified is not None:
        table.add_row("proven first of all entities", f"{certified:,}", f"{certified / max(found.total(), 1):.1%}")
    if before:  # whose images were counted then
        table.add_row("linked earlier, by the interrupted command", f"{before:,}", "")
    if any(bins):
        table.add_section()
        for place, number in enumerate(bins):
            bar = "#" * round(20 * number / max(bins))
            table.add_row(f"probability {place / _BINS:.1f} to {(place + 1) / _BINS:.1f}", f"{number:,}", bar)
    return table
