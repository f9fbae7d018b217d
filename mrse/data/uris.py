"""Addresses of data: fsspec URIs, chained ones too, where plain paths count from the workspace."""

from __future__ import annotations

import sys
import zipfile
import zlib
from pathlib import Path

from fsspec.core import url_to_fs
from fsspec.spec import AbstractFileSystem

from mrse.errors import DataError

# Errors of the packages behind fsspec that are no OSErrors: no credentials, no connection, no permission.
_FOREIGN_ERRORS = (
    ("aiohttp", "ClientError"),
    ("azure.core.exceptions", "AzureError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
)


def resolve(uri: str, workspace: Path) -> str:
    """Make the local path at the end of a URI absolute; leave every other URI as it is.

    >>> resolve("zip://::data/images.zip", Path("/shop"))
    'zip://::/shop/data/images.zip'
    >>> resolve("s3://bucket/items", Path("/shop"))
    's3://bucket/items'
    """
    *outer, last = uri.split("::")
    if "://" not in last:
        last = str((workspace / Path(last).expanduser()).absolute())
    return "::".join([*outer, last])


def open_system(uri: str, what: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a resolved URI and the path on it.

    Args:
        uri: from `resolve`.
        what: what the URI is for, in messages.

    Raises:
        DataError: the protocol is unknown, its package is not installed, or an archive in the chain cannot be opened.
    """
    try:
        system, path = url_to_fs(uri)
    except read_errors() as error:
        raise DataError(f"{what}: cannot open {uri}: {error}") from None
    return system, path


def local_path(uri: str) -> Path | None:
    """The path of a resolved URI that is a plain local file or folder, else None."""
    if "::" in uri:
        return None
    if uri.startswith(("file://", "local://")):
        return Path(uri.split("://", 1)[1])
    return None if "://" in uri else Path(uri)


def local_archive(uri: str) -> tuple[Path, str] | None:
    """`(archive, name inside)` of a resolved URI such as `zip://a/1.jpg::/shop/images.zip`, else None."""
    inner, separator, outer = uri.partition("::")
    archive = local_path(outer) if separator else None
    if archive is None or not inner.startswith("zip://"):
        return None
    return archive, inner.removeprefix("zip://").strip("/")


def store_errors() -> tuple[type[Exception], ...]:
    """What a file system behind fsspec raises where it cannot be reached, read or written."""
    loaded = [(sys.modules.get(module), name) for module, name in _FOREIGN_ERRORS]
    return (OSError, *(getattr(module, name, OSError) for module, name in loaded if module))


def read_errors() -> tuple[type[Exception], ...]:
    """What a failed read through fsspec raises: `store_errors`, a package that is missing, a damaged archive."""
    return (ImportError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, *store_errors())
