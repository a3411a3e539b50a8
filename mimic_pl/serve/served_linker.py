"""The linker of a server: follows changes of the knowledge base, also those of other processes, and makes changes."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mimic_pl.files import write_file
from mimic_pl.knowledge_base import KnowledgeBase
from mimic_pl.linking import Linker
from mimic_pl.linking.explanation import LinkExplanation
from mimic_pl.links import Links
from mimic_pl.ranking.lance_dataset import sql_text
from mimic_pl.records import Entity
from mimic_pl.remote_path import RemotePath, local_folder

UPLOADS = "uploaded_images"
"""Folder inside that of the knowledge base for the images of entities that were added by requests."""


_REFRESH, _REMOTE_REFRESH = 1.0, 60.0


class ServedLinker:
    """A linker that several requests use, one at a time.

    Args:
        linker: The linker, with a knowledge base.
        refresh: Seconds after which it looks for a newer version of the knowledge base; by default one, and a minute
            for one in object storage, where looking takes requests.
    """

    def __init__(self, linker: Linker, refresh: float | None = None) -> None:
        self._linker = linker
        remote = isinstance(linker.knowledge_base.folder, RemotePath)
        self._refresh = refresh if refresh is not None else _REMOTE_REFRESH if remote else _REFRESH
        self._looked = time.monotonic()
        self._lock = threading.RLock()
        self._values: tuple[int, str, list[str]] | None = None

    @property
    def knowledge_base(self) -> KnowledgeBase:
        """The newest version, as of the last look."""
        return self.linker.knowledge_base

    @property
    def linker(self) -> Linker:
        """The linker with the newest version, as of the last look."""
        with self._lock:
            if time.monotonic() - self._looked >= self._refresh:
                newest = KnowledgeBase(self._linker.knowledge_base.folder)
                if newest.version != self._linker.knowledge_base.version:
                    self._linker = self._linker.with_knowledge_base(newest)
                self._looked = time.monotonic()
            return self._linker

    def link(self, records: Sequence[Mapping[str, Any]], top_k: int) -> list[Links]:
        """Link records; see :meth:`Linker.link`."""
        return self.linker.link(records, top_k, batch_size=max(1, len(records)))

    def explain(self, record: Mapping[str, Any], entity: str, top_k: int) -> LinkExplanation:
        """Explain a link; see :meth:`Linker.explain`."""
        return self.linker.explain(record, entity, top_k)

    def entity(self, id: str) -> Entity | None:
        """The entity with an id, or None."""
        return self.knowledge_base.known([id]).get(id)

    def known(self, ids: Sequence[str]) -> dict[str, Entity]:
        """Entities by id, of those of these ids that there are."""
        return self.knowledge_base.known(ids)

    def named(self, prefix: str, start: int, count: int) -> list[Entity]:
        """Entities whose name begins with a prefix, whatever its case, or whose id it is; in their order.

        Args:
            prefix: The prefix.
            start: How many to skip.
            count: How many to return.
        """
        kb = self.knowledge_base
        same = f"id = {sql_text(prefix)}"
        return kb.entities(
            kb.where(f"starts_with(lower(name), {sql_text(prefix.lower())}) OR {same}")[start : start + count]
        )

    def values(self, column: str) -> list[str]:
        """Distinct values of a column, sorted; kept until the knowledge base changes."""
        kb = self.knowledge_base
        if self._values is None or self._values[:2] != (kb.version, column):
            self._values = kb.version, column, kb.values(column) if column in kb.columns else []
        return self._values[2]

    def put(self, record: Mapping[str, Any], images: Sequence[bytes]) -> bool:
        """Add an entity, or replace the one with its id; committed when this returns.

        Args:
            record: The entity without images.
            images: Contents of its images; kept in a folder of the knowledge base.

        Returns:
            Whether it is a new one.
        """
        with self._newest() as changed:
            paths = [self._keep(content) for content in images]
            new = not changed.knowledge_base.known([record["id"]])
            change = changed.add_entities if new else changed.update_entities
            change([{**record, "images": paths}])
        return new

    def delete(self, id: str) -> None:
        """Delete an entity; committed when this returns.

        Raises:
            DataError: There is no such entity.
        """
        with self._newest() as changed:
            changed.delete_entities([id])

    @contextmanager
    def _newest(self) -> Iterator[Linker]:
        """A linker with the newest version to change, which takes the place of this one if that succeeds."""
        with self._lock:
            changed = self._linker.with_knowledge_base(local_folder(self._linker.knowledge_base.folder))
            yield changed
            self._linker = changed

    def _keep(self, content: bytes) -> str:
        folder = local_folder(self._linker.knowledge_base.folder) / UPLOADS
        folder.mkdir(exist_ok=True)
        path = folder / hashlib.sha256(content).hexdigest()
        if not path.exists():
            write_file(path, content)
        return str(path.resolve())
