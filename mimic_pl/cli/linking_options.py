"""Options of the commands that load a model for linking, or read a file of records."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

if TYPE_CHECKING:
    from mimic_pl.knowledge_base import KnowledgeBase
    from mimic_pl.linking import Linker
    from mimic_pl.retrieval import Reranker


def add_model_arguments(parser: ArgumentParser, of_knowledge_base: bool = True) -> None:
    """Add ``--model``, ``--device`` and ``--revision``.

    Args:
        parser: The parser.
        of_knowledge_base: The model is by default the one that a knowledge base was built with.
    """
    text = "Model: folder of a training run, checkpoint, exported folder, or name on the hub"
    if of_knowledge_base:
        text += " (default: the one that the knowledge base was built with)"
        parser.add_argument("--model", type=str | None, default=None, help=f"{text}.")
    else:
        parser.add_argument("--model", type=str, required=True, help=f"{text}.")
    parser.add_argument("--device", type=str | None, default=None, help="Torch device (default: a GPU if available).")
    parser.add_argument("--revision", type=str | None, default=None, help="Branch, tag or commit of a hub name.")


def add_file_arguments(parser: ArgumentParser) -> None:
    """Add ``--format`` and ``--image_folder``, which say how a file of records is read."""
    text = "Layout: plain, mimic, blink, kilt, zeshel, wikidata or glinker (default: recognised by the file's keys)."
    parser.add_argument("--format", type=str | None, default=None, help=text)
    text = "Folder that relative paths of images begin in (default: that of the file)."
    parser.add_argument("--image_folder", type=str | None, default=None, help=text)


def linker_for(knowledge_base: KnowledgeBase, given: Namespace, reranker: Reranker | None = None) -> Linker:
    """The linker of a knowledge base, with the model that is given or that it was built with.

    Args:
        knowledge_base: The knowledge base.
        given: Values of the options of :func:`add_model_arguments`.
        reranker: Scores the first candidates anew.

    Raises:
        ConfigError: No model is given, and it is not known which one the knowledge base was built with.
    """
    from mimic_pl.linking import Linker

    return Linker.from_knowledge_base(knowledge_base, given.model, given.device, given.revision, reranker)
