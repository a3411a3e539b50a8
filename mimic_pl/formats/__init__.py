"""Formats of knowledge bases, mentions and links.

**Files.** The suffix of a file's name says its format: ``.csv``, ``.tsv``, ``.parquet``; any other file is JSON, whose
layout is found by its content. Text may be compressed, with a further ``.gz``, ``.bz2`` or ``.zst``; it is UTF-8, or
UTF-16 with a byte order mark, as spreadsheets write it.

- **JSON**: a list of records ``[{...}, {...}]``; an object of records ``{"Q1": {...}, "Q2": {...}}``, whose keys are
  the ids of records without one; or an object with one list of records, ``{"version": 2, "data": [{...}, {...}]}``.
- **JSON Lines** (``.jsonl``, ``.ndjson``, or in a file called ``.json``): one record per line. A damaged line is an
  error of its own, and the others are read.
- **CSV, TSV**: the first line names the columns. Every cell is text: ``007``, ``1e5``, ``NA`` and ``null`` stay as they
  are, and an empty cell is an empty text. A list (of images, golds or numbers) is written as JSON,
  ``["Q1_0.jpg", "Q1_1.jpg"]``; any other text is one value. Cells are separated by commas, semicolons or tabs,
  whichever the first line has most of; in ``.tsv``, by tabs.
- **Parquet**: a column for each field; a list is a list column.
- ``datasets:NAME[/CONFIGURATION][:SPLIT]`` in place of a file: a data set of the hub, or a local folder, through the
  package ``datasets``.

**Layouts.** :func:`read_entities` and :func:`read_mentions` recognise a layout by the keys of the first record; where
two of them fit, ``format`` names the one that is meant.

=============  ==========================================  ============================================================
format         an entity                                   a mention
=============  ==========================================  ============================================================
``plain``      ``id, name``                                ``mention, sentence``, or ``sentence, start, end``, or
                                                           ``sentence, spans``; also ``id``, ``golds``
``mimic``      ``qid, entity_name``; also ``attr``,        ``mentions, sentence``; also ``answer``, ``imgPath``
               ``desc`` (M3EL, MMoE), ``image_list``
``blink``      ``title, text`` and ``idx`` (BLINK) or      ``context_left, mention, context_right``; also ``label_id``
               ``document_id`` (zeshel)                    or ``label_document_id``
``kilt``       ``wikipedia_id, wikipedia_title``; also     ``input`` with ``[START_ENT]`` and ``[END_ENT]``, ``output``
               ``text``, ``wikidata_info``
``zeshel``                                                 ``context_document_id, start_index, end_index``, with the
                                                           documents in ``../documents``
``wikidata``   ``id, labels``, one item a line
``glinker``    ``entity_id, label``; also ``aliases``,
               ``description``, ``entity_type``
=============  ==========================================  ============================================================

Every other text of a record becomes one of its fields, for text templates and filters; numbers are written as text.
Other names of an entity are in the field ``aliases``, separated by `` | ``; its type is in ``type``. A plain record has
its picture in ``image``, or several in ``images``: paths from the folder of the file (or from ``image_folder``),
absolute paths, or contents in Parquet. A picture given by a URL is not fetched: the URL is kept in the field
``image_url``.

A knowledge base ``my_kb.csv`` with two entities, the first of which has two images::

    id,name,description,images
    Q41421,Michael Jordan,American basketball player,"[""jordan_0.jpg"", ""jordan_1.jpg""]"
    Q810,Jordan,country in Western Asia,flag.png

and two mentions in ``mentions.jsonl``, the first by its word, the second by its place::

    {"id": "1", "mention": "Jordan", "sentence": "Jordan scored 30.", "image": "1.jpg", "golds": ["Q41421"]}
    {"id": "2", "sentence": "A flight to Jordan.", "start": 12, "end": 18}

A record that cannot be used does not stop the others: a :class:`RecordError` with its file and line takes its place.

>>> for entity in read_entities("my_kb.csv"):  # doctest: +SKIP
...     print(entity.id, entity.name, entity.images)

**Links.** :func:`open_writer` writes what a linker returns; the suffix of the name, or ``format``, says how.

============  ============  ============================================================================================
format        suffix        content
============  ============  ============================================================================================
``jsonl``     ``.jsonl``    a line for each mention, with all candidates; :func:`read_links` reads it back
``csv``       ``.csv``      a row for each candidate, for spreadsheets: ``rank`` 1 is the best
``parquet``   ``.parquet``  a row for each mention, the candidates a list of structures
``nif``       ``.ttl``      NIF 2.1 in Turtle: places, addresses and probabilities of the first candidates
``kilt``      (by name)     predictions for KILT's evaluation
============  ============  ============================================================================================

The file appears when it is complete. Until then the links are kept in a hidden file beside it, so that after a kill
``open_writer(..., resume=True)`` goes on where the last one ended.

``mimic-pl convert`` turns knowledge bases, mentions and links of these formats into each other, and writes a knowledge
base for spaCy (:func:`write_spacy_kb`) or a table of names (:class:`EntitiesByName`). ``pip install
"mimic-pl[formats]"`` installs what NIF, spaCy and ``datasets`` need.
"""

from mimic_pl.formats.aliases import EntitiesByName
from mimic_pl.formats.entities_and_mentions import read_entities, read_mentions
from mimic_pl.formats.layouts import ENTITY_LAYOUTS, MENTION_LAYOUTS
from mimic_pl.formats.link_records import read_links
from mimic_pl.formats.link_writer import LINK_FORMATS, LinkWriter, open_writer
from mimic_pl.formats.read_records import SUFFIXES, read_records
from mimic_pl.formats.record_error import RecordError
from mimic_pl.formats.record_writer import RecordWriter, open_record_writer, write_rows
from mimic_pl.formats.spacy_kb import write_spacy_kb

__all__ = [
    "ENTITY_LAYOUTS",
    "LINK_FORMATS",
    "MENTION_LAYOUTS",
    "SUFFIXES",
    "EntitiesByName",
    "LinkWriter",
    "RecordError",
    "RecordWriter",
    "open_record_writer",
    "open_writer",
    "read_entities",
    "read_links",
    "read_mentions",
    "read_records",
    "write_rows",
    "write_spacy_kb",
]
