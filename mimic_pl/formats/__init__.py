"""Formats of lists of records: JSON, JSON Lines, CSV, TSV and Parquet.

The suffix of a file's name says its format: ``.csv``, ``.tsv``, ``.parquet``; any other file is JSON, whose layout is
found by its content. Text may be compressed, with a further ``.gz``, ``.bz2`` or ``.zst``; it is UTF-8, or UTF-16 with
a byte order mark, as spreadsheets write it.

- **JSON**: a list of records ``[{...}, {...}]``; an object of records ``{"Q1": {...}, "Q2": {...}}``, whose keys are
  the ids of records without one; or an object with one list of records, ``{"version": 2, "data": [{...}, {...}]}``.
- **JSON Lines** (``.jsonl``, ``.ndjson``, or in a file called ``.json``): one record per line.
- **CSV, TSV**: the first line names the columns. Every cell is text: ``007``, ``1e5``, ``NA`` and ``null`` stay as they
  are, and an empty cell is an empty text. A list (of images, golds or numbers) is written as JSON,
  ``["Q1_0.jpg", "Q1_1.jpg"]``; any other text is one value. Cells are separated by commas, semicolons or tabs,
  whichever the first line has most of; in ``.tsv``, by tabs.
- **Parquet**: a column for each field; a list is a list column.

A knowledge base ``kb_entity.csv`` with two entities, the first of which has two images::

    qid,entity_name,attr,image_list
    Q41421,Michael Jordan,American basketball player,"[""Q41421_0.jpg"", ""Q41421_1.jpg""]"
    Q810,Jordan,country in Western Asia,Q810_0.jpg

and mentions in ``MySet_test.jsonl``, on one line each::

    {"id": "1", "sentence": "Jordan scored 30.", "mentions": "Jordan", "answer": "Q41421", "imgPath": "1.jpg"}
"""

from mimic_pl.formats.read_records import SUFFIXES, read_records

__all__ = ["SUFFIXES", "read_records"]
