"""``cvexp.bench``: the protocol, the tables, the pictures, and what it refuses. Nothing here depends on how fast a machine is."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import nms

from cvexp import bench as command
from cvexp.bench import bench, read_words
from cvexp.benchmark import timing
from cvexp.benchmark.flops import count_flops
from cvexp.benchmark.pictures import draw_speed_accuracy, draw_stages, place_labels
from cvexp.benchmark.subjects import Score, Subject, distinct, run_score
from cvexp.benchmark.tables import as_record, markdown
from cvexp.benchmark.timing import STAGES, Plan, Row, measure, plan_rows
from cvexp.data.transforms import Fit
from cvexp.errors import UserError
from cvexp.ops.stages import stage
from cvexp.types import Detection

CPU = torch.device("cpu")
QUICK = ["batch=1", "precision=fp32", "warmup=1", "repeats=2", "pictures=2", "device=cpu"]


class Pointer(nn.Module):
    """A detector that finds one box, the picture's upper left quarter; it can fail.

    Attributes:
        seen: the first pixel of each picture of each batch.
    """

    kind = "detection"

    def __init__(self, fail_at: int | None = None, error: type[BaseException] = RuntimeError) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.seen: list[list[int]] = []
        self.fail_at, self.error = fail_at, error

    def forward(self, images: Tensor) -> list[Detection]:
        self.seen.append(images[:, 0, 0, 0].tolist())
        if self.fail_at is not None and len(self.seen) > self.fail_at:
            raise self.error("Not enough of something\nand a second line")
        with stage("proposals"):
            size = images.shape[-1]
        with stage("postprocess"):
            box = torch.tensor([[0.0, 0, size / 2, size / 2]])
            return [Detection(box, torch.ones(1), torch.zeros(1, dtype=torch.int64)) for _ in images]


def subject(name: str = "pointer", model: nn.Module | None = None, score: float | None = None) -> Subject:
    return Subject(name, model or Pointer(), Fit(size=32, resize="letterbox"), score is not None, 2, Score(score))


def grey(count: int, size: int = 16) -> list[Tensor]:
    """Pictures that can be told apart by any pixel."""
    return [torch.full((3, size, size), value, dtype=torch.uint8) for value in range(count)]


# --- the protocol ----------------------------------------------------------------------------------------------------


def test_passes_are_counted_and_stages_fit_into_the_total() -> None:
    row = Row(subject(), 2, "fp32")
    assert measure([row], grey(3), Plan(warmup=2, repeats=7), CPU)
    assert (row.warmed, len(row.passes), row.shape) == (2, 7, (2, 3, 32, 32))
    for times in row.passes:
        assert set(times) == {*STAGES, "total"}
        assert sum(times[name] for name in STAGES) <= times["total"] + 1e-12
    # 2 of warm-up, and rounds of 5 and 2 with a pass before each
    assert len(row.subject.model.seen) == 2 + (1 + 5) + (1 + 2)  # type: ignore[arg-type]


def test_pictures_go_round() -> None:
    row = Row(subject(), 2, "fp32")
    measure([row], grey(3), Plan(warmup=3, repeats=1), CPU)
    assert row.subject.model.seen[:3] == [[0, 1], [2, 0], [1, 2]]  # type: ignore[index]


def test_rounds_go_over_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    rows = list(plan_rows([subject("a"), subject("b")], [1], ["fp32"]))
    measure(rows, grey(1), Plan(warmup=1, repeats=2 * timing.ROUND), CPU, lambda row, _: order.append(row.subject.name))
    assert order == ["a", "b"] * 3  # warm-up and two rounds


def test_rows_of_the_same_setting_are_neighbours() -> None:
    rows = [
        (r.batch, r.precision, r.subject.name)
        for r in plan_rows([subject("a"), subject("b")], [1, 8], ["fp32", "bf16"])
    ]
    assert rows[:3] == [(1, "fp32", "a"), (1, "fp32", "b"), (1, "bf16", "a")]
    assert len(rows) == 8
    assert rows[-1] == (8, "bf16", "b")


def test_the_limit_of_seconds_still_times_one_pass() -> None:
    row = Row(subject(), 1, "fp32")
    measure([row], grey(1), Plan(warmup=10, repeats=50, seconds=1e-9), CPU)
    assert (row.warmed, len(row.passes)) == (1, 1)


def test_a_row_that_fails_does_not_stop_the_others() -> None:
    rows = [Row(subject("bad", Pointer(fail_at=4)), 1, "fp32"), Row(subject("good"), 1, "fp32")]
    assert measure(rows, grey(1), Plan(warmup=1, repeats=3), CPU)
    assert rows[0].failure == "RuntimeError: Not enough of something"
    assert rows[0].median("total") is None
    assert len(rows[1].passes) == 3
    assert "bad, batch 1, fp32: not measured: RuntimeError" in markdown(
        [as_record(r, None) for r in rows], CONDITIONS, []
    )


def test_ctrl_c_keeps_what_was_measured() -> None:
    rows = [Row(subject("a"), 1, "fp32"), Row(subject("b", Pointer(fail_at=1, error=KeyboardInterrupt)), 1, "fp32")]
    assert not measure(rows, grey(1), Plan(warmup=1, repeats=3), CPU)
    assert (len(rows[0].passes), len(rows[1].passes)) == (3, 0)


def test_worked_numbers() -> None:
    """Batch 2 in 20, 40 and 120 ms: 10, 20, 60 ms an image; the median gives 50 images/s; p95 is 20 + 0.9 * 40."""
    row = Row(subject(), 2, "fp32", passes=[{"network": t / 2, "total": t} for t in (0.04, 0.12, 0.02)])
    assert row.median("total") == pytest.approx(20)
    assert row.median("network") == pytest.approx(10)
    assert row.p95("total") == pytest.approx(56)
    assert row.images_per_second == pytest.approx(50)
    assert row.median("proposals") is None
    assert row.p95("proposals") is None


def test_the_real_marks_of_the_models(tmp_path: Path) -> None:
    """Both words of the command in a run of seconds: YOLO has no proposals, Faster R-CNN has all stages."""
    words = ["models=[yolo,faster_rcnn_fpn]", "model.size=tiny", *QUICK, f"output={tmp_path}"]
    result = bench(words)
    yolo, faster = result["rows"]
    assert yolo["proposals_ms"] is None
    assert faster["proposals_ms"] > 0
    for record in (yolo, faster):
        assert min(record[f"{name}_ms"] for name in ("preprocess", "network", "postprocess", "total")) > 0
        assert (record["timed"], record["warmup"], record["weights"]) == (2, 1, "random weights")
        assert record["gflops"] > 0
        assert record["parameters"] > 1000
    assert yolo["input"] == "96x96"
    assert yolo["suppression"].endswith("IoU 0.5")
    assert "torchvision::nms" in faster["not_counted"]
    assert {"bench.md", "bench.csv", "bench.json", "stages.png", "stages.svg"} == {p.name for p in tmp_path.iterdir()}
    text = (tmp_path / "bench.md").read_text()
    for said in (
        "Random weights have random scores",
        "below the protocol's 10",
        "Decoding of image files is not",
        "no row has both",
    ):
        assert said in text
    assert len(json.loads((tmp_path / "bench.json").read_text())["rows"]) == 2
    with (tmp_path / "bench.csv").open() as stream:
        assert [row["model"] for row in csv.DictReader(stream)] == ["yolo", "faster_rcnn_fpn"]


# --- operations ------------------------------------------------------------------------------------------------------


class Counted(nn.Module):
    """A convolution, a linear layer and an operator that is not torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.full = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images.float())
        nms(torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1), 0.5)
        return self.full(maps.relu().mean(dim=(2, 3)))


def test_flops_by_hand() -> None:
    """12x12 to 10x10: 2 * 3 * 9 * 8 * 100; then 2 * 8 * 5; twice for two images. A bias, ReLU and mean are not counted."""
    found = count_flops(Counted(), torch.zeros(2, 3, 12, 12, dtype=torch.uint8))
    assert found.total == 2 * (43_200 + 80)
    assert found.by_operator == {"aten.convolution": 86_400, "aten.addmm": 160}
    assert found.unknown == ("torchvision::nms",)


# --- scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "text", "value", "note"),
    [
        ("best.ckpt", '{"test/AP": 0.25}', 0.25, ""),
        ("last.ckpt", '{"test/AP": 0.25}', None, "about best.ckpt"),  # another one was tested
        ("best.ckpt", None, None, "no result.json"),  # a run that was stopped
        ("best.ckpt", '{"val/AP": 0.25}', None, "no test/AP"),
        ("best.ckpt", '{"test/AP": "high"}', None, "no test/AP"),
        ("best.ckpt", '{"test/AP": true}', None, "no test/AP"),
        ("best.ckpt", "[1]", None, "no test/AP"),
        ("best.ckpt", "{", None, "cannot be read"),
    ],
)
def test_scores_of_runs(tmp_path: Path, file: str, text: str | None, value: float | None, note: str) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.ckpt").touch()
    if text is not None:
        (tmp_path / "result.json").write_text(text)
    found = run_score(tmp_path / "checkpoints" / file)
    assert found.value == value
    assert note in found.note
    assert bool(found.note) == (value is None)


def test_names_are_distinct() -> None:
    assert [s.name for s in distinct([subject("a"), subject("b"), subject("a")])] == ["a", "b", "a (2)"]


# --- tables and pictures ---------------------------------------------------------------------------------------------

CONDITIONS: dict[str, Any] = {
    **{"device": "a device", "device_type": "cpu", "threads": 1, "torch": "2", "pictures": "3 pictures", "warmup": 1},
    **{"repeats": 2, "seconds": None, "tf32": None},
}


def record(name: str, speed: float, score: float | None, **more: Any) -> dict[str, Any]:
    passes = [{"network": 0.6 / speed, "postprocess": 0.3 / speed, "total": 1 / speed}]
    made = as_record(Row(subject(name, score=score), 1, "fp32", passes=passes), None)
    return made | more


def test_a_table_survives_hostile_names() -> None:
    text = markdown([record("a|b\n\x1b[31m", 10, 0.5)], CONDITIONS, ["a note."])
    row = next(line for line in text.splitlines() if line.startswith("| a"))
    assert r"a\|b\n\x1b[31m" in row
    assert "\x1b" not in text
    assert text.count("\n- a note.") == 1


def test_spreadsheets_see_no_formula(tmp_path: Path) -> None:
    from cvexp.benchmark.tables import write_tables

    write_tables(tmp_path, [record("=1+1", 10, 0.5)], CONDITIONS, [])
    assert next(csv.DictReader((tmp_path / "bench.csv").open()))["model"] == "'=1+1"


def test_points_without_score_give_a_reason(tmp_path: Path) -> None:
    made, reason = draw_speed_accuracy([record("a", 10, None)], "cpu", tmp_path / "s")
    assert made is None
    assert "no row has both" in reason
    assert list(tmp_path.iterdir()) == []
    assert draw_stages([], "cpu", tmp_path / "t")[0] is None


def test_pictures_are_written(tmp_path: Path) -> None:
    records = [record("a", 10, 0.5), record("b", 1000, 0.1), record("c $x", 50, None, weights="random weights")]
    made, _ = draw_speed_accuracy(records, "cpu", tmp_path / "s")
    assert made is not None
    assert all(Image.open(path).size > (300, 200) for path in made[:1])
    assert draw_stages(records, "cpu", tmp_path / "t")[0] is not None


@pytest.mark.parametrize(
    "points",
    [
        [(1.0, 1.0)],  # one alone
        [(1.0, 1.0)] * 6,  # all at one place
        [(1.0, 1.0), (1.01, 1.0), (1.02, 1.001), (5.0, 3.0), (5.01, 3.01)],  # two crowds
    ],
)
def test_labels_do_not_overlap(points: list[tuple[float, float]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = Figure(figsize=(7, 5))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    x, y = np.array(points).T
    axes.scatter(x, y)
    axes.margins(0.3)
    notes = place_labels(axes, x, y, [f"detector number {i}" for i in range(len(points))])
    boxes = [note.get_window_extent() for note in notes]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    frame = axes.get_window_extent()
    assert all(frame.x0 <= b.x0 and b.x1 <= frame.x1 for b in boxes)


# --- words -----------------------------------------------------------------------------------------------------------


def test_options_and_overrides_are_told_apart() -> None:
    options, rest = read_words(["models=[yolo, fast_yolo]", "model.size=tiny", "batch=4", "~model/neck", "seed=3"])
    assert options["models"] == "yolo, fast_yolo"
    assert options["batch"] == "4"
    assert options["repeats"] == "50"
    assert rest == ["model.size=tiny", "~model/neck", "seed=3"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "models= or ckpt= is missing"),
        (["models=[]"], "models= or ckpt= is missing"),
        (["yolo"], "not key=value"),
        (["models=yolo", "bacth=1"], "did you mean 'batch'"),
        (["models=yolo", "sed=1"], "'seed'"),  # a misspelled key of the configuration
        (["model=yolo"], "models=yolo"),
        (["models=yolox"], "yolo"),
        (["models=yolo", "model.sise=tiny"], "size"),
        (["models=yolo", "batch=0"], "from 1 to 4096"),
        (["models=yolo", "batch=²"], "from 1 to 4096"),  # a digit to Python, no number
        (["models=yolo", "batch="], "names no size"),
        (["models=yolo", "repeats=0"], "repeats=0"),
        (["models=yolo", "seconds=nan"], "above 0"),
        (["models=yolo", "seconds=x"], "above 0"),
        (["models=yolo", "precision=bf61"], "did you mean 'bf16'"),
        (["models=yolo", "precision="], "choose from"),
        (["models=yolo", "device=toaster"], "device=cpu"),
        (["models=yolo", "device=meta"], "device=cpu"),
        (["models=facenet", "data=drawn_faces"], "finds no boxes"),
        (["models=yolo", "model.size=tiny", "data.pad=batch"], "data.pad=square"),
        (["models=yolo", "model.size=tiny", "source=nowhere"], "source=nowhere"),
        (["ckpt=nowhere.ckpt"], "no such file"),
    ],
)
def test_what_is_refused(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        bench([*words, f"output={tmp_path / 'out'}"])
    assert said in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match="is a file"):
        bench(["models=yolo", f"output={tmp_path / 'out'}"])


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"a\.png"):
        bench(["models=yolo", "model.size=tiny", f"source={tmp_path}", f"output={tmp_path / 'out'}"])


# --- the whole command with a stand-in -------------------------------------------------------------------------------


@pytest.fixture
def pointers(monkeypatch: pytest.MonkeyPatch) -> list[Subject]:
    """Whatever is named, these are measured."""
    found = [subject("a", score=0.5), subject("b", score=0.4)]
    monkeypatch.setattr(command, "_subjects", lambda *_: found)
    return found


def test_a_bench_with_scores(pointers: list[Subject], tmp_path: Path) -> None:
    result = bench(["ckpt=x", *QUICK, f"output={tmp_path}"])
    assert {path.name for path in result["files"]} == {
        f"{n}.{e}" for n in ("stages", "speed_accuracy") for e in ("png", "svg")
    }
    assert not result["stopped"]
    assert all(path.is_file() for path in result["files"])


def test_a_former_picture_does_not_stay(pointers: list[Subject], tmp_path: Path) -> None:
    (tmp_path / "speed_accuracy.png").write_bytes(b"of yesterday")
    pointers[:] = [replace(s, score=Score(None, "none")) for s in pointers]
    bench(["ckpt=x", *QUICK, f"output={tmp_path}"])
    assert not (tmp_path / "speed_accuracy.png").exists()


def test_ctrl_c_of_the_command(
    pointers: list[Subject], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pointers[1] = subject("b", Pointer(fail_at=2, error=KeyboardInterrupt), score=0.4)  # the first counts operations
    monkeypatch.setattr(sys, "argv", ["bench", "ckpt=x", *QUICK, f"output={tmp_path}"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 130
    assert "Stopped by Ctrl-C" in (tmp_path / "bench.md").read_text()
    assert "Stopped by Ctrl-C" in capsys.readouterr().out
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert [row["timed"] for row in rows] == [2, 0]


def test_nothing_could_be_measured(pointers: list[Subject], tmp_path: Path) -> None:
    pointers[:] = [subject("a", Pointer(fail_at=0))]
    with pytest.raises(UserError, match="no row could be measured"):
        bench(["ckpt=x", *QUICK, f"output={tmp_path}"])
    assert "Not enough of something" in (tmp_path / "bench.md").read_text()


def test_help_says_every_option(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "--help"])
    command.main()
    said = capsys.readouterr().out
    assert all(f"{name}=" in said for name in command.DEFAULTS)
