"""``mimic-pl baselines``: results of name matching, BM25 and the untrained encoder on a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentParser

from mimic_pl.errors import ConfigError


def add_arguments(parser: ArgumentParser, complete: bool) -> None:
    """Add the options."""
    from mimic_pl.cli.sections import (
        add_config_argument,
        add_data_argument,
        add_model_argument,
        add_processor_argument,
    )

    add_config_argument(parser, "Configuration from which 'model' and 'data' are used; the rest is ignored.")
    add_model_argument(parser, complete, required=False)
    add_data_argument(parser, complete)
    add_processor_argument(parser, complete)
    parser.add_argument("--split", type=Literal["test", "val"], default="test", help="Split to evaluate.")
    text = "Folder for the results (default: baselines/NAME of the data set, or baselines/NAME-val for --split val)."
    parser.add_argument("--output", type=str | None, default=None, help=text)
    text = (
        "Baselines, separated by commas (default: all): exact_name, name_similarity, bm25, and with a model "
        "text_cosine, image_cosine, both_cosines."
    )
    parser.add_argument("--only", type=str | None, default=None, help=text)
    parser.add_argument("--top_k", type=int, default=10, help="Candidates to write per mention.")
    text = "Torch device of the encoder (default: a GPU if available)."
    parser.add_argument("--device", type=str | None, default=None, help=text)


def run(parser: ArgumentParser, args: list[str]) -> int:
    """Run the command."""
    import torch
    from lightning.pytorch import seed_everything

    from mimic_pl.baselines import BASELINES, run_baselines
    from mimic_pl.baselines.run import COSINES
    from mimic_pl.cli.config_checks import check_config
    from mimic_pl.cli.sections import with_sections
    from mimic_pl.files import write_file
    from mimic_pl.processor import Processor
    from mimic_pl.ranges import COUNT, require_ranges

    config = parser.parse_args(list(with_sections(args, ("model", "data", "processor"))))
    require_ranges({"top_k": COUNT}, {"top_k": config.top_k}, "--")
    check_config(config)
    chosen = [name.strip() for name in config.only.split(",")] if config.only else list(BASELINES)
    if not set(chosen) & set(COSINES):
        config.model = None  # not needed, and slow to load
    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device is {device}, but no CUDA device is available. Use --device cpu.")
    seed_everything(43, verbose=False)  # for an encoder configured with random weights
    built: Any = parser.instantiate(config)
    name = built.data.name or built.data.folder.resolve().name
    folder = Path(config.output or Path("baselines") / (name if config.split == "test" else f"{name}-{config.split}"))
    encoder = None if built.model is None else built.model.encoder
    built.data.processor = (built.processor or Processor()) if built.model is None else built.model.processor
    summary = run_baselines(built.data, config.split, folder, encoder, chosen, config.top_k, device)
    # As in a run's folder: the report compares only results with the same inputs.
    dumped = yaml.safe_load(parser.dump(config))
    processor = {"model": {"init_args": {"processor": dumped["processor"]}}} if dumped.get("processor") else {}
    inputs = yaml.safe_dump({"data": dumped["data"], **processor}, allow_unicode=True)
    for name in summary["baselines"]:
        write_file(folder / name / "config.yaml", inputs.encode())
    print(f"Written to {folder}.")
    return 0
