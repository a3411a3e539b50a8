"""``mimic-pl export``: a run's model in a folder that loads anywhere, and on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser

from mimic_pl.errors import ConfigError


def add_arguments(parser: ArgumentParser, complete: bool) -> None:
    """Add the options."""
    parser.add_argument("run", type=str, help="Folder of the training run.")
    parser.add_argument("folder", type=str, help="New folder for the model, or one with a model to replace.")
    text = "Checkpoint: 'best' (the default), 'last', its file name in the run, or its path."
    parser.add_argument("--checkpoint", type=str, default="best", help=text)
    text = "Name of the model in its card (default: after the data set)."
    parser.add_argument("--name", type=str | None, default=None, help=text)
    text = "Licence of the weights, as the hub abbreviates it: apache-2.0, mit, cc-by-4.0, ..."
    parser.add_argument("--license", type=str | None, default=None, help=text)
    text = "baselines.json of mimic-pl baselines on the same data, for the model card."
    parser.add_argument("--baselines", type=str | None, default=None, help=text)
    text = "Also upload the folder to the Hugging Face hub under this name, USER/MODEL."
    parser.add_argument("--push", metavar="NAME", type=str | None, default=None, help=text)
    parser.add_argument("--private", action="store_true", help="With --push: create it as a private model.")
    text = "Also build classes of packages other than mimic_pl: importing them runs their code."
    parser.add_argument("--trust_remote_code", action="store_true", help=text)


def run(parser: ArgumentParser, args: list[str]) -> int:
    """Run the command.

    Raises:
        ConfigError: ``--private`` is given without ``--push``.
    """
    from mimic_pl.files import readable_bytes
    from mimic_pl.hub import export_run, push_folder

    given = parser.parse_args(args)
    if given.private and given.push is None:
        raise ConfigError("--private is only for --push NAME, which uploads the folder. Add it, or remove --private.")
    folder = export_run(
        given.run,
        given.folder,
        given.checkpoint,
        given.name or (given.push.rpartition("/")[2] if given.push else None),
        given.license,
        given.baselines,
        given.trust_remote_code,
    )
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    print(f"Written to {folder}:")
    for path in files:
        print(f"  {path.relative_to(folder).as_posix():40} {readable_bytes(path.stat().st_size):>12}")
    if given.push is not None:
        print(f"Uploaded: {push_folder(folder, given.push, private=given.private or None)}")
    return 0
