"""Verification of a knowledge base: every row, every file, every order number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm.auto import tqdm

from mimic_pl.errors import StoreError
from mimic_pl.knowledge_base.deleted_entities import DeletedEntities
from mimic_pl.knowledge_base.statistics import verify_statistics
from mimic_pl.quoting import quoted
from mimic_pl.ranking.lance_dataset import OpenDataset, lance, reading, reason_of, wrong_files
from mimic_pl.ranking.lance_rows import ORDER, Decode, RowFormat
from mimic_pl.remote_path import Folder

if TYPE_CHECKING:
    from lance import LanceFragment

_BYTES_AT_ONCE = 8_000_000
_ROWS_AT_ONCE = 4096
"""Rows that are read at once have at most these bytes of states."""


def problems_of(folder: Folder, opened: OpenDataset, show_progress_bar: bool = False) -> Iterator[str]:
    """Find what is wrong with a version of a knowledge base, one sentence for each damaged entity or file.

    It takes some 200 MB of memory, and 30 bytes for each entity: ids and order numbers, of which none may repeat.

    Args:
        folder: Folder of the knowledge base.
        opened: The version.
        show_progress_bar: Show a progress bar, with rate and time left, if it takes some seconds.
    """
    lance()
    with reading(folder):
        yield from wrong_files(folder, opened.dataset)
        fragments = [(fragment, fragment.count_rows()) for fragment in opened.dataset.get_fragments()]
    ids: list[pa.Array] = []
    order: list[pa.Array] = []
    at_once = max(1, min(_ROWS_AT_ONCE, _BYTES_AT_ONCE // max(1, opened.format.bytes_per_entity)))
    total = sum(rows for _, rows in fragments)
    with tqdm(total=total, desc="Verifying", unit=" entities", delay=2, disable=not show_progress_bar) as bar:
        for fragment, rows in fragments:
            # A scan would hold much of a large fragment in memory.
            for start in range(0, rows, at_once):
                part = range(start, min(start + at_once, rows))
                yield from _problems_of_rows(folder, opened.format, fragment, part, ids, order)
                bar.update(len(part))
    yield from _duplicates("id", ids)
    yield from _duplicates("order number", order)
    try:
        yield from _contradictions(DeletedEntities(folder).rows(), ids, order)
    except StoreError as error:
        yield str(error)
    yield from verify_statistics(folder)


def _problems_of_rows(
    folder: Folder,
    row_format: RowFormat,
    fragment: LanceFragment,
    rows: range,
    ids: list[pa.Array],
    order: list[pa.Array],
) -> Iterator[str]:
    """Check some rows of a fragment, and collect their ids and order numbers."""
    try:
        with reading(folder):
            names = fragment.take(rows, columns=["id", ORDER])
            # Copies: a column keeps the memory of all that was read with it.
            ids.append(pa.array(names.column("id").to_pylist(), pa.string()))
            order.append(pa.array(names.column(ORDER).to_pylist(), pa.int64()))
    except StoreError as error:
        files = ", ".join(file.path for file in fragment.metadata.files)
        yield f"{len(rows)} rows in {files} cannot be read: {reason_of(error.__cause__)}."
        return
    if len(names) != len(rows):
        yield f"A part of the knowledge base has {len(names)} rows instead of {len(rows)}."
    for what, fails, columns, decode in (
        ("record", "fails", row_format.record_columns, row_format.entities),
        ("states", "fail", row_format.state_columns, row_format.states),
    ):
        for row, reason in _damaged(folder, fragment, rows, columns, decode):
            id, number = ids[-1][row - rows.start].as_py(), order[-1][row - rows.start].as_py()
            how = f"{fails} the checksum" if reason is None else f"cannot be read: {reason}"
            yield f"The entity {quoted(id)} with the order number {number} is damaged: its {what} {how}."


def _damaged(
    folder: Folder, fragment: LanceFragment, rows: range, columns: list[str], decode: Decode
) -> Iterator[tuple[int, str | None]]:
    """The rows that fail the checksum over these columns or cannot be read, these with the reason."""
    try:
        with reading(folder):
            _, damaged = decode(fragment.take(rows, columns=columns))
    except StoreError as error:
        if len(rows) == 1:
            yield rows.start, reason_of(error.__cause__)
        else:
            middle = rows.start + len(rows) // 2
            yield from _damaged(folder, fragment, range(rows.start, middle), columns, decode)
            yield from _damaged(folder, fragment, range(middle, rows.stop), columns, decode)
        return
    yield from ((rows.start + row, None) for row in damaged)


def _duplicates(what: str, values: list[pa.Array]) -> Iterator[str]:
    if not values:
        return
    counted = pa.chunked_array(values).value_counts()
    for each in counted.filter(pc.greater(counted.field("counts"), 1)).to_pylist():
        yield f"{each['counts']} rows have the {what} {quoted(each['values'])}."


def _contradictions(deleted: list[tuple[str, int]], ids: list[pa.Array], order: list[pa.Array]) -> Iterator[str]:
    """Entities whose order number the list of deleted entities knows as another's."""
    if not ids or not deleted:
        return
    rows = pa.table({"id": pa.chunked_array(ids), "order": pa.chunked_array(order)})
    numbers = np.fromiter((number for _, number in deleted), dtype=np.int64)
    names = pa.array([id for id, _ in deleted], pa.string())
    concerned = pc.or_(pc.is_in(rows["id"], names), pc.is_in(rows["order"], pa.array(numbers)))
    pairs = {*deleted}
    for each in rows.filter(concerned).to_pylist():
        if (each["id"], each["order"]) not in pairs:
            yield (
                f"The entity {quoted(each['id'])} has the order number {each['order']}, which contradicts the list of "
                "deleted entities."
            )
