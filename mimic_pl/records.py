"""The records that every reader produces: entities and mentions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, Union

from mimic_pl.errors import DataError
from mimic_pl.quoting import listed, quoted
from mimic_pl.remote_path import RemotePath

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

Record = TypeVar("Record")

ImageSource: TypeAlias = Union[str, Path, RemotePath, bytes, "Image.Image", "npt.NDArray[np.uint8]"]
"""An image: a file path, the content of a file, a PIL image, or a pixel array ``[height, width, 3]``.

In records read by a data module, images are file names in its image folders.
"""


@dataclass(frozen=True, slots=True)
class Entity:
    """One entity of the knowledge base. Its position in the knowledge base is its index in the list.

    Attributes:
        id: The entity's identifier, for example ``"Q42"``; unique in the knowledge base.
        name: Its name, percent-decoded.
        fields: Every text field of the source by name (``attr``, ``desc``, ...), for the text template.
        images: Its images, best first; the first that opens is used. Empty if it has none.
        arrays: Custom numeric arrays by name (a type embedding, detected objects, ...), each of the same shape for all
            records. :class:`~mimic_pl.processor.RecordArrays` passes them to the units.

    Example:
        >>> Entity.of({"id": "Q42", "name": "Douglas Adams", "attr": "Sex: male.", "image": "Q42.jpg"})
        Entity(id='Q42', name='Douglas Adams', fields={'attr': 'Sex: male.'}, images=('Q42.jpg',), arrays={})
    """

    id: str
    name: str
    fields: dict[str, str] = field(default_factory=dict)
    images: tuple[ImageSource, ...] = ()
    arrays: Mapping[str, Any] = field(default_factory=dict)

    @property
    def image_files(self) -> tuple[str, ...]:
        """The images as file names in an image folder.

        Raises:
            DataError: An image is not a file name.
        """
        return _files(self.images, self.id)

    @classmethod
    def of(cls, record: Entity | Mapping[str, Any]) -> Entity:
        """Return the record itself, or create one from a dictionary.

        ``id`` and ``name`` are required; ``image`` or ``images`` and ``arrays`` are optional, and every other text
        becomes one of the :attr:`fields`.

        Raises:
            DataError: A required key is missing, or a value has the wrong type.
        """
        if isinstance(record, Entity):
            return record
        rest = _copied(record, "entity")
        images = _images(rest, "entity")
        own = _texts(rest, "entity", required=("id", "name"))
        arrays = rest.pop("arrays", {})
        return cls(own["id"], own["name"], _fields(rest, f"entity {quoted(own['id'])}"), images, arrays)


@dataclass(frozen=True, slots=True)
class Mention:
    """One mention: a span of text in a sentence, and the accompanying image.

    Attributes:
        id: The mention's identifier as text.
        mention: The mention's surface form, percent-decoded.
        sentence: The sentence that contains it.
        golds: ``id`` of the gold entity or entities, in the order of the source; empty for ``nil`` and for unlabelled
            mentions.
        image: The image, or ``None``.
        fields: Every other text field of the source by name, for the text template.
        arrays: Custom numeric arrays by name; see :attr:`Entity.arrays`.
        span: Start and end of the mention in the sentence, in characters, the end exclusive, if known.

    Example:
        >>> Mention.of({"mention": "Adams", "sentence": "Adams wrote for radio."}).sentence
        'Adams wrote for radio.'
    """

    id: str
    mention: str
    sentence: str
    golds: tuple[str, ...] = ()
    image: ImageSource | None = None
    fields: dict[str, str] = field(default_factory=dict)
    arrays: Mapping[str, Any] = field(default_factory=dict)
    span: tuple[int, int] | None = None

    @property
    def image_files(self) -> tuple[str, ...]:
        """The image, if there is one, as a file name in an image folder.

        Raises:
            DataError: It is not a file name.
        """
        return () if self.image is None else _files((self.image,), self.id)

    @classmethod
    def of(cls, record: Mention | Mapping[str, Any]) -> Mention:
        """Return the record itself, or create one from a dictionary.

        ``mention`` is required, or ``start`` and ``end``, its place in the ``sentence``; ``sentence`` and ``id`` are
        empty by default; ``image``, ``golds`` and ``arrays`` are optional, and every other text becomes one of the
        :attr:`fields`.

        Raises:
            DataError: A required key is missing, or a value has the wrong type; or the sentence has something else at
                that place than the mention.

        Example:
            >>> Mention.of({"sentence": "Adams wrote for radio.", "start": 0, "end": 5}).mention
            'Adams'
        """
        if isinstance(record, Mention):
            return record
        rest = _copied(record, "mention")
        span = _span(rest)
        images = _images(rest, "mention")
        if len(images) > 1:
            raise DataError(
                f"The mention {quoted(record.get('mention'))} has {len(images)} images. Pass one as 'image'."
            )
        golds = rest.pop("golds", ())
        golds = (golds,) if isinstance(golds, str) else tuple(golds or ())
        own = _texts(rest, "mention", required=("mention",), optional=("sentence", "id"))
        arrays = rest.pop("arrays", {})
        fields = _fields(rest, f"mention {quoted(own['mention'])}")
        image = images[0] if images else None
        return cls(own["id"], own["mention"], own["sentence"], golds, image, fields, arrays, span)

    @classmethod
    def all_of(cls, record: Mention | Mapping[str, Any]) -> list[Mention]:
        """The mentions of a record, which are several if it has ``spans``.

        ``spans`` is a list of ``[start, end]`` in the ``sentence``, instead of ``mention``; their mentions share
        everything else: sentence, image, id.

        Raises:
            DataError: See :meth:`of`.

        Example:
            >>> record = {"sentence": "Jordan met Pippen.", "spans": [[0, 6], [11, 17]]}
            >>> [mention.mention for mention in Mention.all_of(record)]
            ['Jordan', 'Pippen']
        """
        if isinstance(record, Mention) or not isinstance(record, Mapping) or record.get("spans") is None:
            return [cls.of(record)]
        rest = dict(record)
        spans = rest.pop("spans")
        for key in ("mention", "start", "end"):
            if rest.get(key) is not None:
                raise DataError(f"The mention has both 'spans' and {key!r}. Pass only one of them.")
        if not isinstance(spans, (list, tuple)) or not all(isinstance(s, (list, tuple)) and len(s) == 2 for s in spans):
            raise DataError(f"'spans' of the mention is {quoted(spans)}; it must be a list of [start, end].")
        return [cls.of({**rest, "start": start, "end": end}) for start, end in spans]


def as_sequence(records: Iterable[Record]) -> Sequence[Record]:
    """Return records as a sequence.

    Raises:
        DataError: It is a single record.
    """
    if isinstance(records, (str, bytes, Mapping, Mention, Entity)):
        raise DataError(f"Expected a list of records, not a single {type(records).__name__}. Pass [record].")
    return records if isinstance(records, Sequence) else list(records)


def text_at(sentence: object, span: tuple[Any, Any], mention: str | None = None) -> str:
    """The text of a mention in its sentence.

    Args:
        sentence: The sentence.
        span: Start and end in characters, the end exclusive.
        mention: What the text has to be, if that is known.

    Raises:
        DataError: The span is not inside the sentence, or the text there is another one.
    """
    start, end = span
    numbers = all(isinstance(place, int) and not isinstance(place, bool) for place in span)
    if not isinstance(sentence, str) or not numbers or not 0 <= start < end <= len(sentence):
        size = f"a sentence of {len(sentence)} characters" if isinstance(sentence, str) else "no sentence"
        raise DataError(
            f"The mention is from {quoted(start)} to {quoted(end)} of {size}. 'start' and 'end' count characters from "
            "0, the end exclusive."
        )
    found = sentence[start:end]
    if mention not in (None, found):
        raise DataError(
            f"The mention is {quoted(mention)}, but the sentence has {quoted(found)} from {start} to {end}. 'start' "
            "and 'end' count characters from 0, the end exclusive."
        )
    return found


def _copied(record: object, what: str) -> dict[str, Any]:
    if not isinstance(record, Mapping):
        raise DataError(f"{quoted(record)} is a {type(record).__name__}, not a dictionary that describes the {what}.")
    return dict(record)


def _files(images: tuple[ImageSource, ...], record_id: str) -> tuple[str, ...]:
    for image in images:
        if not isinstance(image, str):
            raise DataError(
                f"The record {quoted(record_id)} contains an image of type {type(image).__name__}. In a data "
                "module, images must be file names in its image folders; model.encode_mentions and "
                "model.encode_entities accept images of any type."
            )
    return images  # type: ignore[return-value]


def _images(rest: dict[str, Any], what: str) -> tuple[ImageSource, ...]:
    """Pop the images from a dictionary."""
    if "image" in rest and "images" in rest:
        raise DataError(f"The {what} has both 'image' and 'images'. Pass only one of them.")
    images = rest.pop("images", None) or ()
    if not isinstance(images, (list, tuple)):
        raise DataError(f"'images' of the {what} is {type(images).__name__}; pass a list, or one image as 'image'.")
    image = rest.pop("image", None)
    return tuple(images) if image is None else (image,)


def _span(rest: dict[str, Any]) -> tuple[int, int] | None:
    """Pop the place of a mention from a dictionary, and set its ``mention`` from the sentence there."""
    start, end = (rest.pop(name, None) for name in ("start", "end"))
    if start is None and end is None:
        return None
    rest["mention"] = text_at(rest.get("sentence"), (start, end), rest.get("mention"))
    return start, end


def _texts(
    rest: dict[str, Any], what: str, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, str]:
    """Pop texts from a dictionary; integers, which identifiers often are, are converted to text."""
    found: dict[str, str] = {}
    keys = ", ".join(map(str, rest))
    for name in (*required, *optional):
        value = rest.pop(name, None)
        if value is None and name in required:
            raise DataError(f"The {what} has no {name!r}. Its keys: {keys or 'none'}.")
        if value is not None and not isinstance(value, (str, int)):
            raise DataError(f"{name!r} of the {what} is {type(value).__name__} {quoted(value)}; it must be text.")
        found[name] = "" if value is None else str(value)
    return found


def _fields(rest: Mapping[str, Any], what: str) -> dict[str, str]:
    wrong = [name for name, value in rest.items() if not isinstance(value, str)]
    if wrong:
        raise DataError(f"{listed(wrong)} of the {what} is not text. Fields must be text; put numbers into 'arrays'.")
    return dict(rest)
