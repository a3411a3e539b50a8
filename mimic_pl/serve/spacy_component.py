"""The spaCy pipeline component ``mimic_linker``: links the named entities of a document.

    >>> import spacy
    >>> nlp = spacy.load("en_core_web_sm")  # doctest: +SKIP
    >>> nlp.add_pipe("mimic_linker", config={"kb": "my_kb"})  # doctest: +SKIP
    >>> doc = nlp.make_doc("Jordan scored 30 points.")  # doctest: +SKIP
    >>> doc._.image = "game.jpg"  # doctest: +SKIP
    >>> [(ent.text, ent.kb_id_, ent._.candidates[0]) for ent in nlp(doc).ents]  # doctest: +SKIP

spaCy finds it through an entry point: nothing of mimic-pl needs to be imported.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from spacy.language import Language
from spacy.pipeline import Pipe
from spacy.tokens import Doc, Span
from spacy.training import Example

from mimic_pl.errors import ConfigError
from mimic_pl.home import expanded
from mimic_pl.linking import Linker
from mimic_pl.links import Links
from mimic_pl.model_folder import save_folder

KNOWLEDGE_BASE, MODEL, SETTINGS = "knowledge_base", "model", "settings.json"
"""What a saved component consists of."""


@Language.factory(
    "mimic_linker",
    assigns=["token.ent_kb_id", "doc.ents"],
    requires=["doc.ents", "token.ent_iob", "token.ent_type"],
    default_config={
        "kb": None,
        "model": None,
        "top_k": 10,
        "filter": None,
        "entity_types": {},
        "device": None,
        "nil": "NIL",
    },
)
class MimicLinker(Pipe):
    """Links ``doc.ents`` to a knowledge base.

    The sentence of a mention is the spaCy sentence around it, or the whole text if there are none. Its image is
    ``ent._.image`` or else ``doc._.image``: a path, the bytes of a file, a PIL image or an array; without one, it is
    linked by text alone.

    For each entity of the document it sets

    - ``ent.kb_id_``: the id of the first candidate, or :attr:`nil` if NIL is more probable;
    - ``ent._.candidates``: the candidates, best first, as dictionaries with ``id``, ``name``, ``score``,
      ``probability`` (``None`` without a calibration) and ``units``, the score of each unit;
    - ``ent._.nil_probability``: the probability that no entity is meant, ``None`` without a calibration.

    The model and the knowledge base are opened when the first document is linked, also in each process of
    ``nlp.pipe(..., n_process=2)``.

    Args:
        nlp: The pipeline.
        name: Name of the component in the pipeline.
        kb: Folder of the knowledge base (see ``mimic-pl index``), or its address ``s3://BUCKET/FOLDER``.
        model: Model that it was built with; by default where that was then.
        top_k: Candidates per mention.
        filter: Condition over the columns of the knowledge base that entities must meet.
        entity_types: By label of spaCy the ``type`` of the entities that it may be linked to, such as
            ``{"PERSON": "human"}``. Mentions with other labels may mean any entity.
        device: Torch device; by default a GPU if there is one.
        nil: What ``ent.kb_id_`` is set to for NIL.
    """

    def __init__(
        self,
        nlp: Language,
        name: str,
        kb: str | None,
        model: str | None,
        top_k: int,
        filter: str | None,
        entity_types: dict[str, str],
        device: str | None,
        nil: str,
    ) -> None:
        self.vocab = nlp.vocab
        self.name = name
        self.kb, self.model = kb, model
        self.top_k = top_k
        self.filter = filter
        self.entity_types = entity_types
        self.device = device
        self.nil = nil
        self._linker: Linker | None = None
        for owner, extensions in ((Doc, ("image",)), (Span, ("image", "candidates", "nil_probability"))):
            for extension in extensions:
                if not owner.has_extension(extension):
                    owner.set_extension(extension, default=None)

    @property
    def linker(self) -> Linker:
        """The linker, opened on first use.

        Raises:
            ConfigError: There is no knowledge base, or no model.
            StoreError: The knowledge base is missing, or was built by another model.
        """
        if self._linker is None:
            if self.kb is None:
                raise ConfigError(
                    f"The component {self.name!r} has no knowledge base. Pass its folder: "
                    'nlp.add_pipe("mimic_linker", config={"kb": "my_kb"}).'
                )
            self._linker = Linker.from_knowledge_base(self.kb, self.model, self.device)
        return self._linker

    def __call__(self, doc: Doc) -> Doc:
        """Link the entities of a document.

        Raises:
            DataError: A mention cannot be linked, for example since its image is missing under that policy.
        """
        self._annotate(doc, self._linked([doc]))
        return doc

    def pipe(self, stream: Iterable[Doc], *, batch_size: int = 64) -> Iterator[Doc]:
        """Link the entities of many documents, in batches of documents.

        A document with a mention that cannot be linked goes to the error handler of the pipeline.
        """
        on_error: Callable[..., object] = self.get_error_handler()
        documents = iter(stream)
        while batch := list(islice(documents, batch_size)):
            found = iter(self._linked(batch))
            for doc in batch:
                links = list(islice(found, len(doc.ents)))
                try:
                    self._annotate(doc, links)
                except Exception as error:
                    on_error(self.name, self, [doc], error)
                    continue
                yield doc

    def _linked(self, documents: Sequence[Doc]) -> list[Links]:
        records = [self._record(ent) for doc in documents for ent in doc.ents]
        return self.linker.link(records, self.top_k, self.filter)

    def _record(self, ent: Span) -> dict[str, Any]:
        around = ent.sent if ent.doc.has_annotation("SENT_START") else ent.doc[:]
        image = ent.doc._.image if ent._.image is None else ent._.image
        return {
            "sentence": around.text,
            "start": ent.start_char - around.start_char,
            "end": ent.end_char - around.start_char,
            "image": image,
            "entity_type": self.entity_types.get(ent.label_),
        }

    def _annotate(self, doc: Doc, found: Sequence[Links]) -> None:
        for ent, links in zip(doc.ents, found, strict=True):
            if links.error is not None:
                raise links.error
            for token in ent:
                token.ent_kb_id_ = self.nil if links.best is None else links.best.entity.id
            # Plain values, which documents can be saved and sent to other processes with.
            ent._.candidates = [
                {
                    "id": link.entity.id,
                    "name": link.entity.name,
                    "score": link.score,
                    "probability": link.probability,
                    "units": dict(link.units),
                }
                for link in links
            ]
            ent._.nil_probability = links.nil_probability

    # ---- saving -------------------------------------------------------------------------------------------------

    def initialize(self, get_examples: Callable[[], Iterable[Example]], *, nlp: Language | None = None) -> None:
        """Open the model and the knowledge base; nothing is trained."""
        _ = self.linker

    def to_disk(self, path: str | Path, *, exclude: Iterable[str] = ()) -> None:
        """Save the component with its model and a copy of its knowledge base, so that the folder can be moved.

        A knowledge base in object storage is not copied: the component opens it there again.

        Args:
            path: The folder.
            exclude: ``model`` and ``knowledge_base`` to save only where these are.
        """
        path, exclude = Path(path), {*exclude}
        path.mkdir(parents=True, exist_ok=True)
        linker = self.linker
        kb = linker.knowledge_base.folder.resolve()
        settings = {"kb": str(kb), "model": linker.source}
        if MODEL not in exclude:
            folder = save_folder(linker.model, path / MODEL)
            if linker.calibration is not None:
                linker.calibration.save(folder)
            settings["model"] = None
        if KNOWLEDGE_BASE not in exclude and isinstance(kb, Path):
            shutil.rmtree(path / KNOWLEDGE_BASE, ignore_errors=True)
            shutil.copytree(kb, path / KNOWLEDGE_BASE)
            settings["kb"] = None
        (path / SETTINGS).write_text(json.dumps(settings))

    def from_disk(self, path: str | Path, *, exclude: Iterable[str] = ()) -> MimicLinker:
        """Use what :meth:`to_disk` has saved.

        Args:
            path: The folder.
            exclude: ``model`` and ``knowledge_base`` to use those of the pipeline's configuration instead.
        """
        path, exclude = expanded(path), {*exclude}
        settings = json.loads((path / SETTINGS).read_text())
        if KNOWLEDGE_BASE not in exclude:
            self.kb = settings["kb"] or str(path / KNOWLEDGE_BASE)
        if MODEL not in exclude:
            self.model = settings["model"] or str(path / MODEL)
        self._linker = None
        return self
