"""Downloads from a server in this process: breaks, mirrors, wrong files, archives that want to leave their folder."""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from cvexp.data import download as module
from cvexp.data.download import SETS, RemoteFile, RemoteSet, download, fetch, listing, unpack
from cvexp.errors import UserError

CONTENT = bytes(range(256)) * 4096
"""1 MiB."""
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


@dataclass
class Server:
    """Answers each path by the next of its ``plan`` (the last one for ever) and notes what was asked.

    A plan entry is bytes to serve, a status code, or ``(bytes, n)``: the connection breaks off after n bytes of the answer.
    """

    plan: dict[str, list] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    ranges: bool = True
    says_length: bool = True
    base: str = ""

    def url(self, path: str, *plan: object) -> str:
        self.plan[path] = list(plan)
        return f"{self.base}{path}"


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.asked.append((self.path, wanted))
            plan = state.plan[self.path]
            step = plan.pop(0) if len(plan) > 1 else plan[0]
            if isinstance(step, int):
                self.send_error(step)
                return
            body, stop = step if isinstance(step, tuple) else (step, None)
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and state.ranges else 0  # type: ignore[index]
            if start >= len(body):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            if state.says_length:
                self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            self.wfile.write(body[start:][:stop])

        def log_message(self, *_: object) -> None:
            """Quiet."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.base = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def waited() -> list[float]:
    return []


def get(file: RemoteFile, folder: Path, waited: list[float]) -> Path:
    return fetch(file, folder, waited.append)


def remote(*urls: str, digest: str | None = SHA256, size: int | None = len(CONTENT)) -> RemoteFile:
    return RemoteFile("set.bin", urls, digest, size)


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


# -- fetching ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("digest", "size"),
    [
        (SHA256, len(CONTENT)),
        (f"md5:{hashlib.md5(CONTENT).hexdigest()}", len(CONTENT)),
        (SHA256, None),  # no published size
        (None, len(CONTENT)),  # no published hash
    ],
)
def test_a_file_is_fetched_and_checked(server, tmp_path, waited, digest, size):
    path = get(remote(server.url("/a", CONTENT), digest=digest, size=size), tmp_path / "new", waited)
    assert path == tmp_path / "new/set.bin"
    assert path.read_bytes() == CONTENT
    assert files(tmp_path) == ["new/set.bin"]
    assert (server.asked, waited) == ([("/a", None)], [])


def test_a_good_file_is_not_fetched_again(server, tmp_path, waited):
    (tmp_path / "set.bin").write_bytes(CONTENT)
    before = (tmp_path / "set.bin").stat().st_mtime_ns
    get(remote(server.url("/a", b"other")), tmp_path, waited)
    assert server.asked == []
    assert (tmp_path / "set.bin").stat().st_mtime_ns == before


def test_an_interrupted_download_goes_on_where_it_stopped(server, tmp_path, waited):
    url = server.url("/a", (CONTENT, 300_000), (CONTENT, 500_000), CONTENT)
    assert get(remote(url), tmp_path, waited).read_bytes() == CONTENT
    assert server.asked == [("/a", None), ("/a", "bytes=300000-"), ("/a", "bytes=800000-")]
    assert waited == [], "each attempt brought something"
    assert files(tmp_path) == ["set.bin"]


def test_an_earlier_runs_part_is_continued(server, tmp_path, waited):
    (tmp_path / "set.bin.part").write_bytes(CONTENT[:1000])
    get(remote(server.url("/a", CONTENT)), tmp_path, waited)
    assert server.asked == [("/a", "bytes=1000-")]
    assert files(tmp_path) == ["set.bin"]


def test_a_complete_part_only_lacked_its_check(server, tmp_path, waited):
    (tmp_path / "set.bin.part").write_bytes(CONTENT)
    get(remote(server.url("/a", 500)), tmp_path, waited)
    assert (server.asked, files(tmp_path)) == ([], ["set.bin"])


@pytest.mark.parametrize(
    "part", [CONTENT + b"more", CONTENT[::-1], b"x" * 1000], ids=["too long", "other content", "other start"]
)
def test_a_part_of_something_else_is_thrown_away(server, tmp_path, waited, part):
    (tmp_path / "set.bin.part").write_bytes(part)
    assert get(remote(server.url("/a", CONTENT)), tmp_path, waited).read_bytes() == CONTENT
    assert server.asked[-1] == ("/a", None)
    assert files(tmp_path) == ["set.bin"]


def test_a_server_without_ranges_sends_everything_again(server, tmp_path, waited):
    server.ranges = False
    (tmp_path / "set.bin.part").write_bytes(CONTENT[:1000])
    assert get(remote(server.url("/a", CONTENT)), tmp_path, waited).read_bytes() == CONTENT
    assert server.asked == [("/a", "bytes=1000-")]


def test_a_server_without_a_length_is_judged_by_the_published_one(server, tmp_path, waited):
    server.says_length = False
    url = server.url("/a", (CONTENT, 10_000), CONTENT)
    assert get(remote(url), tmp_path, waited).read_bytes() == CONTENT
    assert server.asked == [("/a", None), ("/a", "bytes=10000-")]


def test_a_truncated_answer_is_noticed_without_size_and_hash(server, tmp_path, waited):
    # Content-Length says 1 MiB: the only witness that something is missing
    url = server.url("/a", (CONTENT, 300_000), CONTENT)
    assert get(remote(url, digest=None, size=None), tmp_path, waited).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "first",
    [
        404,  # gone
        503,  # busy
        b"<html>moved</html>",  # a page instead of the file: told by its length
        CONTENT[::-1],  # the right length, the wrong content
    ],
    ids=["404", "503", "page", "content"],
)
def test_the_second_mirror_is_asked(server, tmp_path, waited, first):
    file = remote(server.url("/first", first), server.url("/second", CONTENT))
    assert get(file, tmp_path, waited).read_bytes() == CONTENT
    assert [path for path, _ in server.asked] == ["/first", "/second"]
    assert waited == []
    assert files(tmp_path) == ["set.bin"]


def test_the_second_mirror_goes_on_with_the_firsts_part(server, tmp_path, waited):
    file = remote(server.url("/first", (CONTENT, 1000), 503), server.url("/second", CONTENT))
    assert get(file, tmp_path, waited).read_bytes() == CONTENT
    assert server.asked == [("/first", None), ("/second", "bytes=1000-")]


def test_a_busy_server_is_asked_again_with_growing_pauses(server, tmp_path, waited):
    get(remote(server.url("/a", 503, 503, 429, CONTENT)), tmp_path, waited)
    assert waited == [1, 2, 4]


def test_a_wrong_hash_is_refused_and_the_file_removed(server, tmp_path, waited):
    with pytest.raises(UserError) as error:
        get(remote(server.url("/a", CONTENT[::-1])), tmp_path, waited)
    found = hashlib.sha256(CONTENT[::-1]).hexdigest()
    assert f"its sha256 is {found} instead of {SHA256.removeprefix('sha256:')}" in str(error.value)
    assert files(tmp_path) == []
    assert (server.asked, waited) == ([("/a", None)], []), "the same gigabytes again would be no better"


def test_a_mirror_that_is_gone_is_asked_once(server, tmp_path, waited):
    with pytest.raises(UserError) as error:
        get(remote(server.url("/a", 404)), tmp_path, waited)
    assert "127.0.0.1: answers 404 Not Found" in str(error.value)
    assert (len(server.asked), waited) == (1, [])


def test_breaking_off_for_ever_ends(server, tmp_path, waited):
    server.ranges = False
    with pytest.raises(UserError) as error:
        get(remote(server.url("/a", (CONTENT, 1000))), tmp_path, waited)
    assert "broke off after 1,000 of 1,048,576 bytes" in str(error.value)
    assert "The 1.0 kB so far stay in" in str(error.value)
    assert files(tmp_path) == ["set.bin.part"]
    assert len(server.asked) == module.TRIES + 1  # the first one brought something


def test_without_a_connection_the_message_says_what_to_do(tmp_path, waited):
    # port 9 (discard) of this machine; .invalid is reserved and never resolves
    file = remote("http://127.0.0.1:9/set.bin", "http://mirror.invalid/set.bin")
    with pytest.raises(UserError) as error:
        get(file, tmp_path, waited)
    message = str(error.value)
    words = [
        "set.bin cannot be downloaded",
        "127.0.0.1: ",
        "refused",
        "mirror.invalid: ",
        "(http://mirror.invalid/set.bin)",
        "Fix: run the same command again",
        f"  {tmp_path / 'set.bin'}",
        "1,048,576 bytes",
        SHA256,
    ]
    assert all(word in message for word in words), message
    assert files(tmp_path) == []


def test_a_file_placed_by_hand_with_another_hash_is_left_alone(server, tmp_path, waited):
    (tmp_path / "set.bin").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"set\.bin: has 4 bytes instead of 1,048,576\. Fix: delete or replace it"):
        get(remote(server.url("/a", CONTENT)), tmp_path, waited)
    assert (server.asked, files(tmp_path)) == ([], ["set.bin"])


# -- archives ----------------------------------------------------------------------------------------------------------


def tar(path: Path, *members: tuple[str, bytes], links: tuple[tuple[str, str], ...] = (), mode: str = "w") -> Path:
    if not hasattr(tarfile, "data_filter"):
        pytest.skip("Python 3.11.4 is the oldest that unpacks tar files safely; older ones refuse them")
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return path


def bundle(path: Path, *members: tuple[str, bytes], link: str | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
        if link:
            info = zipfile.ZipInfo(link)
            info.external_attr = 0o120777 << 16
            archive.writestr(info, "../outside")
    return path


GOOD = (("set/a.txt", b"a"), ("set/deep/b.txt", b"b"))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: tar(p, *GOOD),
        lambda p: tar(p, *GOOD, mode="w:gz"),  # .tgz
        lambda p: bundle(p, *GOOD),
    ],
)
def test_archives_are_unpacked_by_content_not_by_name(tmp_path, make):
    make(tmp_path / "archive")
    unpack(tmp_path / "archive", tmp_path)
    assert files(tmp_path) == ["archive", "set/a.txt", "set/deep/b.txt"]
    assert (tmp_path / "set/deep/b.txt").read_bytes() == b"b"
    plain = tmp_path / "plain"
    plain.mkdir()
    assert (tmp_path / "set").stat().st_mode == plain.stat().st_mode, "others may read it as any folder"


def test_two_archives_fill_one_folder_and_leave_what_is_there(tmp_path):
    unpack(tar(tmp_path / "one.tar", ("set/images/a", b"a")), tmp_path)
    (tmp_path / "set/images/mine").write_text("mine")
    unpack(tar(tmp_path / "two.tar", ("set/images/b", b"b"), ("set/list", b"l")), tmp_path)
    assert files(tmp_path / "set") == ["images/a", "images/b", "images/mine", "list"]


ESCAPES: dict[str, Callable[[Path], Path]] = {
    "tar: up": lambda p: tar(p, *GOOD, ("../outside", b"x")),
    "tar: up in the middle": lambda p: tar(p, *GOOD, ("set/../../outside", b"x")),
    "tar: link up": lambda p: tar(p, *GOOD, links=(("set/link", "../../outside"),)),
    "tar: absolute link": lambda p: tar(p, *GOOD, links=(("set/link", str(p.parent / "outside")),)),
    "zip: up": lambda p: bundle(p, *GOOD, ("../outside", b"x")),
    "zip: up in the middle": lambda p: bundle(p, *GOOD, ("set/../../outside", b"x")),
    "zip: absolute": lambda p: bundle(p, *GOOD, ("/outside", b"x")),
    "zip: another system's up": lambda p: bundle(p, *GOOD, ("..\\outside", b"x")),
    "zip: a drive": lambda p: bundle(p, *GOOD, ("C:/outside", b"x")),
    "zip: link": lambda p: bundle(p, *GOOD, link="set/link"),
    "damaged tar": lambda p: _cut(tar(p, ("set/a", bytes(100_000)), mode="w:gz")),
    "damaged zip": lambda p: _flip(bundle(p, ("set/a", b"abcdefgh"))),
    "no archive": lambda p: (p.write_text("<html>"), p)[1],
    "empty": lambda p: (p.write_bytes(b""), p)[1],
}


def _cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-40])
    return path


def _flip(path: Path) -> Path:
    path.write_bytes(path.read_bytes().replace(b"abcdefgh", b"abcdefgX"))  # its checksum differs then
    return path


@pytest.mark.parametrize("kind", ESCAPES)
def test_a_bad_archive_unpacks_nothing(tmp_path, kind):
    folder = tmp_path / "deep/folder"
    folder.mkdir(parents=True)
    archive = ESCAPES[kind](folder / "archive")
    with pytest.raises(UserError) as error:
        unpack(archive, folder)
    assert str(archive) in str(error.value)
    assert "Fix: delete it and run again" in str(error.value)
    assert files(tmp_path) == ["deep/folder/archive"]
    assert [p.name for p in folder.iterdir()] == ["archive"], "no folder is left either"


def test_an_absolute_name_in_a_tar_stays_inside(tmp_path):
    unpack(tar(tmp_path / "a.tar", ("/set/a", b"a")), tmp_path)  # as tar itself does: the leading stroke is dropped
    assert files(tmp_path) == ["a.tar", "set/a"]


# -- whole data sets ---------------------------------------------------------------------------------------------------


@pytest.fixture
def small(server, tmp_path, monkeypatch) -> RemoteSet:
    """A set of two archives and a list, served here under the name ``small``."""
    contents = {
        "train.zip": bundle(tmp_path / "t", ("train/a.jpg", b"a")).read_bytes(),
        "val.tar": tar(tmp_path / "v", ("val/b.jpg", b"b")).read_bytes(),
        "pairs.txt": b"1 2\n",
    }
    for name in "tv":
        (tmp_path / name).unlink()
    found = []
    for name, content in contents.items():
        gives = {"train.zip": ("train",), "val.tar": ("val",)}.get(name, ())
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        found.append(RemoteFile(name, (server.url(f"/{name}", content),), digest, len(content), gives))
    made = RemoteSet(tuple(found), "small", "do no harm", "data=coco data.root={root}/small")
    monkeypatch.setitem(SETS, "small", made)
    return made


def test_a_set_is_fetched_unpacked_and_left_alone_the_second_time(small, server, tmp_path, capsys):
    download(["small", "small"], tmp_path)
    kept = ["pairs.txt", "train.zip", "train/a.jpg", "val.tar", "val/b.jpg"]
    assert [f for f in files(tmp_path / "small") if not f.startswith(".")] == kept
    said = capsys.readouterr().err
    assert "small: do no harm" in said
    assert f"small is complete: data=coco data.root={tmp_path}/small" in said
    assert len(server.asked) == 3
    (tmp_path / "small/train/a.jpg").write_bytes(b"mine")
    download(["small"], tmp_path)
    assert len(server.asked) == 3
    assert (tmp_path / "small/train/a.jpg").read_bytes() == b"mine", "nor unpacked again"


def test_archives_can_be_removed_and_are_not_fetched_again(small, server, tmp_path):
    download(["small"], tmp_path, remove_archives=True)
    assert [f for f in files(tmp_path / "small") if not f.startswith(".")] == ["pairs.txt", "train/a.jpg", "val/b.jpg"]
    download(["small"], tmp_path)
    assert len(server.asked) == 3


def test_an_archive_placed_by_hand_is_unpacked(small, server, tmp_path):
    (tmp_path / "small").mkdir()
    (tmp_path / "small/train.zip").write_bytes(server.plan["/train.zip"][0])
    server.url("/train.zip", 404)
    download(["small"], tmp_path)
    assert (tmp_path / "small/train/a.jpg").is_file()


def test_what_was_lost_after_unpacking_comes_back(small, server, tmp_path):
    download(["small"], tmp_path)
    (tmp_path / "small/val/b.jpg").unlink()
    (tmp_path / "small/val").rmdir()
    download(["small"], tmp_path)
    assert (tmp_path / "small/val/b.jpg").is_file()
    assert len(server.asked) == 3, "from the archive at hand"


def test_an_archive_that_lacks_its_content_is_told(small, server, tmp_path, monkeypatch):
    wrong = RemoteFile(**{**vars(small.files[0]), "gives": ("train2017",)})
    monkeypatch.setitem(SETS, "small", RemoteSet((wrong,), "small", "", ""))
    with pytest.raises(UserError, match=r"train2017 is not there\. Fix"):
        download(["small"], tmp_path)


def test_a_full_disk_is_told_before_anything_is_fetched(small, server, tmp_path, monkeypatch):
    class Usage:
        free = 1000

    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(UserError, match=r"small: needs \d+\.\d kB, and 1\.0 kB are free\. Fix: make room"):
        download(["small"], tmp_path)
    assert server.asked == []


def test_a_disk_that_refuses_is_told(small, tmp_path):
    (tmp_path / "small").write_text("a file where a folder should be")
    with pytest.raises(UserError, match="Fix: check the disk"):
        download(["small"], tmp_path)


@pytest.mark.parametrize("names", [[], ["voc"], ["voc2012", "imagenet"]])
def test_unknown_sets(tmp_path, names):
    with pytest.raises(UserError, match="choose from voc2007, voc2012, coco2017, lfw"):
        download(names, tmp_path)


def jpeg() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (20, 10), "red").save(stream, "JPEG")
    return stream.getvalue()


def voc_tar(path: Path, year: int, *lists: str) -> bytes:
    xml = "<annotation><object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
    top = f"VOCdevkit/VOC{year}"
    members = [(f"{top}/ImageSets/Main/{name}.txt", f"{lists[0]}\n".encode()) for name in lists]
    members += [
        (f"{top}/JPEGImages/{lists[0]}.jpg", jpeg()),
        (f"{top}/Annotations/{lists[0]}.xml", f"{xml}</annotation>".encode()),
    ]
    return tar(path, *members).read_bytes()


def coco_json(name: str) -> bytes:
    image = {"id": 1, "file_name": f"{name}.jpg", "width": 20, "height": 10}
    thing = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 8, 8], "area": 64, "iscrowd": 0}
    return json.dumps({"images": [image], "annotations": [thing], "categories": [{"id": 1, "name": "cat"}]}).encode()


def stand_ins(folder: Path) -> dict[str, bytes]:
    """Archives with the published layout and one image each."""
    files = {f"annotations/instances_{s}2017.json": coco_json(s) for s in ("train", "val")}
    return {
        "VOCtrainval_06-Nov-2007.tar": voc_tar(folder / "x", 2007, "trainval", "train", "val"),
        "VOCtest_06-Nov-2007.tar": voc_tar(folder / "x", 2007, "test"),
        "VOCtrainval_11-May-2012.tar": voc_tar(folder / "x", 2012, "trainval", "train", "val"),
        "annotations_trainval2017.zip": bundle(folder / "x", *files.items()).read_bytes(),
        "train2017.zip": bundle(folder / "x", ("train2017/train.jpg", jpeg())).read_bytes(),
        "val2017.zip": bundle(folder / "x", ("val2017/val.jpg", jpeg())).read_bytes(),
    }


@pytest.mark.parametrize("name", ["voc2007", "voc2012", "coco2017"])
def test_the_folders_are_what_the_configuration_reads(server, tmp_path, monkeypatch, compose, name):
    from hydra.utils import instantiate

    contents = stand_ins(tmp_path)
    local = [
        replace(f, urls=(server.url(f"/{f.name}", contents[f.name]),), digest=None, size=len(contents[f.name]))
        for f in SETS[name].files
    ]
    monkeypatch.setitem(SETS, name, replace(SETS[name], files=tuple(local)))
    download([name], tmp_path / "data")
    data = instantiate(compose(*SETS[name].use.format(root=tmp_path / "data").split()).data)
    for split in ("train", "val", "test"):
        source = data.source(split)
        assert source.classes == ["cat"]
        assert source.read(0)[1].labels.tolist() == [0]


# -- the table ---------------------------------------------------------------------------------------------------------


def test_the_table_is_complete():
    assert {"voc2007", "voc2012", "coco2017", "lfw"} <= set(SETS)
    everything = [(data_set, file) for data_set in SETS.values() for file in data_set.files]
    for data_set, file in everything:
        kind, _, digest = (file.digest or "").partition(":")
        assert re.fullmatch("[0-9a-f]+", digest)
        assert len(digest) == {"md5": 32, "sha256": 64}[kind]
        assert len(file.urls) >= 2, "a second mirror"
        assert all(url.startswith(("https://", "http://")) for url in file.urls)
        assert data_set.terms
        assert "{root}" in data_set.use
    assert len({file.digest for _, file in everything}) == len(everything)


def test_the_lists_at_hand_have_the_published_hash(data_root):
    path = data_root / "lfw/pairs.txt"
    if not path.is_file():
        pytest.skip(f"{path} does not exist")
    file = next(f for f in SETS["lfw"].files if f.name == "pairs.txt")
    assert module.mismatch(file, path) is None


def test_the_listing_names_hash_size_mirrors_and_terms():
    text = listing(["voc2012"])
    file = SETS["voc2012"].files[0]
    for word in (file.name, "1,999,639,040 bytes", file.digest, *file.urls, SETS["voc2012"].terms):
        assert word in text
    assert "coco" not in text


def test_a_file_without_a_published_hash_says_so(monkeypatch):
    file = RemoteFile("x.zip", ("http://example.org/x.zip",), None, None)
    monkeypatch.setitem(SETS, "x", RemoteSet((file,), "x", "free", "{root}"))
    assert "x.zip: size not published\n    no published hash: size checked only" in listing(["x"])


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--list", "lfw"], 0, "ndownloader.figshare.com"),
        ([], 2, "no data set is named: choose from voc2007"),
        (["--list", "cifar"], 2, "'cifar': choose from voc2007"),
    ],
)
def test_the_command(repository, words, code, said):
    command = [sys.executable, str(repository / "scripts/download.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, said in done.stdout + done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr
