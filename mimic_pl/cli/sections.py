"""Options for sections of a configuration, for commands that use only some of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]  # its stubs do not list it

from mimic_pl.cli.additions import with_additions
from mimic_pl.errors import ConfigError


def add_config_argument(parser: ArgumentParser, text: str) -> None:
    """Add ``--config``, which may be repeated: later files override earlier ones."""
    parser.add_argument("-c", "--config", action=ActionConfigFile, help=f"{text} May be repeated.")


def add_data_argument(parser: ArgumentParser, complete: bool) -> None:
    """Add ``--data``, with every option of the data modules if complete."""
    if complete:
        from mimic_pl.data.base import BaseDataModule

        parser.add_lightning_class_args(BaseDataModule, "data", subclass_mode=True)  # type: ignore[attr-defined]
    else:
        parser.add_argument("--data", metavar="CLASS", help="Data set; --data.root FOLDER and so on are its options.")


def add_model_argument(parser: ArgumentParser, complete: bool, required: bool = True) -> None:
    """Add ``--model``, with every option of the model if complete."""
    if complete:
        from mimic_pl.model import MIMIC

        parser.add_lightning_class_args(  # type: ignore[attr-defined]
            MIMIC, "model", subclass_mode=True, required=required
        )
    else:
        parser.add_argument("--model", metavar="CLASS", help="Model; --model.encoder CLASS and so on are its options.")


def add_trainer_argument(parser: ArgumentParser, complete: bool) -> None:
    """Add ``--trainer``, with every option of Lightning's Trainer if complete."""
    if complete:
        from lightning.pytorch import Trainer

        parser.add_lightning_class_args(Trainer, "trainer")  # type: ignore[attr-defined]
    else:
        parser.add_argument(
            "--trainer", metavar="CONFIG", help="Trainer; --trainer.devices N and so on are its options."
        )


def add_run_arguments(parser: ArgumentParser) -> None:
    """Add ``--config``, ``--run`` and ``--ckpt_path``, for commands that evaluate a training run."""
    add_config_argument(parser, "Configuration whose 'trainer', 'model' and 'data' sections override those of the run.")
    text = "Folder of the training run (default: the newest in lightning_logs)."
    parser.add_argument("--run", type=str | None, help=text)
    parser.add_argument("--ckpt_path", type=str | None, help="Checkpoint: a file, 'best' (the default) or 'last'.")


def add_processor_argument(parser: ArgumentParser, complete: bool) -> None:
    """Add ``--processor``, for commands that read records but do not build a model."""
    text = "Text templates, image policy and so on (default: those of the configuration's model)."
    if complete:
        from mimic_pl.processor import Processor

        parser.add_argument("--processor", type=Processor | None, default=None, help=text)
    else:
        parser.add_argument("--processor", metavar="CONFIG", help=text)


def with_sections(args: Sequence[str], names: Sequence[str]) -> Iterator[str]:
    """Replace each ``--config FILE`` by the given sections of the file, in place, so that later options override them.

    Args:
        args: The command line.
        names: Names of the sections; all others are ignored. ``processor`` is that of the model.

    Raises:
        ConfigError: The file does not exist, or has none of the sections.
    """
    from mimic_pl.home import expand_home
    from mimic_pl.yaml_file import read_yaml

    rest = iter(with_additions(args))
    for arg in rest:
        option, equals, value = arg.partition("=")
        if option not in ("-c", "--config"):
            yield arg
            continue
        text = value if equals else next(rest, "")
        if text.startswith("{"):  # an overlay with additions, as JSON
            path, sections = Path("the overlay"), json.loads(text)
        else:
            path = Path(text)
            if not path.is_file():
                raise ConfigError(f"The configuration {str(path)!r} does not exist.")
            sections = expand_home(read_yaml(path))
        sections["processor"] = _processor(sections.get("model"))
        found = {name: sections[name] for name in names if sections.get(name) is not None}
        if not found.keys() - {"processor"}:
            wanted = " and no ".join(repr(name) for name in names if name != "processor")
            raise ConfigError(f"The configuration {path} has no {wanted} section.")
        yield f"--config={json.dumps(found)}"


def _processor(model: object) -> object:
    """The processor section within a model section."""
    arguments = model.get("init_args") if isinstance(model, dict) else None
    return arguments.get("processor") if isinstance(arguments, dict) else None
