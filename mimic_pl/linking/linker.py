"""The linker: links mentions to the entities of a knowledge base."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, overload

import torch
from tqdm.auto import tqdm

from mimic_pl.calibration import Calibration
from mimic_pl.distributed import ProcessGroup
from mimic_pl.errors import ConfigError, DataError
from mimic_pl.formats import read_mentions
from mimic_pl.home import expanded
from mimic_pl.knowledge_base import KnowledgeBase
from mimic_pl.linking.candidates import CandidateSearch, require_one_process
from mimic_pl.linking.compatibility import source_of
from mimic_pl.linking.entity_records import EntityRecords
from mimic_pl.linking.explanation import LinkExplanation, explain_link
from mimic_pl.linking.link_stream import LinkStream
from mimic_pl.linking.mention_records import Restriction, mentions_of
from mimic_pl.linking.model_with_knowledge_base import EntityRecord, ModelWithKnowledgeBase
from mimic_pl.linking.pretrained import default_device, load_linking_model
from mimic_pl.linking.zero_shot import whiten, zero_shot_model
from mimic_pl.links import Links
from mimic_pl.model import MIMIC
from mimic_pl.quoting import quoted
from mimic_pl.ranges import COUNT, require_ranges
from mimic_pl.ranking import fingerprint
from mimic_pl.records import Mention, as_sequence
from mimic_pl.retrieval import ExactRetriever, Reranker, Retriever, rerank, retriever_of

_WHITENED = 512
"""Numbers that image features are whitened to, as in cli_configs/zero_shot.yaml."""

MentionRecord = Mention | Mapping[str, Any]


class Linker(ModelWithKnowledgeBase):
    """Links mentions, words in sentences with images, to the entities of a knowledge base.

    A mention's record has these keys; every other text is a field for the text template:

    ================================  ==============================================================================
    ``mention``                       the word or words, or instead of it their place:
    ``start``, ``end``                in characters of the sentence, the end exclusive
    ``spans``                         ``[[start, end], ...]``: several mentions of one sentence
    ``sentence``                      the text around it
    ``image``                         a path, the bytes of a file, a PIL image, a uint8 array, or nothing
    ``entity_type``                   only entities with this ``type``
    ``candidates``                    only entities with these ids
    ``filter``                        only entities that a condition selects, such as ``"born < '1900'"``
    ================================  ==============================================================================

    Links are exact: the candidates and scores are those that ``mimic-pl test`` finds for the same mentions and
    entities, whatever the batch size; restricted to some entities, they are those of a knowledge base of only these.
    (On a CPU with AVX-512, MKL may round the encoder's products differently in batches of another size, in the last
    bits; the environment variable ``MKL_CBWR=AVX2,STRICT`` prevents it.)

    With a retriever, scores are still exact, but an entity that it does not find is missed.

    Args:
        model: The model; the linker has a copy that shares its weights.
        knowledge_base: The entities, built by the same model; see :meth:`with_knowledge_base`.
        calibration: Gives probabilities to candidates and to NIL; with a reranker, one that was fitted to its scores.
        reranker: Scores the first candidates anew: all that are asked for, and as many as its ``top_k`` if it has one.
        retriever: Finds the entities that are ranked (see :meth:`with_retriever`); all are by default.

    Attributes:
        source: Where the model was loaded from, if :meth:`from_pretrained` did; a knowledge base remembers it.
        unusable_images: Number of mentions' images so far that could not be used, by kind (``missing``,
            ``unreadable``, ...). The first of a kind are logged.

    Raises:
        StoreError: The knowledge base was built by another model; the message says what differs.
        ConfigError: The calibration was fitted to other weights.

    Example:
        >>> linker = Linker.from_pretrained("lightning_logs/version_0")  # doctest: +SKIP
        >>> linker.index("my_kb.csv", "my_kb")  # doctest: +SKIP
        >>> linker = linker.with_knowledge_base("my_kb")  # doctest: +SKIP
        >>> for link in linker.link({"mention": "Jordan", "sentence": "Jordan scored 30."}):  # doctest: +SKIP
        ...     print(link.entity.name, link.score, link.probability)
    """

    def __init__(
        self,
        model: MIMIC,
        knowledge_base: KnowledgeBase | str | Path | None = None,
        calibration: Calibration | None = None,
        reranker: Reranker | None = None,
        retriever: Retriever | str | None = None,
    ) -> None:
        super().__init__(model)
        self.calibration = calibration
        self.reranker = reranker
        self.retriever = _retriever_of(retriever)
        self.unusable_images: Counter[str] = Counter()
        self._search: CandidateSearch | None = None
        if calibration is not None:
            calibration.require_weights(self.weights)
        if knowledge_base is not None:
            self._open(knowledge_base)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        device: str | torch.device | None = None,
        revision: str | None = None,
        reranker: Reranker | None = None,
    ) -> Linker:
        """Load a model, with its calibration if it has one.

        Args:
            name_or_path: Folder of a training run, a checkpoint, an exported folder, or a name on the hub.
            device: Torch device; by default a GPU if there is one.
            revision: Branch, tag or commit of a name on the hub.
            reranker: Scores the first candidates anew. The model's calibration is of other scores and not used then.

        Raises:
            ConfigError: There is no such model.
            CheckpointError: Its weights cannot be read.
        """
        model, calibration = load_linking_model(name_or_path, revision)
        calibration = None if reranker is not None else calibration
        linker = cls(model.to(device or default_device()), calibration=calibration, reranker=reranker)
        path = expanded(name_or_path)
        linker.source = str(path.resolve() if path.exists() else name_or_path)
        return linker

    @classmethod
    def from_knowledge_base(
        cls,
        knowledge_base: KnowledgeBase | str | Path,
        model: str | Path | None = None,
        device: str | torch.device | None = None,
        revision: str | None = None,
        reranker: Reranker | None = None,
    ) -> Linker:
        """Open a knowledge base with the model that it was built with.

        Args:
            knowledge_base: The knowledge base, its folder, or its address ``s3://BUCKET/FOLDER``.
            model: Where the model is now, as :meth:`from_pretrained` takes it; by default where it was at that time.
            device: Torch device; by default a GPU if there is one.
            revision: Branch, tag or commit of a model on the hub.
            reranker: Scores the first candidates anew.

        Raises:
            ConfigError: There is no such model, or the knowledge base does not say where it is.
            CheckpointError: Its weights cannot be read.
            StoreError: There is no such knowledge base, or another model built it.
        """
        if not isinstance(knowledge_base, KnowledgeBase):
            knowledge_base = KnowledgeBase(knowledge_base)
        model = model or source_of(knowledge_base)
        if model is None:
            raise ConfigError(
                f"{knowledge_base.folder} does not say where its model is. Name it: --model RUN, or "
                "model=... in Python."
            )
        return cls.from_pretrained(model, device, revision, reranker).with_knowledge_base(knowledge_base)

    @classmethod
    def zero_shot(
        cls,
        text: str | None = None,
        image: str | None = None,
        device: str | torch.device | None = None,
        entities: Iterable[EntityRecord] | str | Path | None = None,
        mentions: Iterable[MentionRecord] = (),
        **options: Any,
    ) -> Linker:
        """A linker that needs no training.

        Args:
            text: Checkpoint folder or hub name of a text model.
            image: Name of a timm model.
            device: Torch device; by default a GPU if there is one.
            entities: Entities of the knowledge base, or a file of them, as for :meth:`index`. If given, image features
                are whitened with the first of them (:func:`~mimic_pl.linking.zero_shot.whiten`), to 512 numbers if
                ``image_projection`` does not say otherwise, and compare far better. Only a linker made from the same
                ones, or from this one's saved model, opens the knowledge base again.
            mentions: With ``entities``: a sample of mentions to whiten with, too; golds are not read.
            options: Others of :func:`~mimic_pl.linking.zero_shot.zero_shot_model`.

        Raises:
            ConfigError: A checkpoint cannot be used, or there are too few images to whiten with.
            DataError: A record is malformed.
        """
        if entities is not None:
            options = {"image_projection": _WHITENED, **options}
        model = zero_shot_model(text, image, **options).to(device or default_device())
        if entities is not None:
            whiten(model, EntityRecords(entities), mentions)
        return cls(model)

    @cached_property
    def weights(self) -> str:
        """Fingerprint of the model's weights, computed once."""
        return fingerprint(self.model.encoder, self.model.matcher)

    def with_retriever(self, retriever: Retriever | str | Path | None, k: int | None = None) -> Linker:
        """A linker that ranks only the entities that a retriever finds, for large knowledge bases.

        What it searches in is derived from the knowledge base: it is built if it is missing, and follows every change.
        ``mimic-pl recall`` measures how often the first entity is found.

        Args:
            retriever: A retriever, its name, or a file of settings (see :func:`~mimic_pl.retrieval.retriever_of`);
                none, or ``exact``, to rank all entities.
            k: Candidates per channel, in place of the retriever's own number; with a name or a file.

        Raises:
            ConfigError: There is no such retriever, or its engine is not installed or cannot be reached.
            StoreError: What it searches in cannot be written.

        Example:
            >>> linker = linker.with_knowledge_base("my_kb").with_retriever("lance", k=200)  # doctest: +SKIP
        """
        linker = copy.copy(self)
        linker.retriever = _retriever_of(retriever, k)
        if self._search is not None:
            linker._open(self.knowledge_base)
        return linker

    def _use(self, model: MIMIC, knowledge_base: KnowledgeBase) -> None:
        retriever = self.retriever and self.retriever.at(knowledge_base, model)
        self._search = CandidateSearch(model, knowledge_base, retriever)
        super()._use(model, knowledge_base)

    @property
    def _candidates(self) -> CandidateSearch:
        kb = self.knowledge_base  # raises if there is none
        assert self._search is not None and self._search.knowledge_base is kb
        return self._search

    @overload
    def link(self, records: MentionRecord, *args: Any, **kwargs: Any) -> Links: ...

    @overload
    def link(self, records: Iterable[MentionRecord] | str | Path, *args: Any, **kwargs: Any) -> list[Links]: ...

    def link(
        self,
        records: MentionRecord | Iterable[MentionRecord] | str | Path,
        top_k: int | None = 10,
        filter: str | None = None,
        batch_size: int = 64,
        show_progress_bar: bool = False,
        image_folder: str | Path | None = None,
        certify: bool = False,
    ) -> Links | list[Links]:
        """Link mentions.

        Args:
            records: One mention or several, as records (see :class:`Linker`), or a file of them.
            top_k: Candidates per mention; ``None`` for all entities.
            filter: Condition over the columns of the knowledge base that entities must meet, in addition to those of
                single mentions; see :meth:`KnowledgeBase.where`.
            batch_size: Mentions that are encoded and ranked at once.
            show_progress_bar: Show a progress bar with rate and time left.
            image_folder: Folder that relative paths of images begin in; by default the file's own, and the working
                directory for records.
            certify: With a retriever, try to prove that the first candidate is the first of all entities, and tell in
                :attr:`Links.certified`. That takes bounds of all entities' scores, a fraction of an exact ranking;
                without a retriever, all are ranked, and the proof is free.

        Returns:
            The links of a mention; a list for several mentions, and for one record with ``spans``.

        Raises:
            DataError: A single record cannot be linked, or the filter cannot be evaluated. A record of several has an
                error in :attr:`Links.error` instead.
            ConfigError: ``certify`` with a reranker, whose order nothing is proven of.
        """
        single = isinstance(records, (Mention, Mapping))
        source: Any = records
        given = [source] if single else source if isinstance(source, (str, Path)) else as_sequence(source)
        stream = self.link_stream(given, top_k, filter, batch_size, image_folder, certify=certify)
        total = len(given) if isinstance(given, Sequence) and not isinstance(given, str) else None
        found = list(tqdm(stream, "Linking", total, unit=" mentions", disable=not show_progress_bar))
        if not single:
            return found
        for links in found:
            if links.error is not None:
                raise links.error
        return found if isinstance(records, Mapping) and records.get("spans") is not None else found[0]

    def link_stream(
        self,
        records: Iterable[Any] | str | Path,
        top_k: int | None = 10,
        filter: str | None = None,
        batch_size: int = 64,
        image_folder: str | Path | None = None,
        format: str | None = None,
        skip: int = 0,
        certify: bool = False,
        processes: ProcessGroup | None = None,
    ) -> LinkStream:
        """Link a stream of mentions of any length, in bounded memory; see :meth:`link` for the arguments.

        Several processes find the links that one finds: each calls this with the same arguments, on a device of its
        own, and iterates over the links, which are those of all mentions. It holds and ranks a share of the entities,
        and encodes a share of the mentions, which the first one reads.

        Args:
            records: Mentions, an iterator of them, or a file in any of the :mod:`~mimic_pl.formats`.
            top_k: Candidates per mention.
            filter: Condition that entities must meet.
            batch_size: Mentions that are read, encoded and ranked at once.
            image_folder: Folder that relative paths of images begin in.
            format: Layout of the file; recognised by default.
            skip: Number of records at the beginning to skip, which were linked before; numbers count them.
            certify: Try to prove that first candidates are the first of all entities.
            processes: The processes that link together; this one alone by default.

        Returns:
            An iterator over the links in the order of the mentions. A record that cannot be linked has an
            :attr:`Links.error`, and costs the others nothing.

        Raises:
            DataError: The filter cannot be evaluated.
            ConfigError: ``certify`` with a reranker, or several processes with a retriever.
            StoreError: The processes have different models or versions of the knowledge base.
        """
        processes = processes or ProcessGroup(alone=True)
        search = self._shared_search(processes)

        def require() -> None:
            require_ranges({"top_k": COUNT, "batch_size": COUNT}, {"top_k": top_k, "batch_size": batch_size}, "")
            if certify and self.reranker is not None:
                raise ConfigError(
                    "certify proves the first of the model's own ranking, which a reranker orders anew. Link without "
                    "one."
                )
            if filter is not None:
                search.knowledge_base.where(filter)  # raises here, and not once for each mention

        processes.run_together(require)
        folder = None if image_folder is None else expanded(image_folder)
        if isinstance(records, (str, Path)):
            records, folder = read_mentions(expanded(records), format, image_folder=folder), None
        read = [getattr(reader, "top_k", 0) for reader in (self.calibration, self.reranker)]
        depth = None if top_k is None else max(top_k, *read)
        numbered = islice(enumerate(records), skip, None)
        return LinkStream(
            search, numbered, top_k, depth, filter, batch_size, folder, self._finished, self.unusable_images, certify
        )

    def _shared_search(self, processes: ProcessGroup) -> CandidateSearch:
        """The search of this process, or its part in that of several ones; collective."""
        own = self._candidates
        if processes.world_size == 1:
            return own
        kb = own.knowledge_base
        what = "models, or different versions of the knowledge base"
        processes.require_same(lambda: (self.weights, kb.version, len(kb)), what)
        if own.retriever is not None:
            processes.run_together(lambda: require_one_process(processes))
        return CandidateSearch(own.model, kb, processes=processes)

    def _finished(self, links: Links) -> Links:
        """Rerank the candidates of a mention, and give them probabilities."""
        links = links if self.reranker is None else rerank(self.reranker, links)
        if self.calibration is None or not links.candidates:
            return links
        scores = torch.tensor([[link.score for link in links.candidates]], dtype=torch.float64)
        probabilities, nil = self.calibration(scores)
        candidates = zip(links.candidates, probabilities[0].tolist(), strict=True)
        return replace(
            links,
            candidates=tuple(replace(link, probability=probability) for link, probability in candidates),
            nil_probability=float(nil[0]),
        )

    def explain(
        self, mention: MentionRecord, entity: str, top_k: int = 5, filter: str | None = None
    ) -> LinkExplanation:
        """Explain the rank of an entity for a mention: scores, shares of the units, attention and gates.

        The rank is that of :meth:`link`: among the entities that the mention's own conditions and the filter allow.

        Args:
            mention: A mention.
            entity: The entity's id.
            top_k: Number of other entities on top to compare with.
            filter: Condition that entities must meet; see :meth:`link`.

        Raises:
            DataError: The record is malformed, there is no such entity, or a condition excludes it.
            ConfigError: The record has several mentions.
        """
        mentions = mentions_of(mention)
        if len(mentions) > 1:
            raise ConfigError(f"{quoted(mention)} has {len(mentions)} mentions. Explain one of them at a time.")
        kb = self.knowledge_base
        order = kb.order_of([entity])
        (record,) = kb.entities(order)
        index = self._candidates.part(Restriction.of(mentions[0], filter))
        if index is None or not torch.isin(order, index.order.cpu()):
            raise DataError(
                f"The entity {quoted(entity)} has no rank: the filter, or the mention's entity_type, candidates or "
                "filter, exclude it. Explain it without them."
            )
        return explain_link(
            self.model, mentions[0], record, index, top_k, self.calibration, lambda id: kb.known([id])[id].name
        )


def _retriever_of(given: Retriever | str | Path | None, k: int | None = None) -> Retriever | None:
    """The retriever; none if it ranks everything, which is done without one."""
    found = retriever_of(given, k) if isinstance(given, (str, Path)) else given
    return None if isinstance(found, ExactRetriever) else found
