"""``mimic-pl kb``: show, check and change a knowledge base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from mimic_pl.cli.linking_options import add_file_arguments, add_model_arguments, linker_for
from mimic_pl.errors import DataError, StoreError, UsageError
from mimic_pl.remote_path import folder_at, local_folder

if TYPE_CHECKING:
    from mimic_pl.knowledge_base import KnowledgeBase

ACTIONS = {
    "info": "Print its entities, version, model, columns and size.",
    "verify": "Compare all checksums; the exit code is 7 if anything is damaged.",
    "compact": "Merge the files of many small changes, and remove old versions.",
    "delete": "Delete entities by id.",
    "add": "Encode and add the entities of a file.",
    "update": "Encode the entities of a file again that it has; their order numbers stay.",
}
"""What can be done with a knowledge base."""

_READING = ("info", "verify")

_LISTED = 20


def add_arguments(parser: ArgumentParser, complete: bool) -> None:
    """Add the actions with their options."""
    actions = parser.add_subcommands(required=True, dest="action")
    for name, about in ACTIONS.items():
        own = ArgumentParser(description=about, exit_on_error=False)
        place = "Folder of the knowledge base" + (", or its address s3://BUCKET/FOLDER." if name in _READING else ".")
        own.add_argument("folder", type=str, help=place)
        if name in _READING:
            own.add_argument("--version", type=int | None, default=None, help="Version (default: the newest).")
        elif name == "compact":
            text = "Age of the versions to keep, in hours; readers of older ones must open it again."
            own.add_argument("--keep_hours", type=float, default=24.0, help=text)
        elif name == "delete":
            own.add_argument("ids", nargs="*", type=str, help="Their ids.")
            own.add_argument("--file", type=str | None, default=None, help="File with an id on each line.")
        else:
            text = "Entities: JSON, JSON Lines, CSV, TSV, Parquet or another format of mimic_pl.formats."
            own.add_argument("entities", type=str, help=text)
        if name in ("add", "update"):
            add_file_arguments(own)
        if name in ("delete", "add", "update"):
            add_model_arguments(own)
        actions.add_subcommand(name, own, help=about)


def run(parser: ArgumentParser, args: list[str]) -> int:
    """Run the command; the exit status is 0 unless ``verify`` finds something."""
    config = parser.parse_args(args)
    given = config[config.action]
    if config.action not in _READING:
        local_folder(folder_at(given.folder))  # raises here, and not after a model was loaded
    if config.action == "info":
        _info(_opened(given))
    elif config.action == "verify":
        return _verify(_opened(given))
    elif config.action == "compact":
        kb = _opened(given)
        before = kb.bytes_on_disk
        _print_size(kb.compact(given.keep_hours), f"{_size(before)} before")
    elif config.action == "delete":
        _delete(given)
    else:
        _encode(config.action, given)
    return 0


def _opened(given: Namespace) -> KnowledgeBase:
    from mimic_pl.knowledge_base import KnowledgeBase

    return KnowledgeBase(given.folder, version=given.get("version"))


def _info(kb: KnowledgeBase) -> None:
    from mimic_pl.escaping import printable, shortened
    from mimic_pl.linking.compatibility import source_of
    from mimic_pl.linking.knowledge_base_changes import DRIFT, advice

    versions = kb.versions()
    description = {str(key): str(value) for key, value in kb.description.items() if key != "dtype"}
    if weights := description.pop("model", None):
        description = {"model": f"{source_of(kb) or 'unknown path'} (weights {weights[:12]})", **description}
    time = next((version.time for version in versions if version.number == kb.version), None)
    committed = f" of {time:%Y-%m-%d %H:%M} UTC" if time else ""
    parts = f"{kb.parts:,} parts" + ("; merge them with mimic-pl kb compact" if kb.parts > 100 else "")
    lines = {
        "entities": f"{len(kb):,}",
        "version": f"{kb.version}{committed}; {len(versions):,} can be opened",
        "size": f"{_size(kb.bytes_on_disk)} in {parts}",
        "states": f"{kb.dtype}, {kb.bytes_per_entity:,} bytes per entity",
        "columns": shortened(", ".join(kb.columns), 300),
        **{name: shortened(value, 200) for name, value in description.items()},
    }
    width = max(map(len, lines))
    print("\n".join(printable(f"{name:<{width}}  {value}") for name, value in lines.items()))
    if drifted := kb.statistics(DRIFT):
        print(printable(advice(kb.folder, drifted)))


def _verify(kb: KnowledgeBase) -> int:
    from mimic_pl.escaping import printable

    problems = kb.verify(show_progress_bar=True)
    for problem in problems[:_LISTED]:
        print(printable(problem))
    if len(problems) > _LISTED:
        print(f"... and {len(problems) - _LISTED:,} more.")
    if problems:
        print(
            f"Version {kb.version} is damaged, in {len(problems):,} places. Update or delete damaged entities by id; "
            "restore other files from a copy, or index the knowledge base again."
        )
        return StoreError.exit_code
    print(f"Version {kb.version} with {len(kb):,} entities is intact.")
    return 0


def _delete(given: Namespace) -> None:
    ids = [*given.ids, *(_ids_in(Path(given.file)) if given.file else ())]
    if not ids:
        raise UsageError("delete needs ids, for example: mimic-pl kb delete my_kb Q1 Q2, or --file ids.txt.")
    kb = _opened(given)
    # Without statistics of all entities, no model is needed.
    kb = linker_for(kb, given).delete_entities(ids) if kb.statistics("processor") else kb.delete(ids)
    _print_size(kb, f"{len(ids):,} deleted")


def _encode(action: str, given: Namespace) -> None:
    kb = _opened(given)
    linker = linker_for(kb, given)
    change = linker.add_entities if action == "add" else linker.update_entities
    newest = change(given.entities, show_progress_bar=True, format=given.format, image_folder=given.image_folder)
    _print_size(newest, f"{len(newest) - len(kb):,} added" if action == "add" else "updated")


def _ids_in(path: Path) -> Sequence[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        raise DataError(f"{path} cannot be read as a list of ids, one on each line: {error}.") from error
    return [line.strip() for line in lines if line.strip()]


def _print_size(kb: KnowledgeBase, what: str) -> None:
    print(f"{len(kb):,} entities in {kb.folder}, version {kb.version}, {_size(kb.bytes_on_disk)} ({what}).")


def _size(count: int) -> str:
    from mimic_pl.files import readable_bytes

    return readable_bytes(count)
