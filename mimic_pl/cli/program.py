"""The program's commands and their main options, without importing torch."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import NamedTuple

ABOUT = "Multimodal entity linking with MIMIC. --debug anywhere shows tracebacks of errors."


class Command(NamedTuple):
    """A command of the program.

    Attributes:
        summary: One sentence for the list of commands.
        about: Introduction of its own help.
        module: Module of a command that is not a stage of the Trainer, with ``add_arguments(parser, complete)`` and
            ``run(args)``, which returns the exit status.
    """

    summary: str
    about: str = ""
    module: str | None = None

    def load(self) -> ModuleType:
        """Import the module of a command that is not a stage of the Trainer."""
        assert self.module is not None
        return import_module(self.module)


COMMANDS = {
    "fit": Command("Train a model; the run is written to lightning_logs/version_N."),
    "validate": Command("Evaluate on the validation split; without --config: the newest run's best checkpoint."),
    "test": Command("Evaluate on the test split; without --config: the newest run's best checkpoint."),
    "predict": Command("Link mentions without golds; without --config: with the newest run's best checkpoint."),
    "doctor": Command(
        "Check a data folder before training.",
        "Check a data folder before training: files, counts, golds, images, leakage between splits.",
        "mimic_pl.cli.doctor",
    ),
    "baselines": Command(
        "Rank by names, BM25 and the untrained encoder.",
        "Evaluate baselines that need no training on a data set: names, BM25, and the zero-shot cosine similarity of "
        "the configured encoder. They put the results of a trained model into context.",
        "mimic_pl.cli.baselines",
    ),
    "benchmark": Command(
        "Measure how fast this machine ranks, trains and reads.",
        "Measure ranking, training and reading, compared with the published order of operations and with the limits "
        "of the machine.",
        "mimic_pl.cli.benchmark",
    ),
    "robustness": Command(
        "Evaluate a run on degraded mentions.",
        "Evaluate a trained run on mentions with increasingly degraded images and texts, and write robustness.json "
        "into its folder. Without options: the newest run's best checkpoint, all kinds of degradation, the test split.",
        "mimic_pl.cli.robustness",
    ),
    "report": Command(
        "Collect tested runs in a table with plots.",
        "Collect tested runs in one table (Markdown and CSV) with plots and significance, or show the worst mentions "
        "of a run.",
        "mimic_pl.cli.report",
    ),
}
"""Commands by name, in the order of the help."""

STAGES = tuple(name for name, command in COMMANDS.items() if command.module is None)
"""Commands that are stages of the Trainer, which LightningCLI runs."""

_CONFIG = (
    "Configuration; may be repeated. A later file overrides the keys of earlier ones, lists and dictionaries as a "
    "whole; units+ and losses+ add to units and losses."
)

MAIN_OPTIONS = {
    "--config FILE": (STAGES, _CONFIG),
    "--run FOLDER": (("validate", "test", "predict"), "Training run (default: the newest)."),
    "--ckpt_path PATH": (STAGES, "Checkpoint: a file, best or last. With fit: resume from it."),
    "--seed_everything N": (("fit",), "Seed of the initial weights (default: 43)."),
    "--data CLASS": (STAGES, "Data set: RichpediaMEL, WikiMEL, WikiDiverse, MELDataModule or a custom class."),
    "--data.root FOLDER": (STAGES, "Its folder."),
    "--data.batch_size N": (("fit",), "Mentions per training batch."),
    "--data.num_workers N": (STAGES, "Loader processes."),
    "--data.image_cache FOLDER": (STAGES, "Cache of decoded images; null for none."),
    "--data.entity_image_folder FOLDER": (STAGES, "Folder of the entities' images; null for none."),
    "--data.mention_image_folder FOLDER": (STAGES, "Folder of the mentions' images; null for none."),
    "--data.predict_file FILE": (("predict",), "Mentions to link: JSON, JSON Lines, CSV, TSV, Parquet, or a pipe."),
    "--model CLASS": (STAGES, "MIMIC, or a custom class."),
    "--model.encoder CLASS": (("fit",), "CLIPEncoder, TextVisionEncoder or a custom class."),
    "--model.encoder.pretrained NAME": (("fit",), "Folder or hub name of its weights."),
    "--model.units.NAME CLASS": (("fit",), "One unit, by name; the others are unchanged."),
    "--model.losses.NAME CLASS": (("fit",), "One loss, by name; the others are unchanged."),
    "--model.processor.entity_template TEXT": (STAGES, "Text of an entity, such as '{name} [SEP] {attr}'."),
    "--model.processor.image_policy POLICY": (STAGES, "Policy for unusable images: blank, drop or error."),
    "--model.index.storage PLACE": (STAGES, "Storage of the index: device, host or disk."),
    "--model.index.dtype DTYPE": (STAGES, "float32, bfloat16 or int8."),
    "--model.ranker.top_k N": (STAGES, "Candidates kept per mention."),
    "--predictions.top_k N": (("test", "predict"), "Candidates written per mention."),
    "--trainer.max_epochs N": (("fit",), "Number of epochs."),
    "--trainer.accelerator NAME": (STAGES, "cpu, gpu, ..."),
    "--trainer.devices N": (STAGES, "Number of devices."),
    "--trainer.precision NAME": (STAGES, "32-true, bf16-mixed, ..."),
    "--trainer.default_root_dir FOLDER": (STAGES, "Parent folder of lightning_logs."),
    "--early_stopping.patience N": (("fit",), "Validations without a better val/mrr before training stops."),
}
"""The main options for help: which commands have them, and what they do."""
