"""What the program can do: its commands and their main options. Nothing here loads torch."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import NamedTuple

ABOUT = "Multimodal entity linking with MIMIC. --debug anywhere shows tracebacks of errors."


class Command(NamedTuple):
    """A command of the program.

    Attributes:
        summary: One sentence for the list of commands.
        about: What its own help says first; the summary if empty.
        module: Where a command that is no stage of the Trainer is: a module with ``add_arguments(parser, complete)``
            and ``run(args)``, which returns the exit status.
    """

    summary: str
    about: str = ""
    module: str | None = None

    def load(self) -> ModuleType:
        """The module of a command that is no stage of the Trainer."""
        assert self.module is not None
        return import_module(self.module)


COMMANDS = {
    "fit": Command("Train a model; the run goes into lightning_logs/version_N."),
    "validate": Command("Evaluate on the validation split; without --config: the newest run's best checkpoint."),
    "test": Command("Evaluate on the test split; without --config: the newest run's best checkpoint."),
    "predict": Command("Link mentions that have no golds; without --config: with the newest run's best checkpoint."),
    "doctor": Command(
        "Check a data folder before any training.",
        "Check a data folder before any training: files, counts, golds, images, leakage between splits.",
        "mimic_pl.cli.doctor",
    ),
    "baselines": Command(
        "Rank by names, BM25 and the untrained encoder.",
        "Rank a data set by what needs no training: names, BM25, and the zero-shot cosine of the configured encoder. A "
        "result without these next to it says little.",
        "mimic_pl.cli.baselines",
    ),
    "benchmark": Command(
        "Measure how fast this machine ranks, trains and reads.",
        "Measure ranking, training and reading side by side with the published order of operations and with the "
        "machine's own limit.",
        "mimic_pl.cli.benchmark",
    ),
    "robustness": Command(
        "Evaluate a run on mentions made worse, grade by grade.",
        "Evaluate a trained run on mentions whose images and texts are made worse, grade by grade, and write "
        "robustness.json into its folder. Without options: the newest run's best checkpoint, all kinds, the test "
        "split.",
        "mimic_pl.cli.robustness",
    ),
    "report": Command(
        "Collect tested runs into a table with plots.",
        "Collect tested runs into one table (Markdown and CSV) with plots and significance, or show the worst mentions "
        "of a run.",
        "mimic_pl.cli.report",
    ),
}
"""By name, in the order in which help lists them."""

STAGES = tuple(name for name, command in COMMANDS.items() if command.module is None)
"""Commands that are stages of the Trainer, which LightningCLI runs."""

_CONFIG = (
    "Configuration; several may be given. A later file is laid over the earlier ones: what it names replaces what "
)
_CONFIG += "they say, lists and dictionaries as a whole; units+ and losses+ add to units and losses."

MAIN_OPTIONS = {
    "--config FILE": (STAGES, _CONFIG),
    "--run FOLDER": (("validate", "test", "predict"), "Training run to take (default: the newest)."),
    "--ckpt_path PATH": (STAGES, "Checkpoint: a file, best or last. With fit: go on from there."),
    "--seed_everything N": (("fit",), "Seed of the weights (default: 43)."),
    "--data CLASS": (STAGES, "Data set: RichpediaMEL, WikiMEL, WikiDiverse, MELDataModule or a class of your own."),
    "--data.root FOLDER": (STAGES, "Where it is."),
    "--data.batch_size N": (("fit",), "Mentions in a training batch."),
    "--data.num_workers N": (STAGES, "Loader processes."),
    "--data.image_cache FOLDER": (STAGES, "Where decoded images are kept; null for nowhere."),
    "--data.predict_file FILE": (("predict",), "Mentions to link."),
    "--model CLASS": (STAGES, "MIMIC, or a class of your own."),
    "--model.encoder CLASS": (("fit",), "CLIPEncoder, TextVisionEncoder or a class of your own."),
    "--model.encoder.pretrained NAME": (("fit",), "Folder or hub name of its weights."),
    "--model.units.NAME CLASS": (("fit",), "One unit, by its name; the others stay."),
    "--model.losses.NAME CLASS": (("fit",), "One loss, by its name; the others stay."),
    "--model.processor.entity_template TEXT": (STAGES, "Text of an entity, such as '{name} [SEP] {attr}'."),
    "--model.processor.image_policy POLICY": (STAGES, "For images that cannot be used: blank, drop or error."),
    "--model.index.storage PLACE": (STAGES, "Where the index is kept: device, host or disk."),
    "--model.index.dtype DTYPE": (STAGES, "float32, bfloat16 or int8."),
    "--model.ranker.top_k N": (STAGES, "Candidates that are kept of each mention."),
    "--predictions.top_k N": (("test", "predict"), "Candidates that are written of each mention."),
    "--trainer.max_epochs N": (("fit",), "Epochs."),
    "--trainer.accelerator NAME": (STAGES, "cpu, gpu, ..."),
    "--trainer.devices N": (STAGES, "How many."),
    "--trainer.precision NAME": (STAGES, "32-true, bf16-mixed, ..."),
    "--trainer.default_root_dir FOLDER": (STAGES, "Folder above lightning_logs."),
    "--early_stopping.patience N": (("fit",), "Validations without a better val/mrr before training ends."),
}
"""The options that help shows first: which commands have them, and what they do."""
