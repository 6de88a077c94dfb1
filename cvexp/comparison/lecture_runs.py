"""Our side of the lecture's tables: runs sorted by what they were tested on and by whom, seeds together, nothing else.

A mean is taken over runs that differ in their seed alone; runs of another test set, metric, machine, training set or setting
are never averaged, and those of another test set or machine stand in another table.
"""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from cvexp.comparison.grouping import decisive
from cvexp.comparison.runs import Run
from cvexp.config.messages import one_line
from cvexp.errors import UserError

UNKNOWN_MACHINE = "a machine that is not recorded"
ELSEWHERE, UNTOLD = ("seed", "model", "data"), ("resume", "sweep", "paths.", "logger", "hydra.")
"""Words typed that a command line names by itself, and beginnings of those that change no result."""


@dataclass(frozen=True)
class Number:
    """A mean over seeds.

    Attributes:
        mean: of the values.
        std: of single values around it, ddof 1; None of one.
        count: how many.
    """

    mean: float
    std: float | None
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Number | None:
        """From the values that there are; None without any. ``Number.of([1.0, 3.0])`` is 2 ± 1.414, n 2."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        return cls(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))


@dataclass(frozen=True)
class Time:
    """Seconds for one image.

    Attributes:
        network: without proposals that are made beforehand.
        whole: with them; None where they were not timed.
        batch: images at once; None where it is not known.
        note: what to know of it; may be empty.
    """

    network: float
    whole: float | None
    batch: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Place:
    """What a table is about: one test set with one metric, measured on one machine.

    Attributes:
        key: two places are one only if it is equal.
        data: name of ``conf/data``.
        test: the test set in words.
        machine: in words.
        metric: settings of the metric in words; may be empty.
    """

    key: str
    data: str = field(compare=False)
    test: str = field(compare=False)
    machine: str = field(compare=False)
    metric: str = field(compare=False, default="")


@dataclass(frozen=True)
class Ours:
    """Runs that differ in their seed alone.

    Attributes:
        name: of the model, with the words typed that change it.
        model: name of ``conf/model``.
        runs: one for each seed.
        place: where they were tested.
        dropped: runs that repeat a seed; the later one is used.
    """

    name: str
    model: str
    runs: tuple[Run, ...]
    place: Place
    dropped: int = 0

    def number(self, *names: str, scale: float = 1.0) -> Number | None:
        """Mean over the seeds of the first of ``names`` that any of them has."""
        for name in names:
            found = Number.of(run.number(name) for run in self.runs)
            if found is not None:
                return Number(found.mean * scale, None if found.std is None else found.std * scale, found.count)
        return None

    def mean_of(self, value: Callable[[Run], float | None]) -> Number | None:
        return Number.of(map(value, self.runs))

    @property
    def command(self) -> str:
        """What makes such runs again, seeds together."""
        seeds = sorted({run.seed for run in self.runs if run.seed is not None})
        typed = self.runs[0].words.items()
        words = [f"{key}={value}" for key, value in typed if key not in ELSEWHERE and not key.startswith(UNTOLD)]
        seed = [f"seed={','.join(map(str, seeds))}"] if seeds else []
        line = shlex.join([f"model={self.model}", f"data={self.place.data}", *words, *seed]).replace("`", "'")
        return one_line(f"python -m cvexp.train {'-m ' if len(seeds) > 1 else ''}{line}")


def sort_runs(runs: Sequence[Run]) -> dict[Place, list[Ours]]:
    """Places in the order of their first run, each with its models."""
    places: dict[Place, dict[str, list[Run]]] = {}
    for run in runs:
        places.setdefault(place_of(run), {}).setdefault(variant(run), []).append(run)
    return {place: [_ours(place, together) for together in found.values()] for place, found in places.items()}


def _ours(place: Place, runs: Sequence[Run]) -> Ours:
    """Of runs with the same seed only the one that began last."""
    by_seed: dict[Any, Run] = {}
    for run in sorted(runs, key=lambda run: str(run.manifest.get("started") or "")):
        by_seed[run.seed if run.seed is not None else run.folder] = run
    kept = tuple(by_seed.values())
    return Ours(label(kept[0]), kept[0].model, kept, place, len(runs) - len(kept))


def label(run: Run) -> str:
    """``faster_rcnn backbone=zf size=tiny``: the model and every word that changed it; the size also where no word says so."""
    words = {key[len("model.") :]: value for key, value in run.words.items() if key.startswith(("model.", "model/"))}
    size = mapping(run.config.get("model")).get("size")
    if size not in (None, "base"):
        words.setdefault("size", str(size))
    return one_line(" ".join([run.model, *(f"{key}={words[key]}" for key in sorted(words))]))


def place_of(run: Run) -> Place:
    """The test set by its hash where the manifest has one, else by the settings of the data; with what the metric counted."""
    hashed = mapping(mapping(run.manifest.get("data")).get("test"))
    counts = {name: run.results.get(f"test/{name}") for name in ("images", "pairs", "pairs_left_out")}
    known = hashed.get("hash") or _settings_of_test(run.config.get("data"))
    metric = str(run.results.get("metric/settings") or "")
    machine = machine_of(run)
    key = json.dumps([known, counts, metric, machine], sort_keys=True, default=str)
    return Place(key, run.data, test_in_words(run, hashed), machine, one_line(metric))


def _settings_of_test(data: Any) -> dict[str, Any]:
    """Of a run without a manifest: what the test set follows from."""
    others = ("train", "val_", "augment", "batch", "eval_batch", "num_workers", "seed", "balance", "images_per")
    return {str(name): value for name, value in mapping(data).items() if not str(name).startswith(others)}


def test_in_words(run: Run, counted: Mapping[str, Any]) -> str:
    """``voc, list test, 300 images (hash 0a1b2c3d)``, or which view of LFW it is."""
    data = mapping(run.config.get("data"))
    parts = [run.data]
    view = face_protocol(run)
    if view:
        parts.append(view)
    elif isinstance(data.get("test"), str):
        parts.append(f"list {PurePath(data['test']).name}")
    images = run.number("test/images") or counted.get("images")
    parts += [f"{images:g} images"] if isinstance(images, int | float) else []
    pairs = run.number("test/pairs")
    parts += [f"{pairs:g} pairs"] if pairs else []
    mark = f" (hash {str(counted['hash'])[:8]})" if counted.get("hash") else " (no manifest)"
    return one_line(", ".join(parts) + mark)


def face_protocol(run: Run) -> str:
    """Which protocol of faces a run was tested by, in words; empty for another kind of run."""
    if run.number("test/AUC") is None:
        return ""
    data = mapping(run.config.get("data"))
    listed = PurePath(str(data.get("test_pairs") or "")).name
    lfw = "lfw" in str(data.get("root", "")).lower() or "lfw" in str(data.get("test_pairs", "")).lower()
    if lfw and listed == "pairs.txt":
        return "LFW View 2, folds choose each other's threshold"
    if lfw and listed == "pairsDevTest.txt":
        return "LFW View 1 (pairsDevTest), threshold chosen elsewhere"
    return f"list {listed}, not a view of LFW" if listed else "pairs that were drawn, not a view of LFW"


def machine_of(run: Run) -> str:
    """The device, and of a CPU its cores and threads; `UNKNOWN_MACHINE` without a manifest."""
    device, platform = (mapping(run.manifest.get(name)) for name in ("device", "platform"))
    if device.get("name"):
        count = device.get("processes", 1)
        return one_line(f"{device['name']}{f' x {count}' if count not in (1, None) else ''}")
    if not platform.get("cpu"):
        return UNKNOWN_MACHINE
    parts = [str(platform["cpu"]).replace("(R)", "").replace("(TM)", "")]
    parts += [counted(platform[name], name.rstrip("s")) for name in ("cores", "threads") if name in platform]
    return one_line(", ".join(parts))


def counted(number: Any, thing: str) -> str:
    """``1 core``, ``2 cores``."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def variant(run: Run) -> str:
    """What a run is but for its seed: model, what decides its result, training data; one text to compare."""
    train = mapping(mapping(run.manifest.get("data")).get("train")).get("hash")
    settings = decisive(run) or str(run.folder.resolve())  # nothing is known of it: like no other
    return json.dumps([run.model, run.data, train, settings], sort_keys=True, default=str)


def mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


# --- time ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """The rows of a ``bench.json`` at batch 1 in fp32.

    Attributes:
        path: of the file.
        machine: its device in words.
        rows: by name of the model or of the run's folder.
    """

    path: Path
    machine: str
    rows: Mapping[str, BenchRow]

    def time(self, run: Run, runs: Sequence[Run], external: bool) -> Time | None:
        """Of the run's own checkpoint, else of its model with random weights; None without a row.

        Args:
            run: the run.
            runs: all that are compared; a folder's name that several of them have says nothing.
            external: its proposals are made before the network.
        """
        name = run.folder.resolve().name
        alone = sum(other.folder.resolve().name == name for other in runs) == 1
        row = (self.rows.get(name) if alone else None) or self.rows.get(run.model)
        if row is None:
            return None
        note = "" if row.trained else "Timed with random weights: the post-process sees other candidates."
        if not external:
            return Time(row.total, row.total, 1, note)
        return Time(row.total - (row.proposals or 0.0), row.total if row.proposals else None, 1, note)


@dataclass(frozen=True)
class BenchRow:
    """Seconds for one image: ``total``, of which ``proposals`` (None: the model has no such stage)."""

    total: float
    proposals: float | None
    trained: bool


def read_bench(path: Path) -> Bench:
    """A ``bench.json``, or the folder that holds one.

    Raises:
        UserError: it cannot be read, or is not what ``cvexp.bench`` writes.
    """
    path = path / "bench.json" if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"bench={path}: cannot be read ({error}). Fix: bench=<bench.json of cvexp.bench>") from None
    rows, conditions = mapping(content).get("rows"), mapping(mapping(content).get("conditions"))
    if not isinstance(rows, list) or not isinstance(conditions.get("device"), str):
        raise UserError(f"bench={path}: has no rows or no device. Fix: bench=<bench.json of cvexp.bench>")
    found: dict[str, BenchRow] = {}
    for row in map(mapping, rows):
        total, apart = _milliseconds(row.get("total_ms")), _milliseconds(row.get("proposals_ms"))
        if row.get("batch") == 1 and row.get("precision") == "fp32" and total and total > (apart or 0.0):
            found[str(row.get("model"))] = BenchRow(total, apart, row.get("weights") == "trained")
    if not found:
        raise UserError(
            f"bench={path}: has no row of batch 1 and fp32 with a time, as the papers' tables are. Fix: python -m cvexp.bench"
            " models=[...] batch=1 precision=fp32"
        )
    device = conditions["device"].replace("(R)", "").replace("(TM)", "")
    threads = f", {counted(conditions.get('threads'), 'thread')}" if conditions.get("device_type") == "cpu" else ""
    return Bench(path, one_line(device + threads), found)


def _milliseconds(value: Any) -> float | None:
    """Seconds of a positive finite number of milliseconds; None of anything else."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
    return value / 1000 if usable else None


def run_time(run: Run, external: bool) -> Time | None:
    """What the run's own test took for an image; None where it does not say.

    Args:
        run: the run.
        external: its proposals are made beforehand, and ``test/proposals_seconds_per_image`` says how long that took.
    """
    network, batch = run.number("test/seconds_per_image"), run.number("test/batch_size")
    if network is None or network <= 0:
        return None
    apart = run.number("test/proposals_seconds_per_image") if external else 0.0
    return Time(network, None if apart is None else network + apart, None if batch is None else int(batch))
