"""Filters: the engine's SQL over the columns of a knowledge base."""

from __future__ import annotations

import torch
from torch import Tensor

from mimic_pl.errors import DataError
from mimic_pl.escaping import shortened
from mimic_pl.quoting import quoted
from mimic_pl.ranking.lance_dataset import OpenDataset, names_missing_file, reading, reason_of
from mimic_pl.ranking.lance_rows import ORDER
from mimic_pl.ranking.text_columns import column_of
from mimic_pl.remote_path import Folder


def filter_columns(opened: OpenDataset) -> tuple[str, ...]:
    """Columns that a filter may refer to: id, name and the text fields of all entities."""
    return ("id", "name", *map(column_of, opened.format.fields))


def matching(folder: Folder, opened: OpenDataset, expression: str) -> Tensor:
    """Order numbers of the entities that an expression selects, ascending, int64 ``[n]``.

    Raises:
        DataError: The expression is no condition over the columns.
        StoreError: The knowledge base is damaged.
    """
    with reading(folder, opened.version):
        try:
            table = opened.dataset.to_table(filter=expression, columns=[ORDER])
        except ValueError as error:
            if "LanceError(IO)" in str(error) or names_missing_file(
                error
            ):  # a file is damaged or was removed: the expression is not at fault
                raise
            reason = reason_of(error).partition(". Valid fields are")[0]
            columns = ", ".join(column if column.isidentifier() else f"`{column}`" for column in filter_columns(opened))
            raise DataError(
                f"The filter {quoted(expression)} cannot be evaluated: {reason}. Write a condition in SQL over the "
                f"columns {shortened(columns, 500)}, such as name like 'J%' and id in ('Q1', 'Q2')."
            ) from error
    return torch.from_numpy(table.column(ORDER).to_numpy().copy()).sort().values


def distinct_values(folder: Folder, opened: OpenDataset, column: str) -> list[str]:
    """The distinct texts of a column, sorted; empty ones are left out.

    Raises:
        StoreError: The knowledge base is damaged.
    """
    found: set[str] = set()
    with reading(folder, opened.version):
        for batch in opened.dataset.to_batches(columns=[column]):
            found.update(batch.column(0).unique().to_pylist())
    return sorted(value for value in found if value)
