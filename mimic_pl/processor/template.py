"""Text templates, which format a record's fields as the encoder's input text."""

from __future__ import annotations

import re

from mimic_pl.errors import ConfigError
from mimic_pl.records import Entity, Mention

_FIELD = re.compile(r"\{(\w+)\}")


class TextTemplate:
    """Replaces each ``{field}`` by a field of the record.

    Args:
        template: The template, such as ``{name} [SEP] {attr}``.

    Raises:
        ConfigError: The template names no field.
    """

    def __init__(self, template: str) -> None:
        self.template = template
        self.fields = _FIELD.findall(template)
        if not self.fields:
            raise ConfigError(f"The text template {template!r} names no field. Write one as {{name}}.")

    def __call__(self, record: Entity | Mention) -> str:
        """The text of a record.

        Raises:
            ConfigError: The record lacks a field.
        """
        known = available(record)
        missing = [field for field in self.fields if field not in known]
        if missing:
            raise ConfigError(
                f"The text template {self.template!r} uses {missing}, which the record {record.id!r} does not have. "
                f"It has: {', '.join(known)}."
            )
        # A function, so that backslashes in a field are not interpreted.
        return _FIELD.sub(lambda match: known[match.group(1)], self.template)


def available(record: Entity | Mention) -> dict[str, str]:
    """All text fields of a record, by their names in templates."""
    if isinstance(record, Entity):
        return {**record.fields, "id": record.id, "name": record.name}
    return {**record.fields, "id": record.id, "mention": record.mention, "sentence": record.sentence}
