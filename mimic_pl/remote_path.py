"""Files in object storage, for what is only read there: a knowledge base that was copied to ``s3://BUCKET/FOLDER``.

Credentials, region and endpoint are those of the environment, as every tool for S3 reads them: ``AWS_ACCESS_KEY_ID``,
``AWS_SECRET_ACCESS_KEY``, ``AWS_SESSION_TOKEN``, ``AWS_PROFILE``, ``AWS_REGION``, and ``AWS_ENDPOINT_URL`` for another
service than Amazon's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

from mimic_pl.errors import ConfigError, StoreError
from mimic_pl.escaping import shortened
from mimic_pl.home import expanded
from mimic_pl.quoting import quoted

SCHEME = "s3://"

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
"""Beginning of an address; one letter would be a drive of Windows."""

_CONNECT, _ANSWER, _ATTEMPTS = 5, 10, 3
"""Seconds to wait for a connection and for an answer, and attempts; with Arrow's own, a process hangs for minutes."""

LANCE_OPTIONS = {
    "allow_http": "true",  # as Arrow does, for an endpoint that is given with http://
    "connect_timeout": f"{_CONNECT}s",
    "client_max_retries": str(_ATTEMPTS - 1),
    "client_retry_timeout": "60",
}
"""Lance's storage options."""

_ENVIRONMENT = (
    "Check the address, the network, and the environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; "
    "AWS_REGION; and AWS_ENDPOINT_URL for another service than Amazon's."
)

_ENDPOINT = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")

_AROUND = re.compile(r"^When .*?: (?=AWS Error)|AWS Error | \(Request ID: [^)]*\)")
"""Parts of Arrow's messages that tell a user nothing."""


class RemotePath:
    """A folder or a file in object storage, with those methods of :class:`pathlib.Path` that reading needs.

    Args:
        address: ``s3://BUCKET/FOLDER``.

    Raises:
        ConfigError: It is another kind of address, or names no bucket.
    """

    def __init__(self, address: str) -> None:
        self._address = address.rstrip("/")
        if not re.match(SCHEME + "[^/]", address):
            raise ConfigError(
                f"{quoted(address)} is no folder that can be read: give a local one, or one in object storage as "
                "s3://BUCKET/FOLDER. Other services than Amazon's with this interface are named by AWS_ENDPOINT_URL in "
                "the environment; from all others, copy the folder to this machine."
            )

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self._address.rpartition("/")[2]

    def __str__(self) -> str:
        """The address."""
        return self._address

    def __repr__(self) -> str:
        """The address as an expression."""
        return f"RemotePath({self._address!r})"

    def __truediv__(self, name: str) -> RemotePath:
        """What has this name in the folder."""
        return RemotePath(f"{self._address}/{name}")

    def __eq__(self, other: object) -> bool:
        """Whether it is the same address."""
        return isinstance(other, RemotePath) and self._address == other._address

    def __hash__(self) -> int:
        """Of the address."""
        return hash(self._address)

    def resolve(self) -> RemotePath:
        """Itself: an address is absolute."""
        return self

    def exists(self) -> bool:
        """Whether there is a folder or a file.

        Raises:
            StoreError: The storage cannot be reached, or denies access.
        """
        return self._info().type.name != "NotFound"

    def is_dir(self) -> bool:
        """Whether there is a folder.

        Raises:
            StoreError: The storage cannot be reached, or denies access.
        """
        return self._info().type.name == "Directory"

    def size(self) -> int:
        """Bytes of a file.

        Raises:
            FileNotFoundError: There is no such file.
            StoreError: The storage cannot be reached, or denies access.
        """
        size: int | None = self._info().size
        if size is None:
            raise FileNotFoundError(f"There is no file {self}.")
        return size

    def sizes(self, recursive: bool = False) -> dict[str, int]:
        """Bytes of the files in a folder by name, from one listing; none if there is no folder.

        Args:
            recursive: Also files in its subfolders, by their paths from the folder.

        Raises:
            StoreError: The storage cannot be reached, or denies access.
        """
        start = len(self._key) + 1
        return {each.path[start:]: each.size for each in self._listing(recursive) if each.size is not None}

    def iterdir(self) -> Iterator[RemotePath]:
        """The folders and files in a folder; none if there is no folder.

        Raises:
            StoreError: The storage cannot be reached, or denies access.
        """
        return (self / each.base_name for each in self._listing(recursive=False))

    def glob(self, pattern: str) -> list[RemotePath]:
        """The files whose names match the last part of a pattern, in the folder that its other parts name.

        Raises:
            StoreError: The storage cannot be reached, or denies access.
        """
        folder, _, names = pattern.rpartition("/")
        return [path for path in (self / folder if folder else self).iterdir() if fnmatchcase(path.name, names)]

    def read_bytes(self) -> bytes:
        """The content of a file.

        Raises:
            FileNotFoundError: There is no such file.
            StoreError: The storage cannot be reached, or denies access.
        """
        try:
            with self._system.open_input_stream(self._key) as stream:
                content: bytes = stream.read()
                return content
        except FileNotFoundError as error:
            raise FileNotFoundError(f"There is no file {self}.") from error
        except (OSError, ValueError) as error:
            raise self.unreadable(str(error)) from error

    def unreadable(self, reason: str) -> StoreError:
        """The error about storage that cannot be reached, or that denies access."""
        return StoreError(
            f"{self} cannot be read: {shortened(_AROUND.sub('', reason).rstrip('.'), 400)}. {_ENVIRONMENT}"
        )

    @property
    def _key(self) -> str:
        """Bucket and key, as Arrow names a file."""
        return self._address.removeprefix(SCHEME)

    @property
    def _system(self) -> Any:
        try:
            return _file_system(self._key.partition("/")[0])
        except (OSError, ValueError) as error:
            raise self.unreadable(str(error)) from error

    def _info(self) -> Any:
        try:
            return self._system.get_file_info(self._key)
        except (OSError, ValueError) as error:
            raise self.unreadable(str(error)) from error

    def _listing(self, recursive: bool) -> Any:
        from pyarrow.fs import FileSelector

        try:
            return self._system.get_file_info(FileSelector(self._key, recursive=recursive))
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise self.unreadable(str(error)) from error


Folder: TypeAlias = Path | RemotePath
"""A folder that is read."""


def folder_at(given: str | Path | RemotePath) -> Folder:
    """The folder at a path, whose ``~`` is replaced, or at an address ``s3://BUCKET/FOLDER``.

    Raises:
        ConfigError: It is another kind of address.
    """
    if isinstance(given, RemotePath):
        return given
    return RemotePath(given) if isinstance(given, str) and _ADDRESS.match(given) else expanded(given)


def local_folder(folder: Folder) -> Path:
    """The folder itself, to be written to.

    Raises:
        StoreError: It is in object storage.
    """
    if isinstance(folder, RemotePath):
        raise StoreError(
            f"{folder} can only be read: a folder in object storage is never written to. Build it, or change a copy of "
            "it, in a local folder, and copy that there again, the folders named _versions last."
        )
    return folder


def file_sizes(folder: Folder, names: Iterable[str]) -> dict[str, int]:
    """Bytes of those of these files in a folder that exist, by name."""
    if isinstance(folder, RemotePath):
        return folder.sizes()
    found = {}
    for name in names:
        try:
            found[name] = (folder / name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            continue
    return found


def total_size(folder: Folder) -> int:
    """Bytes of all files in a folder and its subfolders."""
    if isinstance(folder, RemotePath):
        return sum(folder.sizes(recursive=True).values())
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@lru_cache(maxsize=16)
def _file_system(bucket: str) -> Any:
    """Arrow's file system for a bucket."""
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem, resolve_s3_region

    # The variables that Lance reads; Arrow reads them for addresses without settings alone.
    endpoint = next(filter(None, map(os.environ.get, _ENDPOINT)), None)
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None and endpoint is None:
        region = resolve_s3_region(bucket)
    return S3FileSystem(
        region=region,
        endpoint_override=endpoint,
        connect_timeout=_CONNECT,
        request_timeout=_ANSWER,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
    )
