"""Writes links in any of the output formats, so that a killed writer can go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mimic_pl.errors import ConfigError
from mimic_pl.formats.kilt_layout import write_kilt_predictions
from mimic_pl.formats.link_records import link_record
from mimic_pl.formats.link_tables import write_csv, write_parquet
from mimic_pl.formats.nif import write_nif
from mimic_pl.formats.optional_package import optional_package
from mimic_pl.formats.part_file import PartFile, Render
from mimic_pl.links import Links

_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet", ".ttl": "nif"}


def _nif() -> Render:
    optional_package("rdflib", "Writing NIF")
    return write_nif


LINK_FORMATS: dict[str, Callable[[], Render | None]] = {
    "jsonl": lambda: None,
    "csv": lambda: write_csv,
    "parquet": lambda: write_parquet,
    "nif": _nif,
    "kilt": lambda: write_kilt_predictions,
}
"""Formats of links by name: each imports what it needs and returns how records become its file."""


class LinkWriter(PartFile):
    """Writes links to a file, which appears complete at the end of the ``with`` block.

    After an exception or a kill, what was written so far is kept beside the file, for a writer that resumes: it skips
    as many mentions as were ``written``.
    """

    def write(self, links: Links) -> None:
        """Write the candidates of one mention; see :func:`link_record`.

        Raises:
            MachineError: The disk is full.
        """
        self.append(link_record(links))


def open_writer(path: str | Path, format: str | None = None, resume: bool = False, job: str = "") -> LinkWriter:
    """Open a file for links.

    Args:
        path: The file.
        format: One of :data:`LINK_FORMATS`; by default what the suffix of the file's name says.
        resume: Go on where a killed writer of the same job ended; the caller skips as many mentions as were
            ``written``. Otherwise begin anew.
        job: What is linked with what, in any form (such as a fingerprint): only an equal job is resumed.

    Raises:
        ConfigError: There is no such format, or a package for it is not installed.
        MachineError: The folder is not writable.
        StoreError: Another process is writing the same file.

    Example:
        >>> with open_writer("links.csv") as writer:  # doctest: +SKIP
        ...     for links in linker.link_stream(mentions):
        ...         writer.write(links)
    """
    path = Path(path)
    known = f"{', '.join(sorted(_SUFFIXES))}; or name the format: {', '.join(LINK_FORMATS)}"
    if format is None:
        if path.suffix.lower() not in _SUFFIXES:
            raise ConfigError(f"The name {path} does not say in which format to write links. Give it one of {known}.")
        format = _SUFFIXES[path.suffix.lower()]
    if format not in LINK_FORMATS:
        raise ConfigError(f"Links cannot be written as {format!r}. Choose one of: {', '.join(LINK_FORMATS)}.")
    render = LINK_FORMATS[format]()  # fails before any link is written
    return LinkWriter(path, render, f"{format} {job}", resume)
