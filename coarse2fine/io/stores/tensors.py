"""Where chunked stores lie, and opening their arrays with tensorstore."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import tensorstore as ts

from canvas import Box
from coarse2fine.errors import OutputError, VolumeError
from coarse2fine.system.terminal import plain

_FAMILIES = {"zarr": "zarr", "zarr2": "zarr", "zarr3": "zarr", "n5": "n5", "precomputed": "precomputed"}
_SCHEMES = ("file", "http", "https", "s3", "gs")
_RETRIES = {"max_retries": 5, "initial_delay": "500ms", "max_delay": "8s"}  # the default goes on for many minutes
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_ACCESS = {"PERMISSION_DENIED", "UNAUTHENTICATED"}
_UNKNOWN_USER = "[HTTP code 401]"  # who asks for a name never means that there is nothing
_NO_ANSWER = {"UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED"}
FAILURES = (ValueError, NotImplementedError, OSError)  # what tensorstore raises
MOST_METADATA = 16 << 20  # bytes of a file of metadata
_MOST_IN_ARCHIVE = 1 << 29  # bytes of a file in a zip archive, unpacked
_TOPS = ("zarr.json", ".zgroup", ".zarray", ".zattrs", "attributes.json", "info")
_WEB_PAGES = (b"<!doctype html", b"<html", b"<?xml")  # what some servers answer for keys that do not exist
_NEVER = ".never-written"  # ending of keys that nobody has
Answer = Literal["value", "missing", "gone", "forbidden", "page"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a store lies.

    Attributes:
        where: The same for a user to read and to open it again: an absolute path or a URL, with the prefix if any.
        folder: The local path; None if it is elsewhere.
        url: The URL without prefix; empty if the path is local.
        family: "zarr", "n5" or "precomputed" if a prefix says so; empty otherwise.
    """

    where: str
    folder: Path | None
    url: str
    family: str

    @property
    def name(self) -> str:
        """Last part of the path, without ending."""
        last = self.folder.name if self.folder else urlsplit(self.url).path.rstrip("/").rpartition("/")[2]
        return re.sub(r"(\.ome)?\.(zarr|n5|precomputed|hdf5?|h5)(\.zip)?$", "", last) or "volume"


def parse_place(where: str) -> Place:
    """The place that a path or URL names.

    Args:
        where: A path, ``file://``, ``http(s)://``, ``s3://`` or ``gs://``, after an optional ``zarr://``,
            ``zarr2://``, ``zarr3://``, ``n5://`` or ``precomputed://``.

    Raises:
        VolumeError: If the URL is of another kind.

    >>> parse_place("precomputed://gs://bucket/em").url
    'gs://bucket/em'
    """
    scheme, mark, rest = where.partition("://")
    family = _FAMILIES.get(scheme, "") if mark else ""
    if not family:
        rest = where
    inner, mark, _ = rest.partition("://")
    if not mark or inner == "file":
        path = Path(unquote(urlsplit(rest).path) if mark else rest).expanduser().absolute()
        return Place(f"{scheme}://{path}" if family else str(path), path, "", family)
    if inner not in _SCHEMES:
        raise VolumeError(
            f"{where}: {inner}:// is not known here",
            f"Use a path or one of {', '.join(f'{name}://' for name in _SCHEMES)}.",
        )
    return Place(where.rstrip("/"), None, rest.rstrip("/"), family)


@dataclass(frozen=True, slots=True)
class Store:
    """A place that holds keys and values, such as a folder or a bucket.

    Attributes:
        where: Name for messages.
        kvstore: tensorstore's specification of the place; its path ends in a slash.
        context: Cache and network settings that all arrays of the store share.
        folder: The local folder; None if it is elsewhere, or a zip archive.
        archive: The local zip archive; None if it is none.
    """

    where: str
    kvstore: Mapping[str, Any]
    context: ts.Context
    folder: Path | None
    archive: Path | None = None

    @property
    def is_far(self) -> bool:
        """Whether it is behind a network."""
        return self.folder is None and self.archive is None

    def child(self, path: str) -> Store:
        """The store at a path below this one."""
        path = path.strip("/")
        if not path:
            return self
        kvstore = dict(self.kvstore) | {"path": f"{self.kvstore['path']}{path}/"}
        return replace(
            self, where=f"{self.where}/{path}", kvstore=kvstore, folder=self.folder / path if self.folder else None
        )

    def read(self, key: str) -> bytes | None:
        """The value of a key of metadata; None if there is none.

        Many servers answer 403 for keys that do not exist, because they would have to list the folder to know.

        Raises:
            VolumeError: If it cannot be read, or is far too large.
        """
        with reading(f"{self.where}/{key}"):
            if self.folder is not None and _size(self.folder / key) > MOST_METADATA:
                raise ValueError(f"it is larger than {MOST_METADATA >> 20} MiB")
            try:
                result = self._keys().read(key).result()
            except FAILURES:
                if self.is_far and self._says_absent(key):
                    return None
                raise
        return result.value if result.state == "value" else None

    def check_access(self) -> None:
        """Tells a store that may not be read from one that is not there.

        Raises:
            VolumeError: If a far server refuses access even to what all stores have.
        """
        if self.is_far:
            with reading(self.where):
                for key in _TOPS:
                    self._keys().read(key).result()

    def answer(self, key: str) -> Answer:
        """What a far store's server has for a key.

        Raises:
            Exception: What tensorstore raises if the server answers otherwise, or not at all.
        """
        try:
            result = self._keys().read(key).result()
        except FAILURES as error:
            code, text, _ = _telling(error)
            if code in _NO_ACCESS and _UNKNOWN_USER not in text:
                return "forbidden"
            if code == "NOT_FOUND":
                return "gone"
            raise
        if result.state != "value":
            return "missing"
        return "page" if _is_page(result.value) else "value"

    def _says_absent(self, key: str) -> bool:
        """Whether a far store's server answers as it does for a key of this kind that cannot exist."""
        found = self.answer(key)
        return found != "value" and found == self.answer(f"{key}{_NEVER}")

    def read_json(self, key: str) -> dict[str, Any] | None:
        """The JSON object of a key; None if there is none.

        Raises:
            VolumeError: If it cannot be read or is no JSON object.
        """
        text = self.read(key)
        if text is None or (self.is_far and _is_page(text) and self._says_absent(key)):
            return None
        try:
            if len(text) > MOST_METADATA:
                raise ValueError(f"larger than {MOST_METADATA >> 20} MiB")
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise VolumeError(
                f"{self.where}/{key} is not valid JSON: {error}", "Correct it, or copy the store again."
            ) from error
        if not isinstance(content, dict):
            raise VolumeError(f"{self.where}/{key} is not a JSON object", "Correct it, or copy the store again.")
        return content

    def write_json(self, key: str, content: Mapping[str, Any]) -> None:
        """Sets the value of a key in one step; it is on the disk when this returns.

        Raises:
            OutputError: If it cannot be written.
        """
        with writing(f"{self.where}/{key}"):
            self._keys().write(key, json.dumps(content, indent=1).encode()).result()

    def open(
        self, driver: str, *, write: bool = False, create: bool = False, **options: Any
    ) -> ts.Future[ts.TensorStore]:
        """Begins to open the array at this place.

        Args:
            driver: tensorstore's name of the format.
            write: Whether it is opened for writing, too.
            create: Whether it is created if it does not exist.
            options: Further members of its specification.
        """
        spec = {"driver": driver, "kvstore": dict(self.kvstore), **options}
        if not write:  # inputs do not change: what is in the cache need not be asked for again
            spec["recheck_cached_data"] = "open"
        return ts.open(spec, context=self.context, open=True, read=True, write=write, create=create)

    def fingerprint(self, key: str) -> dict[str, Any]:
        """What changes when the value of a key does: size and time of a local file, a digest of others."""
        if self.folder is not None:
            return file_fingerprint(self.folder / key)
        if self.archive is not None:
            return file_fingerprint(self.archive)
        value = self.read(key) or b""
        return {"size": len(value), "sha256": hashlib.sha256(value).hexdigest()}

    def _keys(self) -> ts.KvStore:
        return ts.KvStore.open(dict(self.kvstore), context=self.context).result()


def file_fingerprint(path: Path) -> dict[str, Any]:
    """Size and time of the last change (ns) of a file.

    Raises:
        VolumeError: If there is none.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise VolumeError(f"{path} cannot be read: {error.strerror}", "Check the path.") from error
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def open_place(place: Place, cache_bytes: int) -> Store:
    """The store at a place; whether there is anything shows when it is read.

    Args:
        place: Where it is.
        cache_bytes: Unpacked chunks that are kept in memory at most. Nothing checks whether they are up to date: use 0
            for stores that other processes write.

    Raises:
        VolumeError: If the URL is not valid.
    """
    context = _context(cache_bytes)
    if place.folder is not None and is_zip(place.folder):
        base = {"driver": "file", "path": str(place.folder)}
        archive = {"driver": "zip", "base": base, "path": _top_of(place.folder)}
        return Store(place.where, archive, context, None, place.folder)
    if place.folder is not None:
        return Store(place.where, {"driver": "file", "path": f"{place.folder}/"}, context, place.folder)
    with reading(place.where):
        kvstore = dict(ts.KvStore.Spec(place.url).to_json())
    kvstore["path"] = kvstore.get("path", "").rstrip("/") + "/"
    if kvstore["driver"] in ("s3", "gcs"):
        kvstore["path"] = kvstore["path"].lstrip("/")
    return Store(place.where.rstrip("/"), kvstore, context, None)


def _context(cache_bytes: int) -> ts.Context:
    retries = {f"{protocol}_request_retries": _RETRIES for protocol in ("http", "gcs", "s3")}
    return ts.Context({"cache_pool": {"total_bytes_limit": cache_bytes}, **retries})


def uncached(view: ts.TensorStore) -> ts.TensorStore:
    """The same voxels, read anew whenever they are asked for.

    Raises:
        Exception: What tensorstore raises if the array is not there any more.
    """
    return ts.open(view.spec(), context=_context(0), open=True, read=True).result()


def is_zip(path: Path) -> bool:
    """Whether a file is a zip archive, by its name and content."""
    return path.suffix == ".zip" and path.is_file() and zipfile.is_zipfile(path)


def _top_of(path: Path) -> str:
    """The folder in a zip archive that holds the store: its top, or the only folder there.

    Raises:
        VolumeError: If the archive is damaged, or would need too much memory.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise VolumeError(
            f"{path} cannot be read: {error}", "Copy it again, or unpack it and name its folder."
        ) from error
    packed = [entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    largest = max(packed, key=lambda entry: entry.file_size, default=None)
    if largest is not None and largest.file_size > _MOST_IN_ARCHIVE:
        raise VolumeError(
            f"{path}: {plain(largest.filename)} would take {largest.file_size / 1e9:.1f} GB unpacked",
            "Unpack the archive and name its folder.",
        )
    names = [entry.filename for entry in entries]
    tops = {name.partition("/")[0] for name in names if "/" in name}
    if not any(name in names for name in _TOPS) and len(tops) == 1:
        return f"{tops.pop()}/"
    return ""


def _size(path: Path) -> int:
    """Bytes of a file; 0 if there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _is_page(value: bytes) -> bool:
    """Whether a value is a web page."""
    return value[:100].lstrip().lower().startswith(_WEB_PAGES)


@contextmanager
def reading(where: str, box: Box | None = None) -> Iterator[None]:
    """Turns what tensorstore raises into a VolumeError.

    Args:
        where: The store and array, for messages.
        box: The voxels (z, y, x) that are read, if any.
    """
    try:
        yield
    except FAILURES as error:
        code, reason, number = _telling(error)
        place = f", voxels {box.start} to {box.stop} (z, y, x)" if box else ""
        problem = f"{where}{place} cannot be read: {reason}"
        if number in (errno.EACCES, errno.EPERM) or code in _NO_ACCESS:
            remedy = "Check the address, and that you may read it; for buckets, that your credentials are set."
        elif code in _NO_ANSWER:
            remedy = "The server does not answer: check the address and the network, and try again."
        elif code == "NOT_FOUND":
            problem, remedy = f"{where}{place} does not exist", "Check the path; the store may be incomplete."
        elif box is None:
            remedy = "Its metadata are damaged, or of a kind that tensorstore does not read: rewrite the array."
        else:
            remedy = "A chunk is damaged or truncated: copy or download the store again."
        raise VolumeError(problem, remedy) from error


@contextmanager
def writing(where: str) -> Iterator[None]:
    """Turns what tensorstore raises into an OutputError.

    Args:
        where: The store and array, for messages.
    """
    try:
        yield
    except FAILURES as error:
        code, reason, number = _telling(error)
        if number in _FULL or code == "RESOURCE_EXHAUSTED":
            remedy = "Free some space, raise the quota, or write elsewhere."
        elif code in _NO_ANSWER:
            remedy = "The server does not answer: check the address and the network, and run again."
        elif code == "UNIMPLEMENTED" or isinstance(error, NotImplementedError):
            remedy = "Nothing can be written there: use a folder or a bucket (s3://, gs://)."
        elif not number and code in ("NOT_FOUND", "FAILED_PRECONDITION", ""):
            remedy = "Another store, or none, is at its place: name a new folder, or start the run anew."
        else:
            remedy = "Check that the folder or bucket exists and that you may write there."
        raise OutputError(f"cannot write {where}: {reason}", remedy) from error


def _telling(error: Exception) -> tuple[str, str, int]:
    """Status code, the words that help a user, and the system's error number (0 if none) of an error."""
    if isinstance(error, OSError):
        return "", error.strerror or str(error), error.errno or 0
    match = re.fullmatch(r"(?:([A-Z_]+): )?(.*)", str(error), re.DOTALL)
    code, text = (match[1] or "", match[2]) if match else ("", str(error))
    number = re.search(r"os_error_code='(\d+)'", text)
    if number:
        return code, os.strerror(int(number[1])), int(number[1])
    text = re.split(r" \[[a-z_]+='", text)[0].replace("\x00", "/")
    text = re.sub(r'^(Error opening "[^"]*" driver: )?(All \d+ retry attempts failed: )?', "", text)
    return code, text, 0
