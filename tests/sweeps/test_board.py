"""The board: order, changed words, seeds, commands, files that hold what the screen does, pictures, hostile words."""

from __future__ import annotations

import csv
import io
import math
import random
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cvexp.errors import UserError
from cvexp.leaderboard import leaderboard
from cvexp.sweeps import pictures
from cvexp.sweeps.board import markdown, minutes, page, show_sweep, table_csv
from cvexp.sweeps.ledger import FAILED, FINISHED, INTERRUPTED, OUT_OF_MEMORY, PRUNED, Job, Ledger
from cvexp.sweeps.ranking import Ranking, short


def job(number: int, words: str, state: str = FINISHED, value: float | None = None, **more: Any) -> Job:
    result = {} if value is None or state != FINISHED else {"val/best": value, "test/AP": value - 0.1}
    return Job(number, tuple(words.split()), state, value=value, **{"result": result} | more)


def ranking(*jobs: Job, mode: str = "max", folder: Path = Path("sweep"), **more: Any) -> Ranking:
    return Ranking(folder, jobs, mode=mode, **more)


GRID = (
    job(0, "model=yolo data=voc seed=1", value=0.5),
    job(1, "model=yolo data=voc seed=2", value=0.7),
    job(2, "model=ssd data=voc seed=1", value=0.9),
    job(3, "model=ssd data=voc seed=2", OUT_OF_MEMORY, message="CUDA out of memory"),
)


# -- order -----------------------------------------------------------------------------------------------------------------


def test_the_best_first_then_the_pruned_then_the_others() -> None:
    jobs = (
        job(0, "a=0", FAILED),
        job(1, "a=1", value=0.2),
        job(2, "a=2", PRUNED, 0.8),  # nobody knows what would have become of it
        job(3, "a=3", value=0.4),
        job(4, "a=4", value=float("nan")),  # no value
        job(5, "a=5", PRUNED, 0.9),
        job(6, "a=6", value=0.4),  # as good as job 3, and later
        job(7, "a=7", INTERRUPTED, 0.99),  # of an earlier attempt
    )
    assert [found.number for found in ranking(*jobs).ranked] == [3, 6, 1, 5, 2, 0, 4, 7]
    assert [found.number for found in ranking(*jobs, mode="min").ranked] == [1, 3, 6, 2, 5, 0, 4, 7]
    assert ranking(*jobs).best is jobs[3]
    assert ranking(*jobs, mode="min").best is jobs[1]


@pytest.mark.parametrize(
    "jobs", [(), (job(0, "a=1", FAILED),), (job(0, "a=1", PRUNED, 0.5),)], ids=["none", "failed", "pruned"]
)
def test_there_may_be_no_best(jobs: tuple[Job, ...]) -> None:
    assert ranking(*jobs).best is None


# -- words -----------------------------------------------------------------------------------------------------------------


def test_only_words_that_differ_are_shown() -> None:
    found = ranking(
        job(0, "model=yolo +data.x=1 optimizer.lr=0.00123456789", value=1.0),
        job(1, "model=yolo data.x=1 scheduler.lr=2 optimizer.lr=0.1", value=0.5),
    )
    assert found.varied == ("optimizer.lr", "scheduler.lr")
    assert found.changed(found.jobs[0]) == {"optimizer.lr": "0.00123456789", "scheduler.lr": "-"}
    assert found.names == {"optimizer.lr": "optimizer.lr", "scheduler.lr": "scheduler.lr"}, "two keys end in lr"


def test_words_typed_when_it_went_on_tell_no_jobs_apart() -> None:
    found = ranking(job(0, "model=yolo seed=1"), job(1, "model=yolo seed=2 callbacks.last.minutes=1 trainer.devices=2"))
    assert found.varied == ("seed",)
    swept = ranking(job(0, "trainer.precision=32"), job(1, "trainer.precision=16"))
    assert swept.varied == ("trainer.precision",)


def test_keys_are_as_short_as_they_are_told_apart() -> None:
    found = ranking(
        job(0, "optimizer.lr=1 model/backbone=a model.a.b=1 model.c.b=1 b=1 seed=1"),
        job(1, "optimizer.lr=2 model/backbone=b model.a.b=2 model.c.b=2 b=2 seed=2"),
    )
    names = ["lr", "backbone", "a.b", "c.b", "b", "seed"]
    assert list(found.names.values()) == names


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("0.000123456789", "0.0001235"),
        ("12345", "12345"),
        ("-3", "-3"),
        ("1e-05", "1e-05"),
        ("yolo", "yolo"),
        ("nan", "nan"),
        ("", ""),
    ],
)
def test_numbers_are_short(text: str, shown: str) -> None:
    assert short(text) == shown


def test_commands_are_copied_as_they_are(tmp_path: Path) -> None:
    hostile = job(0, "search=yolo", value=0.5)
    hostile = Job(0, ("search=yolo", "data.root='a b'", "x=$(touch y)"), FINISHED, value=0.5, result={})
    found = ranking(hostile, folder=tmp_path / "my sweep")
    words = shlex.split(found.command(hostile))
    assert words == ["python", "-m", "cvexp.train", "search=yolo", "data.root='a b'", "x=$(touch y)", "hydra.mode=RUN"]
    assert ranking(GRID[0]).command(GRID[0]).endswith("model=yolo data=voc seed=1"), "no search, no more words"
    assert found.predict_command(hostile) is None
    checkpoint = tmp_path / "my sweep" / "0" / "checkpoints" / "best.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    assert f"'ckpt={checkpoint}' source=<image" in str(found.predict_command(hostile))
    faces = Job(0, (), FINISHED, value=0.5, result={"test/AUC": 0.9})
    assert "against=" in str(found.predict_command(faces))


# -- scores ----------------------------------------------------------------------------------------------------------------


def test_seeds_are_put_together() -> None:
    """0.5 and 0.7: mean 0.6, standard deviation 0.1 * sqrt(2); the test is 0.1 below. The other has one finished seed."""
    (group,) = ranking(*GRID).seeds
    assert [found.number for found in group.jobs] == [0, 1]
    assert group.mean == pytest.approx(0.6)
    assert group.std == pytest.approx(0.1 * math.sqrt(2))
    assert (group.test_mean, group.test_std) == (pytest.approx(0.5), pytest.approx(0.1 * math.sqrt(2)))
    assert ranking(GRID[0], GRID[2]).seeds == (), "no seed differs"


def test_the_best_group_is_first() -> None:
    jobs = [
        job(4 * s + k, f"a={k} seed={s}", value=[0.3, 0.1, 0.9, 0.2][k] + s / 100) for s in range(2) for k in range(4)
    ]
    jobs.sort(key=lambda found: found.number)
    for mode, best in (("max", "a=2"), ("min", "a=1")):
        assert ranking(*jobs, mode=mode).seeds[0].jobs[0].words[0] == best


@pytest.mark.parametrize(
    ("result", "name"),
    [
        ({"test/AP": 0.5, "test/AP50": 0.9}, "test/AP"),  # the test's own name of val/AP
        ({"test/accuracy": 0.5, "test/AUC": 0.9}, "test/accuracy"),  # a headline of faces
        ({"train/seconds": 3.0}, None),  # not tested
    ],
)
def test_the_test_score(result: dict[str, float], name: str | None) -> None:
    found = ranking(Job(0, (), FINISHED, value=1.0, result=result))
    assert found.test_name == name
    assert found.test_score(found.jobs[0]) == (None if name is None else 0.5)


def test_minutes_of_a_job_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1180.0)
    assert minutes(Job(0, (), "running", started=1000.0, seconds=60.0, result={})) == pytest.approx(4.0)
    assert minutes(Job(0, (), FINISHED, started=1000.0, seconds=60.0, result={})) == pytest.approx(1.0)


# -- files -----------------------------------------------------------------------------------------------------------------


def ledger_of(folder: Path, count: int = 12, **about: Any) -> Ledger:
    """A search of ``count`` jobs, whose rate decides and whose other key does not; one pruned, one out of memory."""
    chance = random.Random(0)
    ledger = Ledger(folder)
    ledger.note(**{"monitor": "val/AP", "mode": "max", "n_trials": count, "log": ["optimizer.lr"]} | about)
    for number in range(count):
        lr = 10 ** chance.uniform(-4, -1)
        words = [
            "model=yolo",
            f"optimizer.lr={lr!r}",
            f"model.size={chance.choice(['tiny', 'paper'])}",
            f"x={chance.random()!r}",
        ]
        ledger.register([words], [f"trial {number}"], [number])
        ledger.begin(number)
        value = math.exp(-((math.log10(lr) + 2.5) ** 2))
        if number == 3:
            ledger.end(number, PRUNED, value=value / 2, message="pruned after validation 1")
        elif number == 5:
            ledger.end(number, OUT_OF_MEMORY, message="no <b>memory</b> | left\n[red]at all", peak_memory=3 * 2**30)
        else:
            ledger.end(number, FINISHED, result={"val/best": value, "test/AP": value, "peak/memory_bytes": 2**30})
    return ledger


def test_screen_and_files_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = ledger_of(tmp_path)
    found = show_sweep(ledger)
    printed = capsys.readouterr().out
    assert found.best is not None
    best = f"{found.best.value:.4f}"
    text = {
        name: (tmp_path / name).read_text("utf-8") for name in ("leaderboard.md", "leaderboard.csv", "leaderboard.html")
    }
    assert best in printed
    assert best in text["leaderboard.md"]
    assert best in text["leaderboard.html"]
    assert "12 jobs of a search for 12: 10 finished, 1 pruned, 1 out of memory" in printed
    assert "job 5, out_of_memory: no <b>memory</b> | left [red]at all" in printed, "as it is, in one line"
    assert "<b>memory" not in text["leaderboard.html"]
    assert found.command(found.best) in printed
    rows = list(csv.DictReader(io.StringIO(text["leaderboard.csv"])))
    assert len(rows) == 12
    assert (rows[0]["job"], float(rows[0]["val/AP"])) == (str(found.best.number), found.best.value)
    assert rows[0]["optimizer.lr"] in found.best.words[1], "with all its digits"
    assert [row["state"] for row in rows[-2:]] == [PRUNED, OUT_OF_MEMORY]
    assert float(rows[-1]["peak_gib"]) == 3.0
    names = [f"{name}.{end}" for name in ("history", "importance", "parallel") for end in ("png", "svg")]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(names)
    assert not list(tmp_path.rglob("*.part"))


def test_markdown_keeps_its_columns() -> None:
    found = ranking(*GRID[:3], job(3, "model=a|b data=voc seed=3", FAILED, message="a | b\nc"))
    lines = [line.replace("\\|", "") for line in markdown(found).splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines[:6]} == {9}
    assert "- job 3, failed: a \\| b c" in markdown(found)


@pytest.mark.parametrize(
    "jobs",
    [
        (),  # none yet
        (job(0, "model=yolo", "pending"),),  # none begun
        (job(0, "model=yolo", value=0.5),),  # one, which differs from nothing
        (job(0, "a=1", value=0.5), job(1, "a=2", value=0.5)),  # no difference between values
        (job(0, "a=$x_1", value=0.5), job(1, "a=<b>", value=-1e9)),  # no formula, no HTML
        tuple(job(k, f"a={k} seed={k}", FAILED, message="x") for k in range(40)),  # nothing but failures, and many
    ],
)
def test_every_sweep_has_a_board(jobs: tuple[Job, ...], tmp_path: Path) -> None:
    from cvexp.sweeps.board import draw, show, write

    found = ranking(*jobs, folder=tmp_path)
    write(found, *draw(found))
    show(found)
    assert page(found, {}).html()
    assert len(table_csv(found).splitlines()) == len(jobs) + 1


# -- pictures --------------------------------------------------------------------------------------------------------------


def test_a_logarithm_where_it_fits() -> None:
    magnitudes = [repr(10.0**k) for k in range(-4, 0)]
    evenly = ["0.0005", "0.1", "0.15", "0.2", "0.3"]  # 600 times, but not by magnitude
    assert pictures.Scale.of("lr", magnitudes).kind == "log"
    assert pictures.Scale.of("jitter", evenly).kind == "linear"
    assert pictures.Scale.of("jitter", evenly, log=True).kind == "log", "the search knows"
    assert pictures.Scale.of("x", ["0", "1000"], log=True).kind == "linear", "0 has no logarithm"
    assert pictures.Scale.of("model", ["yolo", "1"]).kind == "category"
    assert pictures.Scale.of("seed", ["1", "2"]).kind == "category"


def test_places_on_an_axis() -> None:
    scale = pictures.Scale.of("lr", ["0.0001", "0.01", "0.1"])
    assert [scale.place(text) for text in ("0.0001", "0.01", "0.1")] == pytest.approx([0, 2 / 3, 1])
    assert [place for place, _ in scale.ticks()] == pytest.approx([0, 2 / 3, 1]), "few values are all named"
    assert pictures.Scale.of("x", ["3"]).place("3") == 0.5
    categories = pictures.Scale.of("x", ["10", "9", "paper"])
    assert categories.names == ("paper", "9", "10"), "numbers in their order"


def test_what_matters_is_found(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="needs the extra sweep")
    found = pictures.importance(Ranking.of(ledger_of(tmp_path, 40)))
    assert (found.jobs, found.best) == (38, 13)
    assert next(iter(found.shares)) == "optimizer.lr"
    assert found.shares["optimizer.lr"] > found.chance["optimizer.lr"]
    assert found.shares["x"] < found.chance["x"], "what does nothing is not above chance"
    assert sum(found.shares.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("jobs", "text"),
    [
        ((), "0 finished job"),
        (tuple(job(k, f"a={k} b={k}", value=float(k)) for k in range(7)), "7 finished job"),
        (tuple(job(k, f"a={k}", value=float(k)) for k in range(9)), "in 1 key"),
        (tuple(job(k, f"a={k} b={k}", value=1.0) for k in range(9)), "the same value"),
    ],
    ids=["none", "few jobs", "one key", "no difference"],
)
def test_no_importance_from_too_little(jobs: tuple[Job, ...], text: str) -> None:
    pytest.importorskip("optuna", reason="needs the extra sweep")
    with pytest.raises(UserError, match=rf"{text}.*Fix: "):
        pictures.importance(ranking(*jobs))


# -- the command -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "text"),
    [([], "is missing"), (["--best"], "no such option"), (["nowhere"], "nowhere: no sweep")],
)
def test_refusal(words: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"{text}.*Fix: "):
        leaderboard(words)
    assert list(tmp_path.iterdir()) == []


def test_help_is_light() -> None:
    code = "import sys; sys.argv = ['x', '--help']; from cvexp.leaderboard import main; main(); print('torch' in sys.modules)"
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "usage: python -m cvexp.leaderboard" in text
    assert text.endswith("False\n")
