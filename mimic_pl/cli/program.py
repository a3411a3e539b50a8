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
        module: Module of a command that is not a stage of the Trainer. Its ``add_arguments(parser, complete)`` adds the
            options, if complete to a LightningArgumentParser and with every option of the configurable classes;
            otherwise none of them is loaded (for help). ``run(parser, args)`` gets the complete parser and the command
            line after the command, and returns the exit status.
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
    "convert": Command(
        "Write a knowledge base, mentions, links or weights in another format.",
        "Write a knowledge base, mentions or links in another format, or a published checkpoint as a folder that "
        "from_pretrained loads: mimic-pl convert kb dump.json.bz2 kb.jsonl --languages de,en. The formats are those of "
        'help("mimic_pl.formats"). Records that cannot be used are counted and left out.',
        "mimic_pl.cli.convert",
    ),
    "calibrate": Command(
        "Fit probabilities and NIL of a run on its validation split.",
        "Fit a temperature and a score of NIL to the validation split, with NIL cases from golds taken out of the "
        "knowledge base, and write calibration.json into the run's folder. On one device. Without options: the newest "
        "run's best checkpoint.",
        "mimic_pl.cli.calibrate",
    ),
    "train-reranker": Command(
        "Train a cross-encoder on a run's candidates.",
        "Train a cross-encoder, which reads a mention and an entity side by side, to rerank the first candidates of a "
        "trained run. Without --run: the newest run's best checkpoint.",
        "mimic_pl.cli.train_reranker",
    ),
    "index": Command(
        "Build a knowledge base of your entities.",
        "Encode the entities of a file into the folder of a knowledge base. Killed, the same command goes on where it "
        "was. --devices 8 encodes on eight devices, --num_nodes on several machines.",
        "mimic_pl.cli.index",
    ),
    "link": Command(
        "Link your mentions to a knowledge base.",
        "Link the mentions of a file to the entities of a knowledge base. Killed, the same command goes on where it "
        "was. The exit code is 0 if every mention was linked or is NIL; records that fail are errors in the output, "
        "and the exit code is 4 if all fail, or with --strict any.",
        "mimic_pl.cli.link",
    ),
    "recall": Command(
        "Measure what a retriever of candidates finds.",
        "Measure how often a retriever finds the first entity of the exact ranking, and the first ten, by the number "
        "of candidates; plot it; and choose the number for a wanted recall. The exit code is 1 if none is enough.",
        "mimic_pl.cli.recall",
    ),
    "serve": Command(
        "Answer requests for links over HTTP.",
        "Answer requests for links over HTTP: POST /link, with interactive documentation at /docs. It needs the "
        'packages of pip install "mimic-pl[serve]".',
        "mimic_pl.cli.serve",
    ),
    "app": Command(
        "Try a knowledge base in a browser.",
        "Serve a page on which to link mentions, with images, scores of the units, attention and probabilities; to "
        "compare two models, browse the errors of a test run and add entities. It loads nothing from other hosts. It "
        'needs the packages of pip install "mimic-pl[app]".',
        "mimic_pl.cli.app_command",
    ),
    "kb": Command(
        "Show, check and change a knowledge base.",
        "Show, check and change a knowledge base: mimic-pl kb info FOLDER. Its first entities are written by mimic-pl "
        "index.",
        "mimic_pl.cli.kb",
    ),
    "report": Command(
        "Collect tested runs in a table with plots.",
        "Collect tested runs in one table (Markdown and CSV) with plots and significance, or show the worst mentions "
        "of a run.",
        "mimic_pl.cli.report",
    ),
    "export": Command(
        "Write a run's model into a folder to share.",
        "Write a run's model into a folder that loads on any machine without the run, its data and the encoder's "
        "checkpoint: MIMIC.from_pretrained(FOLDER). Its README.md is a model card with the run's test results.",
        "mimic_pl.cli.export",
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
    "--model.index.dtype DTYPE": (STAGES, "float32, bfloat16, int8 or int4."),
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
