"""A search: the space of the words, what is asked and told, killed at any point, the presets; pictures are in test_board."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from killing import MINUTE, start_stub, stop_all, wait_for
from omegaconf import DictConfig

from cvexp.build import SUPPLIED
from cvexp.callbacks.trial_file import STUDY, STUDY_NAME, TrialFile, open_storage
from cvexp.config import check_config, conf_dir
from cvexp.errors import UserError
from cvexp.sweeps.controller import Sweep
from cvexp.sweeps.ledger import FAILED, FINISHED, INTERRUPTED, NOT_FINITE, OUT_OF_MEMORY, PRUNED, RUNNING, Ledger

optuna = pytest.importorskip("optuna", reason="needs the extra sweep")

from cvexp.sweeps.search import TORN, Search, Settings, Space, open_study, read_space  # noqa: E402

STUB = Path(__file__).with_name("stub_search.py")
LR = "optimizer.lr=tag(log,interval(1e-4,1e-1))"


# -- the space -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "kind", "expected"),
    [
        ("a=interval(1,5)", "Float", {"low": 1.0, "high": 5.0, "log": False}),  # whole ends, all between
        ("a=tag(log,interval(1e-4,1e-1))", "Float", {"low": 1e-4, "high": 1e-1, "log": True}),
        ("a=int(interval(1,5))", "Int", {"low": 1, "high": 5, "log": False}),  # both ends are in it
        ("a=tag(int,log,interval(1,64))", "Int", {"low": 1, "high": 64, "log": True}),
        ("a=tag(int,interval(0.5,3.5))", "Int", {"low": 1, "high": 3}),  # rounded inwards
        ("a=range(1,10,2)", "Int", {"low": 1, "high": 9, "step": 2}),  # its end is left out, as in a grid
        ("a=range(10,1,-3)", "Int", {"low": 4, "high": 10, "step": 3}),  # downwards: 10, 7, 4
        ("a=range(0,1,0.25)", "Float", {"low": 0.0, "high": 0.75, "step": 0.25}),
        ("a=tiny,paper", "Categorical", {"choices": ("tiny", "paper")}),
        ("a=choice(1,'x y',[1,2])", "Categorical", {"choices": ("1", r"x\ y", "[1,2]")}),  # as they would be typed
        ("a=2,1,2", "Categorical", {"choices": ("2", "1")}),  # each once
        ("a=shuffle(2,1)", "Categorical", {"choices": ("1", "2")}),  # in one order, also after a restart
    ],
)
def test_words_become_a_space(word: str, kind: str, expected: dict[str, Any]) -> None:
    space = read_space({}, ["model=yolo", word])
    assert space.fixed == ("model=yolo",)
    assert type(space.varied["a"]).__name__ == f"{kind}Distribution"
    assert {name: getattr(space.varied["a"], name) for name in expected} == expected


def test_what_is_typed_wins_over_the_preset() -> None:
    params = {"optimizer.lr": "tag(log,interval(1e-4,1e-2))", "data.batch_size": "8,16", "model.B": 2, "freeze": None}
    space = read_space(params, ["+optimizer.lr=1e-3", "data.batch_size=choice(4,8)"])
    assert space.fixed == ("model.B=2", "freeze=null", "+optimizer.lr=1e-3")
    assert {key: spread.choices for key, spread in space.varied.items()} == {"data.batch_size": ("4", "8")}


def test_a_value_is_typed_so_that_it_is_read_back() -> None:
    space = Space(("model=yolo",), {"optimizer.lr": None, "+data.x": None, "model/backbone": None})
    params = {"optimizer.lr": (0.1 + 0.2) / 1e4, "+data.x": 3, "model/backbone": "'a b'"}
    words = ["model=yolo", "optimizer.lr=3.0000000000000004e-05", "+data.x=3", "model/backbone='a b'"]
    assert space.words(params) == words


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "nothing to search in"),  # no word
        (["model=yolo"], "nothing to search in"),  # none that varies
        (["a=interval(2,1)"], "nothing between 2.0 and 1.0"),  # upside down
        (["a=interval(1,1)"], "nothing between"),  # a point
        (["a=tag(log,interval(0,1))"], "a=tag(log,interval(0,1)): "),  # no logarithm of 0
        (["a=range(5,1)"], "empty range"),
        (["a=tag(log,range(0.1,1,0.1))"], "exclude each other"),
        (["seed=1,2,3"], "finds luck"),  # the best of seeds is no setting
        (["a=choice("], "Fix: "),  # no word of Hydra's
    ],
)
def test_no_space(words: list[str], text: str) -> None:
    with pytest.raises(UserError) as error:
        read_space({}, words)
    assert text in str(error.value)
    assert "Fix: " in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("n_trials", value) for value in (0, -1, 2.5, True, None, "20")),
        *[("n_jobs", 0), ("max_failures", 0), ("seed", -1), ("startup_trials", -1), ("prune_after_trials", -1)],
        *[("sampler", "cmaes"), ("sampler", None), ("pruner", "hyperband")],
    ],
)
def test_settings_that_cannot_be(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"hydra\.sweeper\.{name}=.*Fix: "):
        Settings(**{name: value})


PRESETS = sorted(path.stem for path in (conf_dir() / "search").glob("[!_]*.yaml"))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_searches_keys_that_there_are(preset: str, compose: Callable[..., DictConfig]) -> None:
    """Every key at both ends of its space; each trial has the same epochs, and reports every one."""
    cfg = compose(f"search={preset}", return_hydra_config=True)
    assert (cfg.hydra.mode.name, cfg.hydra.sweeper._target_.rpartition(".")[2]) == ("MULTIRUN", "Search")
    assert cfg.callbacks.pruning.monitor == cfg.monitor
    assert (cfg.trainer.max_epochs, cfg.trainer.check_val_every_n_epoch) == (12, 1)
    space = read_space(cfg.hydra.sweeper.params, [])
    assert len(space.varied) == len(cfg.hydra.sweeper.params) >= 3
    for end in ("low", "high"):
        params = {
            key: getattr(spread, end, None) if hasattr(spread, end) else spread.choices[-(end == "high")]
            for key, spread in space.varied.items()
        }
        check_config(compose(f"search={preset}", *space.words(params)), supplied=SUPPLIED)


# -- asking and telling ----------------------------------------------------------------------------------------------------


class Ends:
    """A launcher whose jobs end at once, each as ``how`` says of its number and learning rate.

    Args:
        ledger: in which they end.
        how: state, and value or None.
        most: jobs after which it is killed, so to say.
    """

    def __init__(self, ledger: Ledger, how: Callable[[int, float], tuple[str, float | None]], most: int = 1000) -> None:
        self.ledger, self.how, self.left = ledger, how, most
        self.batches: list[list[int]] = []

    def launch(self, words: Sequence[Sequence[str]], initial_job_idx: int) -> None:
        self.batches.append([int(job[-1].partition("=")[2]) for job in words])
        for number, job in zip(self.batches[-1], words, strict=True):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            assert TrialFile.read(self.ledger.folder / str(number)) is not None
            lr = float(next(word for word in job if word.startswith("optimizer.lr=")).partition("=")[2])
            state, value = self.how(number, lr)
            if state == RUNNING:
                self.ledger.begin(number)
                continue
            self.ledger.begin(number)
            result = {"val/best": value} if state == FINISHED else None
            self.ledger.end(number, state, message="why" * (state != FINISHED), value=value, result=result)


def nearness(number: int, lr: float) -> tuple[str, float | None]:
    """The best learning rate is 10^-2.5."""
    return FINISHED, -((math.log10(lr) + 2.5) ** 2)


@cache
def empty() -> bytes:
    """A study without trials; to make its tables takes longer than the rest of a test."""
    with TemporaryDirectory() as folder:
        _, storage = open_study(Path(folder), "max", "words")
        storage.engine.dispose()
        return (Path(folder) / STUDY).read_bytes()


def search(folder: Path, how: Any = nearness, most: int = 1000, **settings: Any) -> tuple[Search, Ends]:
    settings = {"n_trials": 4, "sampler": "random"} | settings
    ledger = Ledger(folder)
    if not (folder / STUDY).exists():
        (folder / STUDY).write_bytes(empty())
    launcher = Ends(ledger, how, most)
    space = read_space({}, ["model=yolo", LR, "model.size=tiny,paper"])
    study, storage = open_study(folder, "max", "words")
    return Search(Sweep(ledger, launcher, ("failed",)), study, storage, space, Settings(**settings)), launcher


def trials(folder: Path) -> list[Any]:
    return optuna.load_study(study_name=STUDY_NAME, storage=open_storage(folder / STUDY)).trials


def told(folder: Path) -> list[str]:
    return [trial.state.name for trial in trials(folder)]


def test_a_search_from_the_first_to_the_last(tmp_path: Path) -> None:
    folder = tmp_path / "a ?#%20 search"  # signs that an address would change
    found, launcher = search(folder, n_trials=3)
    assert found.run() == ""
    assert launcher.batches == [[0], [1], [2]]
    jobs = found.sweep.ledger.jobs()
    for job, trial in zip(jobs, trials(folder), strict=True):
        assert (job.trial, trial.state.name, trial.value) == (trial.number, "COMPLETE", job.value)
        assert job.words == ("model=yolo", f"optimizer.lr={trial.params['optimizer.lr']!r}",
                             f"model.size={trial.params['model.size']}")  # fmt: skip
    assert len({job.words for job in jobs}) == 3, "each question is another"
    about = json.loads((folder / "1" / "trial.json").read_text())
    assert (about["study"], about["trial"]) == ("../study.db", 1)
    assert not list(folder.glob(".*part*"))

    longer, launcher = search(folder, n_trials=5)  # n_trials is the total
    assert longer.run() == ""
    assert launcher.batches == [[3], [4]]
    done, launcher = search(folder, n_trials=5)
    assert done.run() == ""
    assert launcher.batches == [], "nothing is asked that is not wanted"


@pytest.mark.parametrize(("sampler", "learns"), [("tpe", True), ("random", False)])
def test_a_sampler_made_anew_for_each_trial_learns(sampler: str, learns: bool) -> None:
    """Distance to the best rate, 10^-2.5, of the second half of 60 trials; by chance it is 0.75 on the average."""
    study = optuna.create_study(direction="maximize")
    varied = read_space({}, [LR, "model.size=tiny,paper"]).varied
    settings = Settings(sampler=sampler)
    distances = []
    for number in range(60):
        study.sampler = settings.make_sampler(number)
        trial = study.ask(fixed_distributions=dict(varied))
        distances.append(abs(math.log10(trial.params["optimizer.lr"]) + 2.5))
        study.tell(trial, -distances[-1])
    assert (sum(distances[30:]) / 30 < 0.5) is learns


def test_what_became_of_a_job_is_told(tmp_path: Path) -> None:
    ends = [(FINISHED, 0.5), (PRUNED, 0.1), (OUT_OF_MEMORY, None), (NOT_FINITE, None), (FAILED, None), (FINISHED, None),
            (FINISHED, float("nan")), (FINISHED, 0.7)]  # fmt: skip
    found, _ = search(tmp_path, lambda number, lr: ends[number], n_trials=5, max_failures=4)
    assert found.run() == ""
    assert told(tmp_path) == ["COMPLETE", "PRUNED", "FAIL", "FAIL", "FAIL", "FAIL", "FAIL", "COMPLETE"]
    states = [trial.user_attrs.get("state") for trial in trials(tmp_path)]
    assert states == [None, None, OUT_OF_MEMORY, NOT_FINITE, FAILED, FAILED, FAILED, None]
    assert "no val/best" in trials(tmp_path)[5].user_attrs["message"]
    assert [t.value for t in trials(tmp_path) if t.state.name == "COMPLETE"] == [0.5, 0.7], "nonsense teaches nothing"
    assert len(trials(tmp_path)) == 8, "five that say something, and three that do not count"


def test_failures_in_a_row_end_it(tmp_path: Path) -> None:
    """The second job is a result; then three fail."""
    ends = {1: (FINISHED, 0.5)}
    found, launcher = search(tmp_path, lambda number, lr: ends.get(number, (FAILED, None)), n_trials=9, max_failures=3)
    ended = found.run()
    assert launcher.batches == [[0], [1], [2], [3], [4]]
    assert "3 jobs in a row have failed" in ended
    assert "(job 4) with: why" in ended


def test_a_job_that_does_not_end_is_not_started_for_ever(tmp_path: Path) -> None:
    """Its trial stays open for the next session."""
    found, launcher = search(tmp_path, lambda number, lr: (INTERRUPTED, None), n_trials=2, max_failures=9)
    assert found.run() == ""
    assert launcher.batches == [[0], [1]]
    again, launcher = search(tmp_path, n_trials=2)
    again.run()
    assert launcher.batches == [[0], [1]]
    assert told(tmp_path) == ["COMPLETE", "COMPLETE"]


def test_several_at_a_time(tmp_path: Path) -> None:
    found, launcher = search(tmp_path, n_trials=5, n_jobs=2, sampler="tpe", startup_trials=2)
    found.run()
    assert launcher.batches == [[0, 1], [2, 3], [4]]
    assert told(tmp_path) == ["COMPLETE"] * 5


# -- killed ----------------------------------------------------------------------------------------------------------------


def test_killed_anywhere_it_asks_what_it_would_have_asked(tmp_path: Path) -> None:
    """After each job: asked, started, ended but not told. What comes of it is what an uninterrupted search finds."""
    whole, _ = search(tmp_path / "whole", n_trials=4, sampler="tpe", startup_trials=2)
    whole.run()
    folder = tmp_path / "killed"
    for done in (1, 0, 2):
        part, _ = search(folder, most=done, n_trials=4, sampler="tpe", startup_trials=2)
        with pytest.raises(KeyboardInterrupt):
            part.run()
        open_ = [trial.number for trial in trials(folder) if trial.state.name == "RUNNING"]
        assert len(open_) == 1
    last, launcher = search(folder, n_trials=4, sampler="tpe", startup_trials=2)
    last.run()
    assert launcher.batches == [[3]], "the open trial is the same job"
    expected = [(trial.params, trial.value) for trial in trials(tmp_path / "whole")]
    assert [(trial.params, trial.value) for trial in trials(folder)] == expected
    assert [job.number for job in last.sweep.ledger.jobs()] == [0, 1, 2, 3]


def test_a_job_that_had_ended_is_told_and_not_repeated(tmp_path: Path) -> None:
    first, _ = search(tmp_path, most=0)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    Ledger(tmp_path).end(0, FINISHED, result={"val/best": 0.25})  # its process wrote it when the conductor was gone
    again, launcher = search(tmp_path, n_trials=1)
    again.run()
    assert launcher.batches == []
    assert [(trial.state.name, trial.value) for trial in trials(tmp_path)] == [("COMPLETE", 0.25)]


def test_a_trial_that_was_killed_while_it_was_asked_for_is_put_aside(tmp_path: Path) -> None:
    first, _ = search(tmp_path)
    first.study.ask()  # it has no values yet
    again, _ = search(tmp_path, n_trials=2)
    again.run()
    assert told(tmp_path) == ["FAIL", "COMPLETE", "COMPLETE"]
    assert trials(tmp_path)[0].user_attrs["state"] == TORN
    assert [(job.number, job.trial) for job in again.sweep.ledger.jobs()] == [(0, 1), (1, 2)]


def test_no_half_study_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(optuna, "create_study", broken)
    with pytest.raises(KeyboardInterrupt):
        open_study(tmp_path, "max", "words")
    assert not (tmp_path / STUDY).exists()
    monkeypatch.undo()
    assert open_study(tmp_path, "max", "words")[0].trials == []


# -- what does not go on ---------------------------------------------------------------------------------------------------


def test_another_search_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    found, _ = search(tmp_path, n_trials=1)
    found.run()
    with pytest.raises(UserError, match=r"study\.db: was begun with monitor_mode=max, now it is min\. Fix: "):
        open_study(tmp_path, "min", "words")
    with pytest.raises(UserError, match="was begun with other words, words, now they are others"):
        open_study(tmp_path, "max", "others")
    other, _ = search(tmp_path, n_trials=3)
    object.__setattr__(other.space, "varied", read_space({}, [LR, "model.size=tiny,base"]).varied)
    for _ in range(2):  # also the second time
        with pytest.raises(UserError, match=r"the choices of a search cannot change .*Fix: "):
            other.run()
    again, launcher = search(tmp_path, n_trials=2)  # the first words go on
    again.run()
    assert len(launcher.batches) == 1


def test_an_interval_may_change(tmp_path: Path) -> None:
    found, _ = search(tmp_path, n_trials=1)
    found.run()
    wider, _ = search(tmp_path, n_trials=2)
    varied = read_space({}, ["optimizer.lr=tag(log,interval(1e-6,1e-5))", "model.size=tiny,paper"]).varied
    object.__setattr__(wider.space, "varied", varied)
    wider.run()
    assert 1e-6 <= trials(tmp_path)[1].params["optimizer.lr"] <= 1e-5


@pytest.mark.parametrize("content", [b"", b"no database at all" * 100], ids=["empty", "text"])
def test_a_file_that_is_no_study(content: bytes, tmp_path: Path) -> None:
    (tmp_path / STUDY).write_bytes(content)
    with pytest.raises(UserError, match=r"study\.db.*Fix: "):
        open_study(tmp_path, "max", "words")


# -- the command -----------------------------------------------------------------------------------------------------------


def states(sweep: Path) -> list[str]:
    return [job.state for job in Ledger(sweep).jobs()] if (sweep / "ledger.db").exists() else []


WORDS = ("search=yolo", LR, "data.batch_size=8", "model.loss.lambda_noobj=0.5", "model.loss.lambda_coord=5",
         "optimizer.weight_decay=0.01", "hydra.sweeper.sampler=random", "hydra.sweep.dir=mine")  # fmt: skip


@pytest.mark.slow
def test_killed_in_its_second_trial_and_resumed(tmp_path: Path) -> None:
    """By a preset, without -m: the first job is not touched, the second goes on from its checkpoint, the total holds."""
    sweep = tmp_path / "mine"
    process = start_stub(STUB, tmp_path, *WORDS, "hydra.sweeper.n_trials=2", step=0.3)
    steps = sweep / "1" / "steps.txt"
    wait_for(lambda: steps.exists() and steps.read_text().count("\n") >= 2, process)
    stop_all(process)
    asked = [trial.params for trial in trials(sweep)]
    assert states(sweep)[:2] == [FINISHED, RUNNING]

    process = start_stub(STUB, tmp_path, "sweep=mine")
    text, _ = process.communicate(timeout=2 * MINUTE)
    assert process.returncode == 0, text
    assert states(sweep) == [FINISHED] * 2
    assert [trial.params for trial in trials(sweep)] == asked, "the same trials, not new ones"
    assert [(trial.state.name, trial.value) for trial in trials(sweep)] == [
        ("COMPLETE", job.value) for job in Ledger(sweep).jobs()
    ]
    assert (sweep / "0" / "steps.txt").read_text().split() == ["0", "1", "2"]
    assert sorted(set(steps.read_text().split())) == ["0", "1", "2"]
    assert steps.read_text().split().count("0") == 1, "it did not begin again"
    assert (sweep / "leaderboard.html").is_file()
    assert "python -m cvexp.train search=yolo" in text
    assert "hydra.mode=RUN" in text, "what is copied trains once"


@pytest.mark.slow
def test_killed_again_and_again(tmp_path: Path) -> None:
    """At moments of a fixed chance; what is left is what an uninterrupted search finds."""
    words = (*WORDS, "hydra.sweeper.n_trials=5")
    process = start_stub(STUB, tmp_path, *(w.replace("mine", "whole") for w in words))
    assert process.wait(4 * MINUTE) == 0
    sweep, chance = tmp_path / "mine", random.Random(1)
    for _ in range(12):
        process = start_stub(STUB, tmp_path, *(["sweep=mine"] if (sweep / "ledger.db").exists() else words))
        time.sleep(chance.uniform(1, 6))
        stop_all(process)
    process = start_stub(STUB, tmp_path, "sweep=mine")
    assert process.wait(4 * MINUTE) == 0
    found = [(t.params, t.value) for t in trials(sweep) if t.user_attrs.get("state") != TORN]
    if len(found) == len(trials(sweep)):  # a torn trial shifts the numbers, and with them what is asked
        assert found == [(trial.params, trial.value) for trial in trials(tmp_path / "whole")]
    assert len(found) == 5
    for job in Ledger(sweep).jobs():
        assert sorted(set((sweep / str(job.number) / "steps.txt").read_text().split())) == ["0", "1", "2"]
