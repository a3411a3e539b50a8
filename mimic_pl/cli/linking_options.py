"""Options of the commands that load a model for linking, or read a file of records."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from mimic_pl.errors import UsageError

if TYPE_CHECKING:
    from mimic_pl.knowledge_base import KnowledgeBase
    from mimic_pl.linking import Linker
    from mimic_pl.retrieval import Reranker

EXACT_UP_TO = 250_000
"""Entities that two CPU cores rank in about a tenth of a second for each mention."""


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


def add_retriever_arguments(parser: ArgumentParser, what: str) -> None:
    """Add ``--retriever`` and ``--candidates``.

    Args:
        parser: The parser.
        what: What the retriever is for.
    """
    text = f"{what}: lance, faiss, milvus, or a YAML file of settings (default: all entities are scored)."
    parser.add_argument("--retriever", type=str | None, default=None, help=text)
    text = "Candidates that it finds per channel; mimic-pl recall finds a number for you."
    parser.add_argument("--candidates", type=int | None, default=None, help=text)


def add_file_arguments(parser: ArgumentParser) -> None:
    """Add ``--format`` and ``--image_folder``, which say how a file of records is read."""
    text = "Layout: plain, mimic, blink, kilt, zeshel, wikidata or glinker (default: recognised by the file's keys)."
    parser.add_argument("--format", type=str | None, default=None, help=text)
    text = "Folder that relative paths of images begin in (default: that of the file)."
    parser.add_argument("--image_folder", type=str | None, default=None, help=text)


def add_process_arguments(parser: ArgumentParser) -> None:
    """Add ``--devices``, ``--num_nodes`` and ``--accelerator``, as Lightning's Trainer has them."""
    text = "Devices of each machine, with a process for each."
    parser.add_argument("--devices", type=int, default=1, help=text)
    text = "Machines; the command is started on each, by torchrun, by SLURM, or with MASTER_ADDR and NODE_RANK set."
    parser.add_argument("--num_nodes", type=int, default=1, help=text)
    text = "Kind of the devices of several processes: cpu, gpu, ... (default: gpu if available)."
    parser.add_argument("--accelerator", type=str, default="auto", help=text)


def linker_for(knowledge_base: KnowledgeBase, given: Namespace, reranker: Reranker | None = None) -> Linker:
    """The linker of a knowledge base, with the model that is given or that it was built with.

    Where all entities are ranked for each mention and these are many, it names the alternative.

    Args:
        knowledge_base: The knowledge base.
        given: Values of the options of :func:`add_model_arguments`, and of :func:`add_retriever_arguments` if the
            command has these.
        reranker: Scores the first candidates anew.

    Raises:
        ConfigError: No model is given, and it is not known which one the knowledge base was built with.
    """
    from lightning.pytorch.utilities import rank_zero_info

    from mimic_pl.linking import Linker

    linker = Linker.from_knowledge_base(knowledge_base, given.model, given.device, given.revision, reranker)
    if "retriever" in given and given.retriever is None and len(knowledge_base) > EXACT_UP_TO:
        rank_zero_info(
            f"All {len(knowledge_base)} entities are ranked for each mention. --retriever lance scores candidates: "
            "faster, and mimic-pl recall says what it misses."
        )
    return with_retriever(linker, given)


def with_retriever(linker: Linker, given: Namespace) -> Linker:
    """The linker with the retriever of the options of :func:`add_retriever_arguments`, if it is given.

    Raises:
        UsageError: There are candidates without a retriever.
    """
    if given.get("retriever") is None:
        if given.get("candidates") is not None:
            raise UsageError("--candidates is the number that a retriever finds: name one with --retriever lance.")
        return linker
    return linker.with_retriever(given.retriever, given.candidates)
