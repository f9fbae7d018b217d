"""Pictures of items: reading their bytes from wherever the shop keeps them, and decoding them safely.

A picture that cannot be used is an `ImageProblem` with a reason, never the end of a run: the caller counts and goes on.
Cost: about 15 us to read a small picture from a zip on disk, and what Pillow takes to decode it.
"""

from __future__ import annotations

import errno
import io
import os
import posixpath
import struct
import threading
import zipfile
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from fsspec.core import url_to_fs
from fsspec.spec import AbstractFileSystem
from PIL import Image, ImageOps, UnidentifiedImageError

from mrse.data.uris import local_archive, local_path, open_system, read_errors, resolve
from mrse.errors import DataError

Image.init()  # Pillow finds its formats on first use, which two threads must not do at once

Reason = Literal["no_root", "outside_root", "missing", "unreadable", "empty", "too_large", "truncated", "not_an_image"]

# Formats that shops use. The others stay closed: some start helper programs (EPS), all widen what a bad file can reach.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "TIFF", "PPM")
MAX_BYTES = 64 << 20
MAX_PIXELS = 50_000_000  # of every stage after `validate_logs`, whose setting `max_image_pixels` stays within it
_THREADS = 16
_IN_FLIGHT = 64


class ImageProblem(Exception):
    """Why one picture cannot be used.

    Attributes:
        reason: one word of `Reason`, for counting.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason


def as_image_root(value: str) -> str:
    """What a person writes for the place of the pictures as an fsspec prefix: a `.zip` becomes `zip://::PATH`."""
    return f"zip://::{value}" if value.lower().endswith(".zip") and not value.startswith("zip://") else value


class ImageStore:
    """Reads pictures by the names in `items.image`. Safe to use from several threads.

    Args:
        image_root: `image_root` of `snapshot.json`: a folder, a zip archive (`zip://::images.zip`) or any fsspec prefix
            (`s3://bucket/pictures`); None when every picture is named by a full URI.
        workspace: the folder that local paths are relative to.

    Raises:
        DataError: the root does not exist, is not an archive, or its protocol is not installed.
    """

    def __init__(self, image_root: str | None, workspace: Path = Path(".")) -> None:
        self._workspace = workspace
        self._lock = threading.Lock()
        self._archives: dict[Path, zipfile.ZipFile] = {}
        self._root = None if image_root is None else resolve(as_image_root(image_root), workspace)
        self._root_is_remote = self._root is not None and self._check_root(self._root)

    def read(self, ref: str) -> bytes:
        """The bytes of one picture.

        Args:
            ref: a name under the root, or a full fsspec URI.

        Raises:
            ImageProblem: it is missing, empty, larger than 64 MiB, unreadable, or lies outside the root.
        """
        uri = self._uri(ref)
        archive, path = local_archive(uri), local_path(uri)
        if archive is not None:
            data = self._read_member(*archive)
        elif path is not None:
            data = _read_local(path)
        else:
            data = _read_remote(uri)
        if not data:
            raise ImageProblem("empty", ref)
        return data

    def read_many(self, refs: Iterable[str]) -> Iterator[tuple[int, bytes | ImageProblem]]:
        """Yield `(place in refs, bytes or problem)` in order; remote pictures are fetched 16 at a time, ahead.

        At most 64 pictures are held at once.
        """
        with ThreadPoolExecutor(_THREADS) as pool:
            waiting: deque[tuple[int, str, Future[bytes | ImageProblem] | None]] = deque()
            for place, ref in enumerate(refs):
                waiting.append((place, ref, pool.submit(self._attempt, ref) if self._is_remote(ref) else None))
                if len(waiting) >= _IN_FLIGHT:
                    yield self._finish(*waiting.popleft())
            while waiting:
                yield self._finish(*waiting.popleft())

    def _finish(
        self, place: int, ref: str, future: Future[bytes | ImageProblem] | None
    ) -> tuple[int, bytes | ImageProblem]:
        return place, self._attempt(ref) if future is None else future.result()

    def _attempt(self, ref: str) -> bytes | ImageProblem:
        try:
            return self.read(ref)
        except ImageProblem as problem:
            return problem

    def _is_remote(self, ref: str) -> bool:
        return self._root_is_remote or "://" in ref

    def _uri(self, ref: str) -> str:
        if "://" in ref:
            return resolve(ref, self._workspace)
        if self._root is None:
            raise ImageProblem("no_root", f"{ref!r} is no full URI and the snapshot has no image_root")
        name = posixpath.normpath(ref)
        if name == ".." or name.startswith(("/", "../")) or "::" in name or "\0" in name:
            raise ImageProblem("outside_root", repr(ref))
        first, *rest = self._root.split("::")
        return "::".join([first + name if first.endswith("/") else f"{first}/{name}", *rest])

    def _check_root(self, root: str) -> bool:
        """Raise when the root cannot be used; True when it is neither a folder nor an archive of this machine."""
        archive, path = local_archive(root), local_path(root)
        if archive is not None:
            self._open_root_archive(archive[0])
        elif path is None:
            open_system(root, "image_root")
        elif not path.is_dir():
            raise DataError(f"image_root: {path} is not a folder; name a folder, a .zip or an fsspec prefix")
        return archive is None and path is None

    def _open_root_archive(self, path: Path) -> None:
        try:
            self._archive(path)
        except FileNotFoundError:
            raise DataError(f"image_root: {path}: no such archive") from None
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"image_root: {path} is not a readable zip archive: {error}") from None

    def _archive(self, path: Path) -> zipfile.ZipFile:
        with self._lock:
            if path not in self._archives:
                self._archives[path] = zipfile.ZipFile(path)
            return self._archives[path]

    def _read_member(self, path: Path, name: str) -> bytes:
        try:
            archive = self._archive(path)
            member = archive.getinfo(name)
            if member.file_size > MAX_BYTES:
                raise ImageProblem("too_large", f"{name} unpacks to {member.file_size} bytes")
            return archive.read(member)
        except (KeyError, FileNotFoundError):
            raise ImageProblem("missing", f"{name} in {path}") from None
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
            raise ImageProblem("unreadable", f"{name} in {path}: {error}") from None


def decode(data: bytes, max_pixels: int) -> Image.Image:
    """Decode a picture as RGB, upright by its EXIF orientation; transparency lies on white, animations give one frame.

    Args:
        data: the bytes of a picture in one of `FORMATS`.
        max_pixels: larger pictures are refused after reading their header, before their pixels take memory.

    Raises:
        ImageProblem: empty, not_an_image, too_large, truncated or unreadable.
    """
    if not data:
        raise ImageProblem("empty", "no bytes")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise ImageProblem("too_large", f"{image.width} x {image.height} pixels, at most {max_pixels}")
            image.load()
            return _rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise ImageProblem("not_an_image", f"starts with {data[:8]!r}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageProblem("too_large", str(error)) from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error, zlib.error) as error:
        reason: Reason = "truncated" if "truncated" in str(error) else "unreadable"
        raise ImageProblem(reason, str(error)) from None


def _rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        return canvas.convert("RGB")
    if image.mode.startswith("I") or image.mode == "F":
        return _grey_from_wide(image)
    return image.convert("RGB")


def _grey_from_wide(image: Image.Image) -> Image.Image:
    """16-bit and wider greys; Pillow's own conversion cuts everything above 255 to white."""
    values = np.asarray(image, dtype=np.float64)
    scale = 255 / 65_535 if values.max(initial=0) > 255 else 1.0
    return Image.fromarray(np.clip(values * scale, 0, 255).astype(np.uint8)).convert("RGB")


def _read_local(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise ImageProblem("missing", str(path))
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise ImageProblem("too_large", f"{path} has {size} bytes")
            return file.read()
    except OSError as error:
        raise ImageProblem("unreadable", f"{path}: {error}") from None


def _read_remote(uri: str) -> bytes:
    try:
        system, path = url_to_fs(uri)
        data = _first_bytes(system, path)
    except (FileNotFoundError, KeyError):
        raise ImageProblem("missing", uri) from None
    except read_errors() as error:
        raise ImageProblem("unreadable", f"{uri}: {error}") from None
    if len(data) > MAX_BYTES:
        raise ImageProblem("too_large", f"{uri} has more than {MAX_BYTES} bytes")
    return data


def _first_bytes(system: AbstractFileSystem, path: str) -> bytes:
    try:
        data: bytes = system.cat_file(path, start=0, end=MAX_BYTES + 1)
    except OSError as error:
        if error.errno != errno.EINVAL or system.size(path) != 0:
            raise
        return b""  # S3 has no range of an empty object
    return data
