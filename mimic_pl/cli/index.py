"""``mimic-pl index``: build a knowledge base from a file of entities."""

from __future__ import annotations

from functools import partial
from typing import Literal

from jsonargparse import ArgumentParser

from mimic_pl.cli.linking_options import (
    add_file_arguments,
    add_model_arguments,
    add_process_arguments,
    add_retriever_arguments,
    with_retriever,
)
from mimic_pl.remote_path import folder_at, local_folder


def add_arguments(parser: ArgumentParser, complete: bool) -> None:
    """Add the options."""
    text = "File of entities: JSON, JSON Lines, CSV, TSV or Parquet, in any of the known layouts."
    parser.add_argument("entities", metavar="KB", type=str, help=text)
    add_model_arguments(parser, of_knowledge_base=False)
    parser.add_argument("--out", type=str, required=True, help="Folder of the knowledge base.")
    text = "Dtype of stored states."
    parser.add_argument("--dtype", type=Literal["float32", "bfloat16", "int8", "int4"], default="float32", help=text)
    add_retriever_arguments(parser, "Also build what a retriever of candidates searches in")
    add_file_arguments(parser)
    parser.add_argument("--batch_size", type=int, default=64, help="Entities that are encoded at once.")
    add_process_arguments(parser)


def run(parser: ArgumentParser, args: list[str]) -> int:
    """Run the command."""
    from mimic_pl.cli.choice import short_path
    from mimic_pl.cli.processes import launched
    from mimic_pl.files import readable_bytes
    from mimic_pl.linking import Linker

    config = parser.parse_args(args)
    local_folder(folder_at(config.out))  # raises here, and not after a model was loaded
    with launched(config) as (processes, device):
        load = partial(Linker.from_pretrained, config.model, device, config.revision)
        linker = processes.run_together(load)
        kb = linker.index(
            config.entities,
            config.out,
            config.batch_size,
            dtype=config.dtype,
            format=config.format,
            image_folder=config.image_folder,
            processes=processes,
        )
    if processes.rank:
        return 0
    if config.retriever is not None:
        with_retriever(linker.with_knowledge_base(kb), config)
    folder = short_path(kb.folder)
    size = readable_bytes(len(kb) * kb.bytes_per_entity)
    print(f"{folder}: {len(kb):,} entities, {size}. To link mentions: mimic-pl link MENTIONS --kb {folder} --out FILE")
    return 0
