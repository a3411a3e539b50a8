"""``mimic-pl convert``: knowledge bases, mentions, links and weights in another format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from jsonargparse import ArgumentParser

from mimic_pl.cli.linking_options import add_file_arguments
from mimic_pl.errors import ConfigError, DataError

if TYPE_CHECKING:
    from mimic_pl.formats import RecordError

_Record = TypeVar("_Record")

What = Literal["kb", "mentions", "links", "aliases", "weights"]


def add_arguments(parser: ArgumentParser, complete: bool) -> None:
    """Add the options."""
    text = (
        "kb, mentions, links, aliases (the names of a knowledge base's entities) or weights (a published checkpoint)."
    )
    parser.add_argument("what", type=What, help=text)
    text = "File to read; datasets:NAME[/CONFIGURATION][:SPLIT] for a data set; the checkpoint, for weights."
    parser.add_argument("source", type=str, help=text)
    text = (
        "File to write; its name says the format: .jsonl, .json, .csv, .parquet, .ttl. A folder for spacy and weights."
    )
    parser.add_argument("target", type=str, help=text)
    add_file_arguments(parser)
    text = "Layout of the target: plain (default), mimic or spacy; for links: jsonl, csv, parquet, nif or kilt."
    parser.add_argument("--to", type=str | None, default=None, help=text)
    text = "Languages of Wikidata's labels, separated by commas; the first that is known is used."
    parser.add_argument("--languages", type=str, default="en", help=text)
    text = "For weights: folder or hub name of the encoder that the published checkpoint was trained from."
    parser.add_argument("--pretrained", type=str | None, default=None, help=text)


def run(parser: ArgumentParser, args: list[str]) -> int:
    """Run the command."""
    given = parser.parse_args(args)
    convert: dict[What, Callable[[Any], str]] = {
        "kb": _knowledge_base,
        "mentions": _mentions,
        "links": _links,
        "aliases": _aliases,
        "weights": _weights,
    }
    print(convert[given.what](given))
    return 0


def _knowledge_base(given: Any) -> str:
    from mimic_pl.formats import open_record_writer, write_spacy_kb
    from mimic_pl.records import Entity

    counted = _Counted(given.source, "entities")
    entities = counted.valid(_entities(given))
    if given.to == "spacy":
        write_spacy_kb(_path(given.target), counted.required(entities))
        return counted.closing_line(given.target)
    with open_record_writer(_path(given.target), Entity, given.to or "plain") as writer:
        for entity in counted.required(entities):
            writer.write(entity)
    return counted.closing_line(given.target, writer.images_left_out)


def _mentions(given: Any) -> str:
    from mimic_pl.formats import open_record_writer, read_mentions
    from mimic_pl.records import Mention

    counted = _Counted(given.source, "mentions")
    found = read_mentions(_path(given.source), given.format, image_folder=_optional_path(given.image_folder))
    with open_record_writer(_path(given.target), Mention, given.to or "plain") as writer:
        for mention in counted.required(counted.valid(found)):
            writer.write(mention)
    return counted.closing_line(given.target, writer.images_left_out)


def _links(given: Any) -> str:
    from mimic_pl.formats import open_writer, read_links

    counted = _Counted(given.source, "links")
    with open_writer(_path(given.target), given.to) as writer:
        for links in counted.required(counted.valid(read_links(_path(given.source)))):
            writer.write(links)
    return counted.closing_line(given.target)


def _aliases(given: Any) -> str:
    from mimic_pl.formats import EntitiesByName, write_rows

    counted, table = _Counted(given.source, "entities"), EntitiesByName()
    for entity in counted.required(counted.valid(_entities(given))):
        table.add(entity)
    count = write_rows(_path(given.target), table.rows())
    return f"{counted.closing_line(given.target)} {count:,} pairs of a name and an entity."


def _weights(given: Any) -> str:
    from mimic_pl.hub import convert_published

    if given.pretrained is None:
        raise ConfigError(
            "A published checkpoint holds the weights alone. Name the encoder that it was trained from: --pretrained "
            "openai/clip-vit-base-patch32, or a folder with it."
        )
    folder = convert_published(_path(given.source), given.pretrained, _path(given.target))
    return f"Written: {folder}"


def _entities(given: Any) -> Iterator[Any]:
    from mimic_pl.formats import read_entities

    languages = [language.strip() for language in given.languages.split(",") if language.strip()]
    folder = _optional_path(given.image_folder)
    return read_entities(_path(given.source), given.format, image_folder=folder, languages=languages)


class _Counted:
    """Counts records while they are converted, and shows the progress.

    Args:
        source: What is read.
        what: What the records are.
    """

    def __init__(self, source: str, what: str) -> None:
        from mimic_pl.data.malformed_records import Problems

        self.source, self.what = source, what
        self.read = self.failed = 0
        self.problems = Problems()

    def valid(self, records: Iterable[_Record | RecordError]) -> Iterator[_Record]:
        """The records without the errors, which are counted by kind."""
        from tqdm.auto import tqdm

        from mimic_pl.formats import RecordError

        for record in tqdm(records, "Converting", unit=f" {self.what}", leave=False, delay=1):
            self.read += 1
            if isinstance(record, RecordError):
                self.failed += 1
                self.problems.add(record.number, record.place, str(record.reason), record.kind)
            else:
                yield record

    def required(self, records: Iterable[_Record]) -> Iterator[_Record]:
        """The records, of which there has to be one.

        Raises:
            DataError: There is none.
        """
        yield from records
        if self.read == self.failed:
            raise DataError(f"{self.source} has no {self.what} that can be used. {self._problems()}".rstrip())

    def closing_line(self, target: str, images_left_out: int = 0) -> str:
        """What was read and written."""
        left_out = f" ({self.read:,} read, {self.failed:,} left out)" if self.failed else ""
        line = f"Written: {target}, {self.read - self.failed:,} {self.what}{left_out}."
        if images_left_out:
            line += f" {images_left_out:,} images that are no files are not in it."
        problems = self._problems()
        return f"{line}\n{problems}" if problems else line

    def _problems(self) -> str:
        return "\n".join(f"{self.source}, {problem}" for problem in self.problems.found())


def _path(name: str) -> Path:
    from mimic_pl.home import expanded

    return expanded(name)


def _optional_path(name: str | None) -> Path | None:
    return None if name is None else _path(name)
