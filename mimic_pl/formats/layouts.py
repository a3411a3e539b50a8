"""The known layouts, and which of them a file has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, TypeVar

from mimic_pl.errors import ConfigError, DataError
from mimic_pl.formats.blink_layout import BlinkEntities, BlinkMentions
from mimic_pl.formats.glinker_layout import GlinkerEntities
from mimic_pl.formats.kilt_layout import KiltEntities, KiltMentions
from mimic_pl.formats.mimic_layout import MIMICEntities, MIMICMentions
from mimic_pl.formats.plain_layout import PlainEntities, PlainMentions
from mimic_pl.formats.row_parser import RowParser
from mimic_pl.formats.wikidata_layout import WikidataEntities
from mimic_pl.formats.zeshel_mentions import ZeshelMentions
from mimic_pl.quoting import listed, quoted
from mimic_pl.records import Entity, Mention

Parsed = TypeVar("Parsed", Entity, Mention)
Row = tuple[str, int, Any]
"""What the number of a row counts, the number, and the row."""

ENTITY_LAYOUTS: dict[str, type[RowParser[Entity]]] = {
    "plain": PlainEntities,
    "mimic": MIMICEntities,
    "blink": BlinkEntities,
    "kilt": KiltEntities,
    "wikidata": WikidataEntities,
    "glinker": GlinkerEntities,
}
"""Layouts of knowledge bases by their names."""

MENTION_LAYOUTS: dict[str, type[RowParser[Mention]]] = {
    "plain": PlainMentions,
    "mimic": MIMICMentions,
    "blink": BlinkMentions,
    "kilt": KiltMentions,
    "zeshel": ZeshelMentions,
}
"""Layouts of mentions by their names."""


def named_layout(name: str, layouts: Mapping[str, type[RowParser[Parsed]]]) -> type[RowParser[Parsed]]:
    """The layout of this name.

    Raises:
        ConfigError: There is none.
    """
    if name not in layouts:
        raise ConfigError(f"There is no format {name!r} here. Choose one of: {', '.join(layouts)}.")
    return layouts[name]


def detected_layout(
    path: object, rows: Iterator[Row], layouts: Mapping[str, type[RowParser[Parsed]]]
) -> tuple[type[RowParser[Parsed]], Iterator[Row]]:
    """The layout of a file by the keys of its first record, and all of its rows.

    Raises:
        DataError: No layout has these keys, or several have.
    """
    before: list[Row] = []
    for row in rows:
        before.append(row)
        if isinstance(row[2], dict):
            return _fitting(path, row[2], layouts), chain(before, rows)
    # No row is a record: any layout yields the errors.
    return layouts["plain"], iter(before)


def _fitting(
    path: object, row: Mapping[str, Any], layouts: Mapping[str, type[RowParser[Parsed]]]
) -> type[RowParser[Parsed]]:
    fitting = [name for name, layout in layouts.items() if layout.fits(row)]
    if len(fitting) == 1:
        return layouts[fitting[0]]
    found = f"The first record of {path} has the keys {_all(row)}"
    if fitting:
        raise DataError(f"{found}, which fit several formats. Name the one that is meant: {' or '.join(fitting)}.")
    known = "; ".join(f"{name}: {layout.about}" for name, layout in layouts.items())
    raise DataError(f"{found}, which no format has. Rename them, or name the format. Known are {known}.")


def _all(keys: Iterable[str]) -> str:
    shown = list(keys)
    return listed(shown) if len(shown) > 20 else ", ".join(map(quoted, shown)) or "(none)"
