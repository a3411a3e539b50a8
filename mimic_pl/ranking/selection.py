"""Selected pairs of a block: where scores reach a row's value or a mask is true, and the k-th best of each row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def true_pairs(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns where a mask is true, by row, then column, both int64 ``[pairs]``.

    Args:
        mask: Bool ``[rows, columns]``.
    """
    if mask.device.type != "cpu":
        rows, columns = mask.nonzero(as_tuple=True)
        return rows, columns
    # Four times as fast as torch's on a CPU, where almost all of the mask is false.
    flat = torch.from_numpy(np.flatnonzero(mask.numpy()))
    rows = flat.div(mask.shape[1], rounding_mode="floor") if mask.shape[1] else flat
    return rows, flat - rows * mask.shape[1]


def above(values: Tensor, least: Tensor) -> Tensor:
    """Where values are greater than their row's ``least``, bool ``[rows, columns]``.

    Args:
        values: ``[rows, columns]``.
        least: ``[rows]``.
    """
    return _compared(torch.gt, np.greater, values, least)


def at_least(values: Tensor, least: Tensor) -> Tensor:
    """Where values are greater than their row's ``least``, or equal, like :func:`above`."""
    return _compared(torch.ge, np.greater_equal, values, least)


def kth_largest(rows: Tensor, values: Tensor, k: int, num_rows: int) -> Tensor:
    """The k-th largest value of each row, ``[num_rows]``; -inf for a row with fewer values.

    Args:
        rows: Row of each value, ascending, int64 ``[n]``.
        values: Values ``[n]``.
        k: Which of them, from 1.
        num_rows: Number of rows.
    """
    counts = torch.bincount(rows, minlength=num_rows)
    width = int(counts.max()) if len(rows) else 0
    if width < k:
        return values.new_full((num_rows,), -torch.inf)
    # A row each of its values, which sorts only the best of them.
    places = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    lists = values.new_full((num_rows, width), -torch.inf)
    lists[rows, places] = values
    return lists.topk(k, dim=1).values[:, -1]


def _compared(compare: Callable[..., Tensor], on_cpu: np.ufunc, values: Tensor, least: Tensor) -> Tensor:
    """Compare values with their row's ``least``, by NumPy on a CPU: in a third of torch's time."""
    if values.device.type != "cpu" or values.dtype == torch.bfloat16:  # which NumPy does not have
        return compare(values, least[:, None])
    return torch.from_numpy(on_cpu(values.numpy(), least[:, None].numpy()))
