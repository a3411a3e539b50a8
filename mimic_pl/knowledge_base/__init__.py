"""A knowledge base that lives: entities with their states in a folder, which can be added, updated and deleted.

:class:`KnowledgeBase` is the same Lance dataset as the index of an evaluation on disk: a row has an entity's record,
its encoded states and two checksums. Encoding is not done here: callers pass states.

- **Versions.** Each change is one commit, and what a call returned survives a kill at any moment. Whoever has opened a
  version keeps it while others write; there is one writer at a time, and others wait for it.
- **Order numbers.** An entity keeps the number that it got when it was first added, also if it is deleted and added
  again, since the number breaks ties. Whatever its history, a knowledge base ranks the same entities in the same order.
- **Damage.** Checksums are compared whenever rows are read. ``verify()`` reads all rows and names the damaged entities:
  to update or delete these by id repairs the knowledge base. One that has lost its order number can only be deleted and
  added again, with a new number.
- **Filters.** ``where("type = 'person' and name like 'J%'")`` is the engine's SQL over ``id``, ``name`` and every text
  field; a name with blanks is quoted as in ```My field` = 'x'``. All values are texts
  (``cast(born as int) > 1900``), and null where an entity lacks the field.

Example:
    >>> kb = KnowledgeBase.create("my_kb", {"model": "..."})  # doctest: +SKIP
    >>> kb = kb.add([Entity("Q1", "Earth")], model.matcher.entity(features))  # doctest: +SKIP
    >>> kb.entities(kb.where("name like 'E%'"))  # doctest: +SKIP
    [Entity(id='Q1', name='Earth', fields={}, images=(), arrays={})]
"""

from mimic_pl.knowledge_base.indexing import Indexing
from mimic_pl.knowledge_base.knowledge_base import KnowledgeBase, Version

__all__ = ["Indexing", "KnowledgeBase", "Version"]
