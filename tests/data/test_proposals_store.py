"""Proposals of a split: made once, kept whole or not at all, never trusted blindly, whoever is interrupted."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from cvexp.data.proposals import ProposalStore, Unlearnt, fingerprint, store
from cvexp.data.proposals.constant import Constant
from cvexp.data.proposals.sliding_window import SlidingWindow
from cvexp.data.shapes import ShapesSource
from cvexp.errors import UserError

Change = Callable[[Path], object]


@dataclass
class Corners(Unlearnt):
    """Two boxes, of which one depends on the pixels; counts its calls, and stops like Ctrl-C at one of them."""

    name: ClassVar[str] = "corners"
    cached: ClassVar[bool] = True
    side: float = 10.0
    stop_at: int | None = None
    calls: list[str] = field(default_factory=list)

    def settings(self) -> dict[str, Any]:
        return {"side": self.side}

    def __call__(self, image: Tensor) -> Tensor:
        self.calls.append(fingerprint(image))
        if len(self.calls) == self.stop_at:
            raise KeyboardInterrupt
        bright = 1.0 + float(image.float().mean()) / 10
        return torch.tensor([[0.0, 0, self.side, self.side], [0.0, 0, bright, 5.0]])


def shapes(count: int = 4) -> ShapesSource:
    return ShapesSource(96, count, 0, "val")


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")


def test_made_once_and_read_again(tmp_path: Path) -> None:
    first, second = Corners(), Corners()
    one, other = ProposalStore(first, tmp_path, 1), ProposalStore(second, tmp_path, 1)
    assert one.seconds("val") is None
    made, read = one.of(shapes(), "val"), other.of(shapes(), "val")
    assert (len(first.calls), len(second.calls)) == (4, 0)
    assert len(made) == len(read) == 4
    assert all(
        a.equal(b) and a.equal(Corners()(shapes().read(i)[0])) for i, (a, b) in enumerate(zip(made, read, strict=True))
    )
    assert one.seconds("val") == other.seconds("val") > 0  # as it took then
    assert len(files(tmp_path)) == 4
    assert not list(tmp_path.rglob("*.part"))


def test_without_a_folder_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = ProposalStore(Corners(), None, 1).of(shapes(), "val")
    assert len(made[0]) == 2
    assert files(tmp_path) == []


def test_other_settings_have_files_of_their_own(tmp_path: Path) -> None:
    ProposalStore(Corners(), tmp_path, 1).of(shapes(), "val")
    wider = ProposalStore(Corners(side=20), tmp_path, 1).of(shapes(), "val")
    assert wider[0][0].tolist() == [0, 0, 20, 20]
    assert len(files(tmp_path)) == 8


def test_the_same_picture_is_worked_on_once(tmp_path: Path) -> None:
    class Twice(ShapesSource):
        def read(self, index: int) -> Any:
            return super().read(index % 2)

    method = Corners()
    found = ProposalStore(method, tmp_path, 1).of(Twice(96, 6, 0, "val"), "val")
    assert len(method.calls) == 2
    assert len(found) == 6
    assert found[5].equal(found[1])


def test_an_interrupted_run_keeps_what_is_done(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        ProposalStore(Corners(stop_at=3), tmp_path, 1).of(shapes(), "val")
    assert len(files(tmp_path)) == 2
    rest = Corners()
    ProposalStore(rest, tmp_path, 1).of(shapes(), "val")
    assert len(rest.calls) == 2


def rewritten(**changes: Any) -> Change:
    """The file with other contents."""

    def change(path: Path) -> None:
        with np.load(path) as file:
            content = {name: file[name] for name in file.files}
        content |= {name: value(content[name]) for name, value in changes.items()}
        np.savez(path, **{name: value for name, value in content.items() if value is not None})

    return change


class Evil:
    """What unpickling would run."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("evil"),))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),  # a full disk
        lambda path: path.write_bytes(path.read_bytes()[:100]),  # cut off
        lambda path: path.write_bytes(b"\x00" * 300),
        lambda path: path.write_bytes(
            path.read_bytes()[:60] + b"xxxx" + path.read_bytes()[64:]
        ),  # a bit that fell over
        lambda path: path.write_bytes(pickle.dumps([1, 2])),
        lambda path: path.write_bytes(pickle.dumps(Evil())),
        lambda path: np.savez(path, other=np.zeros(3)),
        rewritten(boxes=lambda b: np.array([Evil()], dtype=object)),  # a pickle inside
        rewritten(boxes=lambda b: b.astype(np.float64)),
        rewritten(boxes=lambda b: b[:, :3]),
        rewritten(boxes=lambda b: b * np.nan),
        rewritten(boxes=lambda b: b + 500),  # outside the image
        rewritten(boxes=lambda b: b[:, [2, 3, 0, 1]]),  # no area
        rewritten(seconds=lambda s: np.float64("nan")),
        rewritten(settings=lambda s: np.array("{}")),  # another method's
        rewritten(size=lambda s: None),
    ],
)
def test_a_damaged_file_is_made_anew(tmp_path: Path, damage: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ProposalStore(Corners(), tmp_path, 1).of(shapes(2), "val")
    path = files(tmp_path)[0]
    damage(path)
    method = Corners()
    found = ProposalStore(method, tmp_path, 1).of(shapes(2), "val")
    assert len(method.calls) == 1
    assert found[0][0].tolist() == [0, 0, 10, 10]
    assert not (tmp_path / "evil").exists()
    again = Corners()
    ProposalStore(again, tmp_path, 1).of(shapes(2), "val")
    assert again.calls == []


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        (torch.zeros(3, 4), "without area"),
        (torch.tensor([[0.0, 0, 97, 10]]), "outside the image of 96x96"),
        (torch.tensor([[0.0, 0, float("inf"), 10]]), "not finite"),
        (torch.tensor([[0, 0, 5, 5]]), r"int64 \[1, 4\]"),
        (torch.zeros(4), r"float32 \[4\]"),
    ],
)
def test_a_method_that_breaks_the_contract_is_told(boxes: Tensor, words: str, tmp_path: Path) -> None:
    class Broken(Corners):
        def __call__(self, image: Tensor) -> Tensor:
            return boxes

    with pytest.raises(UserError, match=words):
        ProposalStore(Broken(), tmp_path, 1).of(shapes(1), "val")
    assert files(tmp_path) == []


def test_no_boxes_are_fine(tmp_path: Path) -> None:
    class Blind(Corners):
        def __call__(self, image: Tensor) -> Tensor:
            return torch.zeros(0, 4)

    for _ in range(2):
        found = ProposalStore(Blind(), tmp_path, 1).of(shapes(2), "val")
        assert [each.shape for each in found] == [(0, 4), (0, 4)]


def test_packed_is_a_sequence() -> None:
    packed = store.Packed([np.full((n, 4), n, np.float32) for n in (2, 0, 1)])
    assert [len(each) for each in packed] == [2, 0, 1]
    assert packed[-1].tolist() == [[1, 1, 1, 1]]
    assert [len(each) for each in packed[1:]] == [0, 1]
    with pytest.raises(IndexError):
        packed[3]
    assert len(store.Packed([])) == 0
    assert pickle.loads(pickle.dumps(packed))[0].equal(packed[0])


def test_boxes_that_depend_on_the_size_are_not_kept(tmp_path: Path) -> None:
    windows = ProposalStore(SlidingWindow(levels=3), tmp_path, 1)
    found = windows.of(shapes(3), "val")
    assert len(found) == 3
    assert found[2].equal(SlidingWindow(levels=3)(shapes().read(2)[0]))
    assert found[0] is found[1]  # made once for a size
    assert len(found[:2]) == 2
    assert pickle.loads(pickle.dumps(found))[1].equal(found[1])
    assert windows.seconds("val") is not None
    assert files(tmp_path) == []
    with pytest.raises(UserError, match="Fix: fit"):
        ProposalStore(Constant(), tmp_path, 1).of(shapes(1), "val")


@pytest.mark.parametrize("workers", [0, -3])
def test_workers_are_at_least_one(workers: int) -> None:
    with pytest.raises(UserError, match="Fix: workers=1"):
        ProposalStore(Corners(), None, workers)


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match="is a file"):
        ProposalStore(Corners(), tmp_path / "cache", 1)


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left on device"):
        ProposalStore(Corners(), tmp_path, 1).of(shapes(1), "val")
    assert files(tmp_path) == []


def test_settings_stand_in_the_file(tmp_path: Path) -> None:
    ProposalStore(Corners(), tmp_path, 1).of(shapes(1), "val")
    with np.load(files(tmp_path)[0]) as file:
        assert json.loads(str(file["settings"])) == {"name": "corners", "side": 10.0}


class Slow(Corners):
    """Takes a while, so that processes are worth it."""

    def __call__(self, image: Tensor) -> Tensor:
        time.sleep(0.05)
        return super().__call__(image)


@pytest.mark.slow
def test_several_processes_make_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "WORTH_PROCESSES", 0.1)
    method = Slow()
    found = ProposalStore(method, tmp_path, 2).of(shapes(30), "val")
    assert len(method.calls) < 30  # the others were made elsewhere
    alone = ProposalStore(Corners(), None, 1).of(shapes(30), "val")
    assert all(a.equal(b) for a, b in zip(found, alone, strict=True))
    assert len(files(tmp_path)) == 30


@pytest.mark.slow
def test_two_runs_at_once_make_each_image_once(tmp_path: Path) -> None:
    code = """
import sys
from cvexp.data.proposals import ProposalStore
from cvexp.data.proposals.segments import Segments
from cvexp.data.shapes import ShapesSource

class Counted(Segments):
    def __call__(self, image):
        print("made", flush=True)
        return super().__call__(image)

ProposalStore(Counted(), sys.argv[1], 1).of(ShapesSource(96, 12, 0, "val"), "val")
"""
    runs = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) for _ in range(2)]
    said = [run.communicate()[0].count(b"made") for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert sum(said) == 12
