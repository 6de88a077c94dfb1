"""The lecture's tables, filled: the published rows with our runs beside them; data only, written by `lecture_output`.

One table for each test set and machine. A row without a run says so, with the command that would make one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cvexp.comparison.lecture_cells import (
    Bar,
    Cell,
    Chart,
    Lecture,
    LectureTable,
    count_cell,
    measured,
    name_cell,
    number_cell,
    ours_cell,
    ratio_text,
    said_cell,
    significant,
    some_runs,
)
from cvexp.comparison.lecture_paper import FACES, REGIONS, SPEED_UP_NOTE, YOLO, PaperRow, speed_up
from cvexp.comparison.lecture_runs import Bench, Number, Ours, Place, Time, mapping, run_time, sort_runs
from cvexp.comparison.runs import Run
from cvexp.comparison.tables import NONE

AP50 = ("test/AP50",)
PASSES = "test/cnn_passes_per_image"
ACCURACY = ("test/accuracy", "test/best_accuracy")
VOC07 = ("test/definitions/voc07", "definitions/voc07")


def fill(runs: Sequence[Run], bench: Bench | None = None) -> Lecture:
    """The lecture's tables from runs.

    Args:
        runs: of `cvexp.comparison.runs.find_runs`.
        bench: where times come from; None: from the runs' own tests.
    """
    shown = [run for run in runs if is_detector(run) or is_face(run)]
    places = sort_runs(shown)
    tables: list[LectureTable] = []
    charts = []
    for build, rows in ((regions, REGIONS), (times, REGIONS), (yolo, YOLO)):
        tables += [build(Filled(place, lines, rows, runs, bench)) for place, lines in _of(places, is_detector, rows)]
    for place, lines in _of(places, is_detector, REGIONS):
        charts.append(chart(Filled(place, lines, REGIONS, runs, bench)))
    tables += [faces(Filled(place, lines, FACES, runs, None)) for place, lines in _of(places, is_face, FACES)]
    return Lecture(tuple(tables), tuple(charts), tuple(_left_out(runs, places)))


def is_detector(run: Run) -> bool:
    return run.number("test/AP50") is not None


def is_face(run: Run) -> bool:
    return run.number("test/AUC") is not None and any(run.number(name) is not None for name in ACCURACY)


def _of(
    places: dict[Place, list[Ours]], kind: Callable[[Run], bool], rows: Sequence[PaperRow]
) -> list[tuple[Place | None, list[Ours]]]:
    """The places with a run that fills a row; the empty table where there is none."""
    models = {model for row in rows for model in row.models}
    wanted = {
        place: [ours for ours in found if ours.model in models and kind(ours.runs[0])]
        for place, found in places.items()
    }
    return [(place, found) for place, found in wanted.items() if found] or [(None, [])]


def _left_out(runs: Sequence[Run], places: dict[Place, list[Ours]]) -> Iterator[str]:
    placed = {model for row in (*REGIONS, *YOLO, *FACES) for model in row.models}
    untested = [run for run in runs if not (is_detector(run) or is_face(run))]
    if untested:
        yield f"{len(untested)} run(s) without the test of a detector or of faces, first {untested[0].folder.name}."
    others = sorted({ours.name for found in places.values() for ours in found if ours.model not in placed})
    if others:
        yield f"In no table of the lecture (python -m cvexp.compare shows them): {', '.join(others)}."


# --- rows ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Filled:
    """What a table is made of.

    Attributes:
        place: of our runs; None without any.
        found: ours, those that fill a row.
        rows: the paper's.
        runs: all that were given.
        bench: where times come from, or None.
    """

    place: Place | None
    found: Sequence[Ours]
    rows: Sequence[PaperRow]
    runs: Sequence[Run]
    bench: Bench | None

    def lines(self) -> Iterator[tuple[PaperRow, Ours | None, int]]:
        """Row, our runs beside it, and the number of its line, from 1; published numbers stand in the first."""
        for row in self.rows:
            mine = [ours for ours in self.found if ours.model in row.models]
            for line, ours in enumerate(mine or [None], start=1):
                yield row, ours, line

    def time(self, row: PaperRow, run: Run) -> Time | None:
        return run_time(run, row.external) if self.bench is None else self.bench.time(run, self.runs, row.external)

    def seconds(self, row: PaperRow, ours: Ours, whole: bool) -> Number | None:
        """Mean seconds for one image, with (``whole``) or without proposals that are made beforehand."""
        times = [self.time(row, run) for run in ours.runs]
        return Number.of((time.whole if whole else time.network) if time else None for time in times)

    def title(self, name: str) -> str:
        if self.place is None:
            return f"{name}: no run of ours"
        timed = f"; times: {self.bench.machine}" if self.bench else ""
        return f"{name}: {self.place.test}; {self.place.machine}{timed}"


def _own_definition(found: Sequence[Ours]) -> bool:
    """Whether any run has mAP by the papers' definition."""
    return any(ours.number(*VOC07) is not None for ours in found)


def _scores(ours: Ours | None, both: bool) -> list[Cell]:
    """AP50 in %, and by VOC's definition where the table has that column."""
    names = [AP50, VOC07] if both else [AP50]
    return [Cell() if ours is None else measured(ours, *name, scale=100, digits=1) for name in names]


def _score_names(both: bool) -> tuple[str, ...]:
    return ("AP50 %", "voc07 %") if both else ("AP50 %",)


def _about(filled: Filled) -> tuple[str, ...]:
    """What a reader must know before comparing our numbers with the paper's."""
    said = ["Published numbers are of VOC 2007 test, mAP over 11 recalls, on the hardware of their footnotes."]
    if filled.place is None:
        return (*said, "No run of ours fills a row.")
    said.append(
        f"Ours are of {filled.place.test} on {filled.place.machine}: the columns are not to be compared with each other."
    )
    if filled.place.metric:
        said.append(f"AP50 is COCO's; measured by: {filled.place.metric}.")
    if filled.bench:
        said.append(
            f"Our times: {filled.bench.path.name} of cvexp.bench, {filled.bench.machine}, batch 1, fp32, median."
        )
    else:
        said.append("Our times: network and post-process of the test pass, without loading and metric.")
    said.append("± is the standard deviation over seeds (n runs).")
    return tuple(said)


# --- tables ----------------------------------------------------------------------------------------------------------


def regions(filled: Filled) -> LectureTable:
    """R-CNN, SPPnet, Fast and Faster R-CNN: passes of the CNN, seconds with proposals, speed-up, mAP."""
    both, base = _own_definition(filled.found), _base(filled)
    rows = []
    for row, ours, line in filled.lines():
        paper = row.said.get("seconds")
        ratio = speed_up(REGIONS[0].said["seconds"].value, paper.value if paper else None)
        rows.append(
            (
                name_cell(row, line),
                said_cell(paper, line),
                Cell(ratio_text(ratio), ratio, (SPEED_UP_NOTE,)) if ratio and line == 1 else Cell(),
                said_cell(row.said.get("map"), line),
                ours_cell(row, ours, filled.place),
                Cell() if ours is None else measured(ours, PASSES),
                *_seconds_and_ratio(filled, row, ours, base),
                *_scores(ours, both),
                count_cell(ours),
            )
        )
    columns = (
        *("system", "paper: s/image", "paper: speed-up", "paper: mAP %"),
        *("ours", "CNN passes", "s/image", "speed-up"),
    )
    title = filled.title("From R-CNN to Faster R-CNN")
    about = (*_about(filled), "CNN passes are of the convolutions, for one image; seconds include proposals.")
    return LectureTable("regions", title, about, (*columns, *_score_names(both), "n"), tuple(rows))


def _base(filled: Filled) -> tuple[str, float | None]:
    """Name and unrounded seconds of our R-CNN; the first where there are several."""
    for row, ours, _ in filled.lines():
        if ours is not None and row is filled.rows[0]:
            seconds = filled.seconds(row, ours, whole=True)
            return ours.name, seconds.mean if seconds else None
    return "", None


def _seconds_and_ratio(filled: Filled, row: PaperRow, ours: Ours | None, base: tuple[str, float | None]) -> list[Cell]:
    if ours is None:
        return [Cell(), Cell()]
    seconds = filled.seconds(row, ours, whole=True)
    ratio = speed_up(base[1], seconds.mean if seconds else None)
    if ratio is None:
        missing = Cell(notes=(f"No time of {filled.rows[0].name} on this machine and test set to compare with.",))
    else:
        missing = Cell(ratio_text(ratio), ratio, (f"Times faster than our {base[0]}, of unrounded seconds.",))
    return [number_cell(seconds, notes=time_notes(filled, row, ours, whole=True)), missing]


def times(filled: Filled) -> LectureTable:
    """The numbers of the two bar charts: time of training, and of a test image without proposals made beforehand."""
    rows = []
    for row, ours, line in filled.lines():
        made = [Cell(), Cell()]
        if ours is not None:
            trained = measured(ours, "train/seconds", scale=1 / 60)
            seconds = filled.seconds(row, ours, whole=False)
            made = [trained, number_cell(seconds, notes=time_notes(filled, row, ours, whole=False))]
        published = [said_cell(row.said.get(name), line) for name in ("hours", "network")]
        rows.append((name_cell(row, line), *published, ours_cell(row, ours, filled.place), *made, count_cell(ours)))
    columns = ("system", "paper: training h", "paper: s/image", "ours", "training min", "s/image", "n")
    title = filled.title("Training and test time")
    about = (*_about(filled), "Seconds leave out proposals that are made before the network (selective search).")
    return LectureTable("times", title, about, columns, tuple(rows))


def time_notes(filled: Filled, row: PaperRow, ours: Ours, whole: bool) -> tuple[str, ...]:
    """Why there is no time, or what to know of the one there is."""
    times = [time for run in ours.runs if (time := filled.time(row, run)) is not None]
    if not times:
        return (
            ("Not in the bench.",) if filled.bench else ("The run did not time its test (no test/seconds_per_image).",)
        )
    notes = {time.note for time in times if time.note}
    if whole and any(time.whole is None for time in times):
        mean = Number.of(time.network for time in times)
        known = f"{mean.mean:.{significant(mean.mean)}f}" if mean else NONE
        notes.add(f"Its proposals were not timed; {known} s without them.")
    if filled.bench is None:
        batches = sorted({str(time.batch or "unknown") for time in times})
        notes.add(f"Batch {' and '.join(batches)}.")
    if len(times) < len(ours.runs):
        notes.add(f"Of {len(times)} of the {len(ours.runs)} runs.")
    return tuple(sorted(notes))


def yolo(filled: Filled) -> LectureTable:
    """The table of YOLO: mAP and images per second."""
    both = _own_definition(filled.found)
    rows = []
    for row, ours, line in filled.lines():
        rows.append(
            (
                name_cell(row, line),
                Cell(row.train) if row.train and line == 1 else Cell(),
                said_cell(row.said.get("map"), line),
                said_cell(row.said.get("fps"), line),
                ours_cell(row, ours, filled.place),
                *_scores(ours, both),
                _fps_cell(filled, row, ours),
                count_cell(ours),
            )
        )
    columns = ("detector", "trained on VOC", "paper: mAP %", "paper: FPS", "ours", *_score_names(both), "FPS", "n")
    about = (*_about(filled), "The published FPS mix hardware; each footnote names it.")
    return LectureTable("yolo", filled.title("The table of YOLO"), about, columns, tuple(rows))


def _fps_cell(filled: Filled, row: PaperRow, ours: Ours | None) -> Cell:
    if ours is None:
        return Cell()
    times = [filled.time(row, run) for run in ours.runs]
    fps = Number.of(1 / time.whole if time and time.whole else None for time in times)
    return number_cell(fps, notes=time_notes(filled, row, ours, whole=True))


def faces(filled: Filled) -> LectureTable:
    """Accuracy on LFW."""
    rows = []
    for row, ours, line in filled.lines():
        paper = said_cell(row.said.get("accuracy"), line)
        rows.append(
            (
                name_cell(row, line),
                Cell(row.train) if row.train and line == 1 else Cell(),
                paper,
                ours_cell(row, ours, filled.place),
                Cell() if ours is None else _accuracy_cell(ours),
                count_cell(ours),
            )
        )
    about = ["Published numbers are of LFW's View 2: ten folds, each judged with the threshold of the other nine."]
    if filled.place is None:
        about.append("No run of ours fills a row.")
    else:
        same = "View 2" in filled.place.test
        about.append(
            f"Ours are of {filled.place.test}: "
            + ("the papers' protocol." if same else "another protocol, not to be compared with the papers' column.")
        )
    columns = ("system", "trained on", "paper: LFW accuracy %", "ours", "accuracy %", "n")
    return LectureTable("faces", filled.title("Faces"), tuple(about), columns, tuple(rows))


def _accuracy_cell(ours: Ours) -> Cell:
    """In %, over seeds; of one run with the interval or standard error that its test gives."""
    chosen = ours.number("test/accuracy", scale=100)
    notes = [] if chosen else ["The threshold was chosen on the tested pairs themselves: too good."]
    number = chosen or ours.number("test/best_accuracy", scale=100)
    if number is not None and number.count > 1:
        notes += ["± is the standard deviation over seeds.", *some_runs(number, ours)]
    elif (error := ours.runs[0].number("test/accuracy_se")) is not None and number is not None:
        number = Number(number.mean, 100 * error, 1)
        notes.append("± is the standard error of the folds' mean, as in the papers.")
    elif (low := ours.runs[0].number("test/accuracy_low")) is not None:
        notes.append(f"95 % interval {100 * low:.1f} to {100 * (ours.runs[0].number('test/accuracy_high') or 1):.1f}.")
    if mapping(ours.runs[0].config.get("data")).get("allow_overlap") not in (None, []):
        notes.append("People of the training are among those tested (data.allow_overlap): too good.")
    return number_cell(number, 1 if number is None or number.std is None else 2, tuple(notes))


# --- charts ----------------------------------------------------------------------------------------------------------


def chart(filled: Filled) -> Chart:
    """The two bar charts' bars."""
    said = [(row, row.said.get("hours"), row.said.get("network")) for row in filled.rows]
    mine = [(row, ours) for row, ours, _ in filled.lines() if ours is not None]
    return Chart(
        "" if filled.place is None else filled.title("ours").removeprefix("ours: "),
        tuple(Bar(row.name, hours.value, str(hours)) for row, hours, _ in said if hours),
        tuple(_bars(mine, lambda row, ours: ours.number("train/seconds", scale=1 / 60))),
        tuple(Bar(row.name, seconds.value, str(seconds)) for row, _, seconds in said if seconds),
        tuple(_bars(mine, lambda row, ours: filled.seconds(row, ours, whole=False))),
    )


def _bars(mine: Sequence[tuple[PaperRow, Ours]], value: Callable[[PaperRow, Ours], Number | None]) -> Iterator[Bar]:
    for row, ours in mine:
        number = value(row, ours)
        if number is not None:
            others = [other.name.split(" ") for known, other in mine if known is row]
            common = set(others[0]).intersection(*others)
            apart = " ".join(word for word in ours.name.split(" ") if word not in common)
            yield Bar(row.name, number.mean, number_cell(number).text, apart)
