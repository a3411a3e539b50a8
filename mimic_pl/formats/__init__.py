"""Formats of lists of records: JSON, JSON Lines, CSV, TSV and Parquet.

The name of a file says its format: ``.csv``, ``.tsv`` and ``.parquet``; any other name is JSON, whose layout is found by
its content. Text formats may be compressed, with a further ``.gz``, ``.bz2`` or ``.zst``, and be UTF-8, or UTF-16 as
spreadsheets write it.

- **JSON**: a list of records ``[{...}, {...}]``, an object of records ``{"Q1": {...}, "Q2": {...}}``, whose keys are the
  ids of records without one, or an object with one list of records: ``{"version": 2, "data": [{...}, {...}]}``.
- **JSON Lines** (also in a file called ``.json``): one record per line.
- **CSV, TSV**: the first line names the columns. Every cell is text, and an empty one means that there is no value:
  ``007``, ``1e5``, ``NA`` and ``null`` stay as they are. A list (of images, golds or numbers) is written as JSON:
  ``["Q1_0.jpg", "Q1_1.jpg"]``; any other text is one value. Cells may be separated by commas, semicolons or tabs,
  whichever the first line has most of (in ``.tsv``: by tabs).
- **Parquet**: a column of each name; lists are list columns.
"""

from mimic_pl.formats.read_records import SUFFIXES, read_records

__all__ = ["SUFFIXES", "read_records"]
