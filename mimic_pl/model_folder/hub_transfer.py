"""Download from and upload to the Hugging Face hub; sizes are logged before anything is transferred."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from lightning.pytorch.utilities import rank_zero_info

from mimic_pl import __version__
from mimic_pl.errors import CheckpointError, ConfigError, MimicError
from mimic_pl.escaping import shortened
from mimic_pl.files import readable_bytes
from mimic_pl.home import expanded
from mimic_pl.model_folder.manifest import CONFIG, ENCODER, FEATURES, LIBRARY, read_manifest, require_files

_UNLISTED = ("README.md", "calibration.json", "LICENSE*")
"""Files that may be there beside those that ``config.json`` lists."""

_LONGEST_REASON = 300


def local_folder(name_or_path: str | Path, revision: str | None = None, token: str | bool | None = None) -> Path:
    """The folder of a model: as given, or downloaded from the hub into its cache, from which it is read the next time.

    Its ``config.json`` is downloaded and checked first; then only the files that it lists, whose sizes are logged.

    Args:
        name_or_path: A folder, or the name of a model on the hub.
        revision: Branch, tag or commit on the hub.
        token: Access token of the hub; by default, that of ``hf auth login``.

    Raises:
        ConfigError: The hub has no such model or revision, denies access, or cannot be reached.
        CheckpointError: There is no such folder, or it is not a model of mimic-pl.
    """
    path, name = expanded(name_or_path), str(name_or_path)
    if path.is_dir():
        if revision is not None:
            raise ConfigError(
                f"{name} is a folder on this machine, which has no revision {revision!r}. Omit the revision, or give "
                "the name of a model on the hub."
            )
        return path.resolve()
    if path.exists() or path.is_absolute() or name.startswith((".", "~")) or len(path.parts) > 2:
        raise CheckpointError(
            f"There is no folder {name!r} (looked in {path.resolve()}). Give a folder written by 'mimic-pl export' or "
            "save_pretrained, or the name of a model on the Hugging Face hub, such as USER/MODEL."
        )
    options: dict[str, Any] = {"repo_id": name, "revision": revision, "token": token}
    options |= {"library_name": LIBRARY, "library_version": __version__}
    with _reaching_hub(name, revision):
        config = Path(hf_hub_download(filename=CONFIG, **options))
    manifest = read_manifest(config.parent, name)
    options["allow_patterns"] = [CONFIG, *manifest.files, *_UNLISTED]
    with suppress(Exception):  # without a connection, the cache may still have everything
        _log_sizes(name, [file for file in snapshot_download(**options, dry_run=True) if file.will_download])
    with _reaching_hub(name, revision):
        return Path(str(snapshot_download(**options)))


def push_folder(
    folder: str | Path,
    repo_id: str,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
) -> str:
    """Upload a model's folder to the hub in one commit; weights of an earlier model there are removed.

    Args:
        folder: A folder that :func:`~mimic_pl.model_folder.save_folder` wrote.
        repo_id: Name on the hub, ``USER/MODEL``; it is created if it does not exist.
        private: Create it as a private one; by default, as the user's settings on the hub say.
        token: Access token of the hub; by default, that of ``hf auth login``.
        revision: Branch to commit to.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: The folder is incomplete or damaged.
        ConfigError: The hub denies access, cannot be reached, or the name is invalid.
    """
    folder = expanded(folder).resolve()
    manifest = read_manifest(folder)
    require_files(folder, manifest)
    others = [file.name for file in folder.iterdir() if any(fnmatch.fnmatch(file.name, own) for own in _UNLISTED)]
    names = [CONFIG, *manifest.files, *others]
    size = sum((folder / name).stat().st_size for name in names)
    rank_zero_info(f"Uploading {len(names)} files ({readable_bytes(size)}) from {folder} to {repo_id}.")
    api = HfApi(token=token, library_name=LIBRARY, library_version=__version__)
    with _reaching_hub(repo_id, revision):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=names,
            delete_patterns=["model*.safetensors*", f"{ENCODER}/*", f"{FEATURES}/*"],
            revision=revision,
            commit_message="Upload a model of mimic-pl",
        )
    return commit.commit_url


def _log_sizes(name: str, files: list[Any]) -> None:
    """Log what is about to be downloaded."""
    if files:
        listed = ", ".join(f"{file.filename} {readable_bytes(file.file_size)}" for file in files)
        total = readable_bytes(sum(file.file_size for file in files))
        rank_zero_info(f"Downloading {total} of {name} from the hub: {listed}.")


@contextmanager
def _reaching_hub(name: str, revision: str | None) -> Iterator[None]:
    """Convert what huggingface_hub raises, whose classes depend on its version and HTTP client."""
    try:
        yield
    except MimicError:
        raise
    except Exception as error:
        raise _hub_error(name, revision, error) from error


def _hub_error(name: str, revision: str | None, error: Exception) -> MimicError:
    where = f"{name!r} on the Hugging Face hub"
    if isinstance(error, RemoteEntryNotFoundError):
        return CheckpointError(
            f"{where} has no config.json: it is not a model of mimic-pl. Give one that was pushed with 'mimic-pl "
            "export' or push_to_hub."
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    reason = shortened(" ".join(str(cause).split()) or type(cause).__name__, _LONGEST_REASON).rstrip(".")
    if isinstance(error, HFValidationError):
        text = (
            f"{name!r} is neither a folder on this machine nor a name on the Hugging Face hub, which is USER/MODEL. "
            "Check the spelling."
        )
    elif isinstance(error, GatedRepoError):
        text = f"{where} is only for users who accepted its terms: accept them on its page, then hf auth login."
    elif isinstance(error, RevisionNotFoundError):
        text = f"{where} has no revision {revision!r}. Give a branch, tag or commit that is listed on its page."
    elif isinstance(error, RepositoryNotFoundError):
        text = (
            f"There is neither a folder {name!r} here nor a model {where}, or you may not read or write it. Check the "
            "spelling; for a private one, log in first: hf auth login."
        )
    elif status in (401, 403):
        text = f"The hub denies access to {name!r} ({status}). Log in with a token that may: hf auth login."
    elif isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled)) or not re.search(r"\b[45]\d\d\b", reason):
        text = (
            f"{where} is not in the cache, and the hub cannot be reached: {reason}. Check the connection (HF_ENDPOINT, "
            "HF_HUB_OFFLINE), or download the model elsewhere, copy its folder, and give its path."
        )
    else:
        text = f"The hub refused a request about {name!r}: {reason}. Try again later."
    return ConfigError(text)
