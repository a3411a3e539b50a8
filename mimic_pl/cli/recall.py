"""``mimic-pl recall``: how often a retriever finds the exact first entity, and how many candidates that takes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser

from mimic_pl.cli.linking_options import add_file_arguments, add_model_arguments, add_retriever_arguments, linker_for
from mimic_pl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from mimic_pl.linking.recall import Recall


def add_arguments(parser: ArgumentParser, complete: bool) -> None:
    """Add the options."""
    text = "File of mentions: JSON, JSON Lines, CSV, TSV or Parquet, in any of the known layouts; no golds are needed."
    parser.add_argument("mentions", metavar="MENTIONS", type=str, help=text)
    parser.add_argument("--kb", type=str, required=True, help="Folder of the knowledge base (see mimic-pl index).")
    text = "Folder for recall.json, recall.png and retriever.yaml, which --retriever takes."
    parser.add_argument("--out", type=str, required=True, help=text)
    add_retriever_arguments(parser, "Retriever to measure")
    text = "Recall of the exact first that is wanted."
    parser.add_argument("--wanted", type=float, default=0.99, help=text)
    text = "Numbers of candidates per channel to measure."
    parser.add_argument("--ks", type=list[int] | None, default=None, help=text)
    text = "Mentions to measure, the first of the file; the exact ranking of each reads the whole knowledge base."
    parser.add_argument("--limit", type=int, default=1000, help=text)
    parser.add_argument("--filter", type=str | None, default=None, help="Condition that entities must meet.")
    add_model_arguments(parser)
    add_file_arguments(parser)
    parser.add_argument("--batch_size", type=int, default=64, help="Mentions that are ranked at once.")


def run(parser: ArgumentParser, args: list[str]) -> int:
    """Run the command; the exit status is 1 if no measured number of candidates is enough.

    Raises:
        UsageError: No retriever is named.
    """
    from itertools import islice

    import yaml
    from rich.console import Console

    from mimic_pl.cli.choice import short_path
    from mimic_pl.figures import save
    from mimic_pl.files import write_file
    from mimic_pl.formats import read_mentions
    from mimic_pl.home import expanded
    from mimic_pl.knowledge_base import KnowledgeBase
    from mimic_pl.linking.recall import DEFAULT_KS, measure_recall, smallest_k
    from mimic_pl.report.recall_figure import recall_figure
    from mimic_pl.retrieval.engines import settings_of

    config = parser.parse_args(args)
    if config.retriever is None:
        raise UsageError("recall measures a retriever: name one with --retriever lance.")
    if not 0 < config.wanted <= 1:
        raise UsageError(f"--wanted is {config.wanted}; it must be above 0 and at most 1.")
    linker = linker_for(KnowledgeBase(config.kb), config)
    records = read_mentions(expanded(config.mentions), config.format, image_folder=config.image_folder)
    ks = config.ks or ([config.candidates] if config.candidates else DEFAULT_KS)
    measured = measure_recall(
        linker, islice(records, config.limit), ks, config.filter, config.batch_size, show_progress_bar=True
    )
    k, out = smallest_k(measured, config.wanted), expanded(config.out)
    out.mkdir(parents=True, exist_ok=True)
    kb = linker.knowledge_base
    content = {
        "entities": len(kb),
        "wanted": config.wanted,
        "chosen": k,
        "measured": [recall._asdict() for recall in measured],
    }
    write_file(out / "recall.json", (json.dumps(content, indent=1) + "\n").encode())
    title = f"{len(kb):,} entities"
    save(recall_figure({config.retriever: measured}, config.wanted, title), out / "recall.png")
    Console().print(_table(measured, title))
    if k is None:
        print(f"No measured number finds the first in {config.wanted:.1%}. Try larger ones: --ks [5000,20000].")
        return 1
    assert linker.retriever is not None, "one was named"
    settings = settings_of(linker.retriever) | {"k": k}
    write_file(out / "retriever.yaml", yaml.safe_dump(settings, sort_keys=False).encode())
    print(f"{k} candidates per channel are enough. To link with them: --retriever {short_path(out / 'retriever.yaml')}")
    return 0


def _table(measured: Sequence[Recall], title: str) -> Table:
    from rich.table import Table

    table = Table(title=f"Recall, {title}")
    for column in ("k", "first of the exact", "first ten", "scored per mention", "ms per mention to find"):
        table.add_column(column, justify="right")
    for recall in measured:
        found = f"{recall.first:.2%}", f"{recall.ten:.2%}"
        table.add_row(f"{recall.k:,}", *found, f"{recall.candidates:,.0f}", f"{1000 * recall.seconds:.1f}")
    return table
