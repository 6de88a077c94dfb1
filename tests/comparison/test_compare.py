"""``cvexp.compare``: the numbers, what is said of them, the files, and what is refused."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from written_runs import judged, write_face_run, write_run

from cvexp import compare as command
from cvexp.compare import compare, read_words
from cvexp.comparison.failures import find_failures
from cvexp.comparison.figures import (
    Curve,
    _line,
    bench_speed,
    curve,
    draw_all,
    draw_learning_curves,
    mean_curve,
    over_minutes,
    read_bench,
    validation_name,
)
from cvexp.comparison.notes import notes, of_all
from cvexp.comparison.ranking import Ranking, Spread, headline, lower_is_better, rank_all
from cvexp.comparison.runs import find_runs
from cvexp.comparison.tables import Comparison, latex, markdown, number, plain, tex
from cvexp.errors import UserError

QUICK = "samples=100"


def ranked(folder: Path, **options: Any) -> Ranking:
    rankings = rank_all(find_runs([folder]), samples=200, **options)
    assert len(rankings) == 1
    return rankings[0]


def sentences(folder: Path, **options: Any) -> str:
    """All notes of a comparison of one test set."""
    return "\n".join(notes(ranked(folder, **options)))


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_a_group_s_numbers(tmp_path: Path) -> None:
    for seed, ap, seconds in ((1, 0.4, 60), (2, 0.5, 120), (3, 0.6, 180)):
        write_run(tmp_path / str(seed), seed=seed, results={"test/AP": ap, "test/AP/cat": ap, "train/seconds": seconds})
    entry = ranked(tmp_path).entries[0]
    assert entry.estimate is not None
    assert (entry.estimate.value, entry.estimate.std) == (pytest.approx(0.5), pytest.approx(0.1))
    assert entry.budget["minutes"] == Spread(2.0, pytest.approx(1.0), 3)  # type: ignore[arg-type]
    assert entry.budget["images"] == Spread(80.0, 0.0, 3)
    assert entry.classes["cat"].std == pytest.approx(0.1)
    assert entry.classes["dog"] == Spread(pytest.approx(0.6), pytest.approx(0), 3)  # type: ignore[arg-type]


def test_the_best_group_comes_first_and_of_losses_the_least(tmp_path: Path) -> None:
    for name, ap, loss in (("a", 0.3, 0.1), ("b", 0.5, 0.3), ("c", 0.4, 0.2)):
        write_run(tmp_path / name, name, results={"test/AP": ap, "test/loss": loss})
    assert [entry.label for entry in ranked(tmp_path).entries] == ["b", "c", "a"]
    assert [entry.label for entry in ranked(tmp_path, measure="test/loss").entries] == ["a", "c", "b"]


def test_pairs_on_the_same_images(tmp_path: Path) -> None:
    """b is right wherever a is, and on ten of forty more: real; c is as often right as a, on other pairs: not."""
    write_face_run(tmp_path / "a", judged(40, range(10)), "a")
    write_face_run(tmp_path / "b", judged(40, []), "b")
    write_face_run(tmp_path / "c", judged(40, range(20, 30)), "c")
    ranking = ranked(tmp_path)
    assert ranking.measure == "test/accuracy"
    assert [entry.label for entry in ranking.entries] == ["b", "a", "c"]
    pairs = {(pair.first, pair.second): pair.difference for pair in ranking.pairs}
    assert pairs["b", "a"].value == pytest.approx(0.25)
    assert (pairs["b", "a"].real, pairs["a", "c"].real) == (True, False)
    assert pairs["b", "a"].p_adjusted > pairs["b", "a"].p  # type: ignore[operator]  # three pairs were looked at
    assert pairs["b", "a"].verdict.startswith("Real: b is higher by 0.25")
    low, high = ranking.entries[1].estimate.low, ranking.entries[1].estimate.high  # type: ignore[union-attr]
    assert low is not None
    assert high is not None
    assert 0.55 < low < 0.75 < high < 0.95  # 0.75 +- 2 x 0.068 by the binomial


def test_equal_runs_are_no_difference(tmp_path: Path) -> None:
    for name in "ab":
        write_face_run(tmp_path / name, judged(40, range(5)), name)
    found = ranked(tmp_path).pairs[0].difference
    assert (found.value, found.real) == (0.0, False)


def test_with_a_baseline_or_many_groups_each_is_compared_with_one(tmp_path: Path) -> None:
    for i in range(4):
        write_face_run(tmp_path / str(i), judged(40, range(i)), f"m{i}")
    assert len(ranked(tmp_path).pairs) == 6
    assert [(p.first, p.second) for p in ranked(tmp_path, baseline="m2").pairs] == [
        ("m0", "m2"),
        ("m1", "m2"),
        ("m3", "m2"),
    ]
    for i in range(4, 9):
        write_face_run(tmp_path / str(i), judged(40, range(i)), f"m{i}")
    assert {p.second for p in ranked(tmp_path).pairs} == {"m0"}
    assert "9 groups: each is compared with m0 only" in sentences(tmp_path)


def test_runs_with_other_test_sets_are_not_ranked_together(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "a", test="aaaa")
    write_run(tmp_path / "b", "b", test="bbbb")
    assert [[e.label for e in r.entries] for r in rank_all(find_runs([tmp_path]))] == [["a"], ["b"]]


def test_several_test_sets_are_told_with_what_makes_them_differ(tmp_path: Path) -> None:
    for name, size in (("a", 96), ("b", 128)):
        config = {"data": {"_target_": "cvexp.data.shapes.ShapesData", "image_size": size, "seed": size}}
        write_run(tmp_path / name, name, test=name, config=config)
    said = of_all(rank_all(find_runs([tmp_path])))
    assert (
        said[0]
        == "2 test sets: shapes, 40 images; shapes, 40 images. Scores on different images are not ranked together."
    )
    assert (
        said[1] == "2 of them are called shapes; their runs differ in data.image_size=96 | 128. Fix: give all the same."
    )
    assert of_all(rank_all(find_runs([tmp_path / "a"]))) == []


def test_evidence_of_another_truth_is_left_out_and_said(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_face_run(tmp_path / name, judged(40, [1]), name)
    other = write_face_run(tmp_path / "c", judged(40, [1]), "c")
    arrays = dict(np.load(other / "evidence.npz"))
    np.savez(other / "evidence.npz", **arrays | {"fingerprint": np.array("faces-2")})
    ranking = ranked(tmp_path)
    assert {e.label: e.estimate.low is None for e in ranking.entries if e.estimate} == {
        "a": False,
        "b": False,
        "c": True,
    }
    assert "1 run(s) were measured against another truth" in ranking.notes[0]


def test_evidence_that_contradicts_the_result_is_left_out_and_said(tmp_path: Path) -> None:
    write_face_run(tmp_path / "a", judged(40, [1]), results={"test/accuracy": 0.5})
    ranking = ranked(tmp_path)
    assert ranking.entries[0].estimate is not None
    assert ranking.entries[0].estimate.low is None
    assert "a: its evidence.npz is left out" in ranking.notes[0]


@pytest.mark.parametrize(
    ("name", "lower"),
    [
        ("test/AP", False),
        ("test/AP/traffic error sign", False),  # a class's name says nothing
        ("test/accuracy", False),
        ("test/TAR@1e-3", False),
        ("train/images_per_second", False),
        ("test/EER", True),
        ("test/seconds_per_image", True),
        ("val/loss", True),
        ("test/errors/missed/count", True),
        ("peak/memory_bytes", True),
        ("seed", False),
    ],
)
def test_of_what_less_is_better(name: str, lower: bool) -> None:
    assert lower_is_better(name) is lower


def test_what_is_compared_where_nothing_is_asked_for(tmp_path: Path) -> None:
    write_face_run(tmp_path / "a", judged(40, [1]), results={"val/best": 1.0})
    assert headline(find_runs([tmp_path])) == "test/accuracy"
    write_run(tmp_path / "b", results={"test/AP": None, "test/AP50": None})
    with pytest.raises(UserError, match=r"has none of test/AP.*Fix: measure=<one of its keys: model/parameters"):
        headline(find_runs([tmp_path / "b"]))


def test_spread_of_nothing_and_of_one() -> None:
    assert Spread.of([None, None]) is None
    assert Spread.of([3.0, None]) == Spread(3.0, None, 1)


# --- what is said -----------------------------------------------------------------------------------------------------


def test_budgets_that_differ_are_told_and_those_within_ten_per_cent_are_not(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "a", results={"train/seconds": 720, "train/images": 1000})
    write_run(tmp_path / "b", "b", results={"train/seconds": 1800, "train/images": 2000})
    assert "Not the same budget: a 12 min, 1,000 images; b 30 min, 2,000 images. budget.minutes=" in sentences(tmp_path)
    write_run(tmp_path / "x" / "a", "a", results={"train/seconds": 720, "train/images": 1000})
    write_run(tmp_path / "x" / "b", "b", results={"train/seconds": 790, "train/images": 2000})
    assert "Same budget: minutes within 10 %" in sentences(tmp_path / "x")


SAID: dict[str, tuple[list[dict[str, Any]], str]] = {
    "one seed": ([{}], "One seed only: yolo.*Fix: give a second, python -m cvexp.train model=yolo data=shapes seed=1"),
    "a seed twice": ([{"seed": 4}, {"seed": 4}], "yolo: seed 4 stands there more than once"),
    "no evidence": ([{}], "No interval for yolo: there is no evidence.npz"),
    "a measure missing": (
        [{"seed": 1}, {"seed": 2, "results": {"test/AP": None}}],
        "yolo: 1 of 2 runs have no test/AP",
    ),
    "not known on what": ([{"test": None}], "No run tells what it was tested on"),
    "measured otherwise": (
        [{"results": {"metric/settings": "VOC"}}, {"seed": 1, "results": {"metric/settings": "COCO"}}],
        "Not measured alike: COCO | VOC",
    ),
}


@pytest.mark.parametrize(("runs", "message"), SAID.values(), ids=SAID.keys())
def test_what_has_to_be_said(tmp_path: Path, runs: list[dict[str, Any]], message: str) -> None:
    for i, options in enumerate(runs):
        write_run(tmp_path / str(i), **options)
    assert re.search(message.replace("|", r"\|"), sentences(tmp_path))


def test_other_training_images_and_machines_are_told(tmp_path: Path) -> None:
    for name in "ab":
        folder = write_run(tmp_path / name, name)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["data"]["train"]["hash"] = name
        manifest["platform"]["cpu"] = f"chip {name}"
        (folder / "manifest.json").write_text(json.dumps(manifest))
    said = sentences(tmp_path)
    assert "Not all trained on the same images: a, b." in said
    assert "Minutes and memory are of different machines: chip a, 2 cores, chip b, 2 cores." in said


def test_groups_by_a_choice_say_what_they_mix(tmp_path: Path) -> None:
    write_run(tmp_path / "0", config={"optimizer": {"lr": 1}})
    write_run(tmp_path / "1", config={"optimizer": {"lr": 2}}, seed=1)
    assert "yolo: runs that also differ in optimizer.lr are taken together" in sentences(tmp_path, by=["model"])


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two groups of faces with evidence, one run that was cut off."""
    folder = tmp_path_factory.mktemp("runs")
    timed = {"test/seconds_per_image": 0.01, "test/batch_size": 8, "peak/memory_bytes": 2**30}
    for seed in (1, 2):
        about: dict[str, Any] = {"seed": seed, "curve": [0.1, 0.2 * seed], "results": timed}
        write_face_run(folder / f"a{seed}", judged(40, range(seed)), "a_b%", **about)
        write_face_run(folder / f"c{seed}", judged(40, range(9 + seed)), "=cmd|x", **about)
    (write_run(folder / "cut") / "result.json").unlink()
    return folder


def test_the_files(runs: Path, tmp_path: Path) -> None:
    made = compare([str(runs), QUICK, f"output={tmp_path}"])
    assert {path.name for path in made["files"]} == {path.name for path in tmp_path.iterdir()}
    names = {"compare.json", "compare.md", "compare.tex", "compare.csv", "compare_runs.csv", "compare.html"}
    pictures = {
        f"{name}.{kind}" for name in ("intervals", "learning_curves", "speed_accuracy") for kind in ("png", "svg")
    }
    assert {path.name for path in made["files"]} == names | pictures
    for picture in tmp_path.glob("*.png"):
        assert np.asarray(Image.open(picture).convert("L")).std() > 5  # something is drawn
    whole = json.loads((tmp_path / "compare.json").read_text())
    groups = whole["rankings"][0]["groups"]
    assert [g["group"] for g in groups] == ["a_b%", "=cmd|x"]
    assert groups[0]["value"] == pytest.approx((39 / 40 + 38 / 40) / 2)
    assert groups[0]["memory"] == 1024
    assert whole["unfinished"][0]["folder"].endswith("cut")
    rows = list(csv.DictReader((tmp_path / "compare_runs.csv").open()))
    assert [(row["group"], row["seed"]) for row in rows] == [
        ("a_b%", "1"),
        ("a_b%", "2"),
        ("'=cmd|x", "1"),
        ("'=cmd|x", "2"),
    ]
    assert len(list(csv.DictReader((tmp_path / "compare.csv").open()))) == 2
    page = (tmp_path / "compare.html").read_text()
    assert page.count("<img") == 3
    assert "cut: not finished" in page


def test_markdown_and_latex_keep_their_cells_whatever_a_name_holds(runs: Path) -> None:
    comparison = Comparison([ranked(runs / name) for name in ("a1", "c1")])
    rows = [line for line in markdown(comparison).splitlines() if line.startswith("| ")]
    assert all(len(re.split(r"(?<!\\)\|", row)) == len(re.split(r"(?<!\\)\|", rows[0])) for row in rows[:3])
    text = latex(comparison)
    assert r"a\_b\%" in text
    assert r"=cmd\textbar{}x" in text
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 4  # measure and budget of each
    tables = re.findall(r"\\toprule(.*?)\\bottomrule", text, re.DOTALL)
    cells = [{row.count("&") - row.count(r"\&") for row in table.splitlines() if "&" in row} for table in tables]
    assert cells == [{4}, {5}] * 2


def test_latex_letters() -> None:
    assert tex("a_b & 5 % ± ~^\\{}$#<>") == (
        r"a\_b \& 5 \% $\pm$ \textasciitilde{}\textasciicircum{}\textbackslash{}\{\}\$\#\textless{}\textgreater{}"
    )
    assert tex("-0.5 to +0.5, a-1, lr=-2") == "$-$0.5 to +0.5, a-1, lr=$-$2"
    assert tex("猫é\x1b") == "?é\\textbackslash{}x1b"


def test_numbers_as_they_are_shown() -> None:
    values = (0.41234, 12.345, 12345.6, None, float("nan"), -0.5)
    assert [number(value) for value in values] == ["0.4123", "12.35", "12,346", "-", "-", "-0.5000"]
    assert plain({"a": (np.float64(1), float("inf"), Path("x"))}) == {"a": [1.0, None, "x"]}


def test_several_test_sets_have_pictures_of_their_own(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "a", curve=[0.1, 0.2])
    write_run(tmp_path / "b", "b", test="bbbb", data="voc", curve=[0.1, 0.2])
    made = compare([str(tmp_path), QUICK, f"output={tmp_path}/out"])
    names = {path.name for path in made["files"]}
    assert {"learning_curves_shapes.png", "learning_curves_voc.png", "intervals_voc.svg"} <= names
    assert "Groups: voc" in (tmp_path / "out" / "compare.html").read_text()
    assert "2 test sets" in (tmp_path / "out" / "compare.md").read_text()


def test_a_picture_of_a_former_comparison_does_not_stay(tmp_path: Path) -> None:
    write_run(tmp_path / "a", curve=[0.1])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "speed_accuracy.png").touch()
    made = compare([str(tmp_path), QUICK, f"output={tmp_path}/out"])
    assert "speed_accuracy is not drawn" in made["comparison"].rankings[0].notes[-1]
    assert not (tmp_path / "out" / "speed_accuracy.png").exists()


# --- curves and speed -------------------------------------------------------------------------------------------------


def test_curves_over_images_and_minutes(tmp_path: Path) -> None:
    run = find_runs([write_run(tmp_path / "a", curve=[0.1, 0.3])])[0]
    found = curve(run, "val/AP")
    assert found is not None
    assert found.minutes is not None
    assert (found.images.tolist(), found.minutes.tolist(), found.values.tolist()) == ([40, 80], [1, 2], [0.1, 0.3])
    assert curve(run, "val/nothing") is None
    clocked = "epoch,step,val/AP,time/train_seconds\n0,4,0.1,30\n1,9,0.3,120\n"  # the first half was faster
    (tmp_path / "a" / "metrics.csv").write_text(clocked)
    found = curve(find_runs([tmp_path / "a"])[0], "val/AP")
    assert found is not None
    assert found.minutes is not None
    assert found.minutes.tolist() == [0.5, 2]
    assert validation_name(ranked(tmp_path)) == "val/AP"
    assert validation_name(ranked(tmp_path, measure="model/parameters")) == "val/AP"  # what the run monitors


def test_the_mean_curve_reaches_as_far_as_all_runs() -> None:
    x, mean, spread = mean_curve(
        [(np.array([0.0, 2, 4]), np.array([0.0, 2, 4])), (np.array([1.0, 3]), np.array([3.0, 5]))]
    )
    assert x.tolist() == [1, 2, 3]
    assert mean.tolist() == [2, 3, 4]
    assert spread == pytest.approx([2**0.5] * 3)
    apart = mean_curve([(np.array([0.0, 1]), np.array([5.0, 6])), (np.array([2.0, 3]), np.array([7.0, 8]))])
    assert apart[0].tolist() == [2, 3]


def test_runs_validated_at_the_same_places_share_their_mean_minutes() -> None:
    places, values = np.array([10.0, 20.0]), np.array([0.1, 0.2])
    fast, slow = Curve(places, places / 10, values), Curve(places, places / 2, values)
    assert [minutes.tolist() for minutes, _ in over_minutes([fast, slow])] == [[3, 6], [3, 6]]
    other = Curve(np.array([10.0, 30.0]), np.array([1.0, 3.0]), values)
    untold = Curve(places, None, values)
    assert [minutes.tolist() for minutes, _ in over_minutes([fast, other, untold])] == [[1, 2], [1, 3]]


def test_a_run_of_one_validation_and_groups_beyond_ten_are_drawn(tmp_path: Path) -> None:
    for i in range(12):
        write_run(tmp_path / f"{i}", f"m{i}", curve=[0.1] if i else [0.1, 0.2], results={"test/AP": 0.9 - i / 100})
    ranking = ranked(tmp_path)
    assert draw_learning_curves(ranking, tmp_path / "curves")[1] == ""
    lines = {_line(ranking, entry) for entry in ranking.entries}
    assert len(lines) == 12  # no two alike


def test_times_of_a_bench_by_label_folder_or_model(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a", "a")
    write_run(tmp_path / "runs" / "b_7", "b")
    write_run(tmp_path / "runs" / "c", "c")
    write_run(tmp_path / "runs" / "d" / "0", "d")
    write_run(tmp_path / "runs" / "e" / "0", "e")
    rows = [
        {"model": "0", "batch": 1, "precision": "fp32", "total_ms": 1.0},  # of d or of e: nobody can tell
        {"model": "a", "batch": 1, "precision": "fp32", "total_ms": 5.0},
        {"model": "a", "batch": 8, "precision": "fp32", "total_ms": 2.0},
        {"model": "b_7", "batch": 1, "precision": "fp32", "total_ms": 7.0},
        {"model": "other", "batch": 1, "precision": "fp32", "total_ms": None},
    ]
    (tmp_path / "bench.json").write_text(json.dumps({"conditions": {"device": "chip"}, "rows": rows}))
    speed = bench_speed(ranked(tmp_path / "runs"), read_bench(tmp_path))
    assert speed.seconds == {"a": 0.005, "b": 0.007}
    said = draw_all(ranked(tmp_path / "runs"), speed, tmp_path / "out")[1]
    assert "speed_accuracy lacks c, d, e: no time per image is known of it." in said
    assert speed.source == "decoded picture to boxes, cvexp.bench: batch 1, fp32; chip"


@pytest.mark.parametrize("content", ["", "[]", '{"rows": []}', '{"conditions": {"device": "x"}, "rows": [1]}'])
def test_a_file_that_is_no_bench(tmp_path: Path, content: str) -> None:
    (tmp_path / "bench.json").write_text(content)
    with pytest.raises(UserError, match=r"bench=.*bench\.json: .*Fix: "):
        read_bench(tmp_path / "bench.json")


# --- the command ------------------------------------------------------------------------------------------------------


def test_words(tmp_path: Path) -> None:
    folder = tmp_path / "lr=0.1"
    folder.mkdir()
    paths, options = read_words([str(folder), "a", "measure=test/AP50", "by=[model, data]"])
    assert paths == [folder, Path("a")]
    assert (options["measure"], options["by"], options["samples"]) == ("test/AP50", "model, data", "1000")


REFUSED = {
    "no folder": (["measure=test/AP"], r"no folder is named. Fix: "),
    "no such option": (["{runs}", "mesure=x"], r"no option 'mesure'; did you mean 'measure'\? Fix: "),
    "no such folder": (["nowhere"], r"nowhere: no such folder. Fix: "),
    "no such measure": (["{runs}", "measure=accuracy"], r"did you mean 'test/accuracy'\? Fix: one of .*test/AUC"),
    "no such group": (["{runs}", "baseline=a_b"], r"baseline=a_b: no such group. did you mean 'a_b%'\? Fix: "),
    "no such choice": (["{runs}", "by=modle"], r"by=modle: .*did you mean 'model'"),
    "too few samples": (["{runs}", "samples=9"], r"samples=9: must be a whole number from 100 to 1,000,000. Fix: "),
    "samples that are no number": (["{runs}", "samples=1e3"], r"samples=1e3"),
    "an output that is a file": (["{runs}", "output={runs}/a1/result.json"], r"output=.*is a file. Fix: "),
    "no bench": (["{runs}", "bench={runs}"], r"bench=.*bench\.json: no bench\.json that can be read"),
    "nothing finished": (["{runs}/cut"], r"no finished run there.*Fix: go on with it"),
}


@pytest.mark.parametrize(("words", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"(?s){message}"):
        compare([word.format(runs=runs) for word in words])
    assert not list(tmp_path.iterdir())  # nothing half-made is left


def test_the_command(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["compare", str(runs), QUICK, f"output={tmp_path}/out"])
    command.main()
    shown = capsys.readouterr().out
    for text in ("shapes, 40 pairs", "a_b%", "95 % interval", "left out:", "cut: not finished", "Real: a_b% is higher"):
        assert text in shown
    assert max(len(line) for line in shown.splitlines() if "─" in line) <= 80
    monkeypatch.setattr(sys, "argv", ["compare", "--help"])
    command.main()
    assert capsys.readouterr().out.startswith("usage: python -m cvexp.compare")


def test_jobs_without_a_result_are_shown(tmp_path: Path) -> None:
    from cvexp.sweeps.ledger import Ledger

    sweep = tmp_path / "sweep"
    write_run(sweep / "0", seed=1)
    (write_run(sweep / "1", seed=2) / "result.json").unlink()
    ledger = Ledger(sweep)
    ledger.register([["seed=1"], ["seed=2"], ["seed=3"]])
    ledger.end(0, "finished")
    ledger.end(1, "out_of_memory", message="it wanted 3 GiB")
    found = compare([str(tmp_path), QUICK, f"output={tmp_path}/out"])["comparison"]
    told = [(f.label, f.state, f.message) for f in found.failures]
    assert told == [("seed=2", "sweep/1: out of memory", "it wanted 3 GiB"), ("seed=3", "sweep/2: pending", "")]
    assert not found.unfinished  # job 1 is told of by the ledger
    assert "out of memory" in (tmp_path / "out" / "compare.html").read_text()
    (sweep / "0" / "result.json").unlink()
    with pytest.raises(
        UserError, match=r"no finished run; 2 job\(s\) of sweeps .* first seed=2: sweep/1: out of memory.*Fix: "
    ):
        compare([str(sweep)])
    (sweep / "ledger.db").write_text("no database")
    failures, folders = find_failures([tmp_path], [])
    assert "ledger cannot be read" in failures[0].state
    assert not folders
