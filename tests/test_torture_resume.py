"""``scripts/torture_resume.py``: every kind of difference is reported; runs are killed and go on; Ctrl-C loses nothing finished.

The runs here are a stand-in of a few lines, so that no test waits for torch; the last test (slow) kills a real one.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import math
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from rich.console import Console

from cvexp.build import SUPPLIED
from cvexp.config import check_config, check_overrides
from cvexp.errors import UserError

MODELS = ("yolo", "faster_rcnn_fpn", "facenet")


def _script() -> ModuleType:
    path = Path(__file__).resolve().parents[1] / "scripts" / "torture_resume.py"
    spec = importlib.util.spec_from_file_location("torture_resume", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["torture_resume"] = module  # dataclasses and Hydra look there
    spec.loader.exec_module(module)
    return module


script = _script()


# --- comparing -------------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, Any]:
    """The four files of a run in ``folder``, as Python."""
    weights = {"w": torch.tensor([1.0, -0.0, math.nan]), "n": torch.tensor(3), "none": torch.zeros(0)}
    last = {
        "epoch": 3,
        "state_dict": weights,
        "current_model_state": {"w": torch.tensor([2.0])},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(24.0)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]}],
        "lr_schedulers": [{"last_epoch": 24, "lr_lambdas": [None]}],
        "loops": {"fit_loop": {"epoch_progress": {"total": {"ready": 3}}}},
        "callbacks": {
            "Budget": {"elapsed": 1.5},
            "EMA": {"updates": 24},
            "ModelCheckpoint": {
                "best_model_path": f"{folder}/checkpoints/best.ckpt",
                "best_k_models": {f"{folder}/checkpoints/best.ckpt": torch.tensor(0.5)},
            },
        },
        "position": {"step": 24, "random": [{"torch": torch.arange(5, dtype=torch.uint8), "python": [3, None]}]},
        "cvexp": {"classes": ["a"], "config": {"paths": {"output": str(folder)}, "resume": None}},
    }  # fmt: skip
    best = {"state_dict": {"w": torch.tensor([7.0])}, "epoch": 2, "cvexp": {"config": {}}}
    rows = ["step,train/loss,val/AP,time/step_seconds", "0,1.5,,0.1", "1,1.25,,0.2", "1,,0.5,"]
    scores = {"test/AP": 0.25, "train/steps": 24, "train/seconds": 3.5, "train/images_per_second": 9.0}
    return {"last": last, "best": best, "rows": rows, "scores": scores}


def lay(folder: Path, content: dict[str, Any]) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("last", "best"):
        torch.save(content[name], folder / "checkpoints" / f"{name}.ckpt")
    (folder / "metrics.csv").write_text("\n".join(content["rows"]) + "\n")
    (folder / "result.json").write_text(json.dumps(content["scores"]))
    return folder


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return lay(tmp_path / "whole", contents(tmp_path / "whole"))


def put(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Sets what lies at all but the last of ``path`` to the last."""

    def change(content: dict[str, Any]) -> None:
        node: Any = content
        for key in path[:-2]:
            node = node[key]
        node[path[-2]] = path[-1]

    return change


DIFFERENT = {
    # checkpoint
    "a weight": (put("last", "state_dict", "w", torch.tensor([1.0000001, -0.0, math.nan])), "last.ckpt/state_dict/w: 1 of 3"),
    "a weight's sign of zero": (put("last", "state_dict", "w", torch.tensor([1.0, 0.0, math.nan])), "last.ckpt/state_dict/w"),
    "a weight's kind": (put("last", "state_dict", "n", torch.tensor(3.0)), "torch.int64 [] and torch.float32 []"),
    "a weight's shape": (put("last", "state_dict", "n", torch.tensor([3])), "torch.int64 [] and torch.int64 [1]"),
    "a weight more": (put("last", "state_dict", "more", torch.tensor(3.0)), "state_dict/more: only in the second"),
    "a weight less": (lambda c: c["last"]["state_dict"].pop("n"), "state_dict/n: only in the first"),
    "a live weight": (put("last", "current_model_state", "w", torch.tensor([2.5])), "state/w: 1 of 1 numbers, by up to 0.5"),
    "no live weights": (lambda c: c["last"].pop("current_model_state"), "current_model_state: only in the first"),
    "optimizer": (put("last", "optimizer_states", 0, "state", 0, "step", torch.tensor(23.0)), "optimizer_states/0/state/0/step"),
    "an option": (put("last", "optimizer_states", 0, "param_groups", 0, "betas", (0.9, 0.98)), "betas/1: 0.99 and 0.98"),
    "schedule": (put("last", "lr_schedulers", 0, "last_epoch", 25), "lr_schedulers/0/last_epoch: 24 and 25"),
    "loops": (put("last", "loops", "fit_loop", "epoch_progress", "total", "ready", 4), "ready: 3 and 4"),
    "whole number or not": (put("last", "loops", "fit_loop", "epoch_progress", "total", "ready", 3.0), "ready: 3 and 3.0"),
    "callback": (put("last", "callbacks", "EMA", "updates", 23), "callbacks/EMA/updates: 24 and 23"),
    "a callback less": (lambda c: c["last"]["callbacks"].pop("EMA"), "callbacks/EMA: only in the first"),
    "random numbers": (put("last", "position", "random", 0, "torch", torch.arange(1, 6, dtype=torch.uint8)), "torch: 5 of 5"),
    "processes": (put("last", "position", "random", []), "last.ckpt/position/random: 1 and 0 entries"),
    "another best file": (put("last", "callbacks", "ModelCheckpoint", "best_model_path", "x/best.ckpt"), "best_model_path"),
    "class names": (put("last", "cvexp", "classes", ["b"]), "cvexp/classes/0: 'a' and 'b'"),
    "best weights": (put("best", "state_dict", "w", torch.tensor([7.5])), "best.ckpt/state_dict/w"),
    # metrics.csv
    "a value": (put("rows", 1, "0,1.50001,,0.1"), "metrics.csv/0/train/loss: '1.5' and '1.50001'"),
    "a row less": (lambda c: c["rows"].pop(2), "metrics.csv: 3 and 2 entries"),
    "a row twice": (lambda c: c["rows"].insert(2, c["rows"][2]), "metrics.csv: 3 and 4 entries"),
    "rows in another order": (lambda c: c["rows"].append(c["rows"].pop(1)), "metrics.csv/0/step: '0' and '1'"),
    "a row cut off": (put("rows", 3, "1,,0."), "metrics.csv/2/val/AP: '0.5' and '0.'"),
    # result.json
    "a score": (put("scores", "test/AP", 0.25000001), "result.json/test/AP: 0.25 and 0.25000001"),
    "a score less": (lambda c: c["scores"].pop("test/AP"), "result.json/test/AP: only in the first"),
    "steps": (put("scores", "train/steps", 23), "result.json/train/steps: 24 and 23"),
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_difference_is_reported(name: str, whole: Path, tmp_path: Path) -> None:
    change, text = DIFFERENT[name]
    content = contents(tmp_path / "other")
    change(content)
    found = script.compare(whole, lay(tmp_path / "other", content))
    assert any(text in line for line in found), found
    if "order" not in name and "row less" not in name and "row twice" not in name:
        assert len(found) == 1, "and nothing else"


def test_the_last_bit_of_a_number_is_reported(whole: Path, tmp_path: Path) -> None:
    content = contents(tmp_path / "other")
    content["last"]["optimizer_states"][0]["param_groups"][0]["lr"] = math.nextafter(0.1, 1)
    (line,) = script.compare(whole, lay(tmp_path / "other", content))
    assert line == "last.ckpt/optimizer_states/0/param_groups/0/lr: 0.1 and 0.10000000000000002"


EQUAL = {
    "nothing": lambda c: None,
    "a callback's clock": put("last", "callbacks", "Budget", "elapsed", 9.0),
    "duration": put("scores", "train/seconds", 9.0),
    "speed": put("scores", "train/images_per_second", 1.0),
    "measured times": put("rows", 1, "0,1.5,,0.7"),
    "configuration": put("last", "cvexp", "config", {"resume": "x"}),
    "columns in another order": put("rows", ["val/AP,step,train/loss", ",0,1.5", ",1,1.25", "0.5,1,"]),
    "what else the best file says": put("best", "epoch", 5),
}  # fmt: skip


@pytest.mark.parametrize("name", EQUAL)
def test_what_may_differ(name: str, whole: Path, tmp_path: Path) -> None:
    """Besides: the folder's own name, in values and keys."""
    content = contents(tmp_path / "other")
    EQUAL[name](content)
    assert script.compare(whole, lay(tmp_path / "other", content)) == []


@pytest.mark.parametrize("name", ["checkpoints/last.ckpt", "checkpoints/best.ckpt", "metrics.csv", "result.json"])
@pytest.mark.parametrize("content", [None, b"", b"garbage"])  # missing, empty, broken
def test_an_unreadable_file_is_reported(name: str, content: bytes | None, whole: Path, tmp_path: Path) -> None:
    other = lay(tmp_path / "other", contents(tmp_path / "other"))
    for folder in (other, whole):  # in one, in both
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)
        found = script.compare(whole, other)
        assert len(found) == 1
        assert found[0].startswith(f"{Path(name).name}: {'whole' if folder == other else 'unreadable ('}")


def test_a_checkpoint_cut_off(whole: Path, tmp_path: Path) -> None:
    other = lay(tmp_path / "other", contents(tmp_path / "other"))
    path = other / "checkpoints/last.ckpt"
    path.write_bytes(path.read_bytes()[:-100])
    (line,) = script.compare(whole, other)
    assert line.startswith("last.ckpt: whole and unreadable (")


# --- the stand-in ----------------------------------------------------------------------------------------------------

STAND_IN = """
import json, os, shutil, signal, sys, time
from pathlib import Path

folder, made, flaw = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
STEPS = 30
(folder / "checkpoints").mkdir(parents=True, exist_ok=True)

def write(name, text):
    part = folder / f".{name}.part"
    part.write_text(text)
    part.replace(folder / name)

if (folder / "result.json").exists():
    sys.exit(0)  # has ended
begin = int((folder / "at").read_text()) if (folder / "at").exists() else 0
time.sleep(0.02)  # start-up
if flaw == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if flaw == "saves":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
if begin and flaw == "hangs":
    time.sleep(60)
if begin and flaw == "fails":
    print("out of luck")
    sys.exit(3)
for step in range(begin, STEPS):
    write("doing.txt", f"trains, step {step}")
    time.sleep(0.01)
    forgets = begin and flaw == "forgets" and step == STEPS - 1
    shutil.copy(made / ("other.ckpt" if forgets else f"{step + 1}.ckpt"), folder / "checkpoints" / ".last.ckpt.part")
    (folder / "checkpoints" / ".last.ckpt.part").replace(folder / "checkpoints" / "last.ckpt")
    write("at", str(step + 1))
shutil.copy(made / "1.ckpt", folder / "checkpoints" / "best.ckpt")
write("metrics.csv", "step,loss\\n" + "".join(f"{step},{step / 7}\\n" for step in range(STEPS)))
write("result.json", json.dumps({"test/AP": 0.5}))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program and its checkpoints."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "stand_in.py").write_text(STAND_IN)
    for step in range(1, 31):
        state = {"position": {"step": step, "epoch": 0}, "state_dict": {"w": torch.tensor(step)}, "cvexp": {}}
        torch.save(state, folder / f"{step}.ckpt")
    torch.save(
        {"position": {"step": 30, "epoch": 0}, "state_dict": {"w": torch.tensor(-1)}, "cvexp": {}},
        folder / "other.ckpt",
    )
    return folder


@dataclass
class StandIn(script.Torture):  # type: ignore[name-defined, misc]
    """`Torture` of the stand-in, with a flaw after a resume."""

    made: Path = Path()
    flaw: str = ""

    def command(self, model: str, folder: Path) -> list[str]:
        return [sys.executable, "-S", str(self.made / "stand_in.py"), str(folder), str(self.made), self.flaw]


def tools(folder: Path, made: Path, flaw: str = "", **killer: Any) -> StandIn:
    return StandIn(folder, 0, 1, 0, script.Killer(**{"limit": 20.0} | killer), made, flaw)


def record(path: Path | None = None, **settings: Any) -> Any:
    return script.Record(path, settings)


def quiet() -> Console:
    return Console(file=io.StringIO(), width=160)


def test_runs_are_killed_and_go_on(tmp_path: Path, made: Path) -> None:
    kept = record()
    assert script.torture(tools(tmp_path, made), ["one", "two"], 2, kept, False, quiet()) is True
    assert [(c.model, c.number) for c in kept.cases] == [(m, n) for n in range(2) for m in ("one", "two")]
    kills = [kill for case in kept.cases for kill in case.kills]
    assert all(case.equal and 1 <= len(case.kills) <= script.MOST_KILLS for case in kept.cases)
    assert {kill.code for kill in kills} == {-signal.SIGKILL}
    assert len({kill.step for kill in kills}) > 1, "at different moments"
    assert any(kill.doing.startswith("trains, step ") for kill in kills)
    assert script.totals(kept.cases)[0].startswith("one: 2 of 2 equal (")
    assert {path.name for path in (tmp_path / "one").iterdir()} == {
        "uninterrupted",
        "uninterrupted.json",
        "uninterrupted.log",
    }


@pytest.mark.parametrize(
    ("flaw", "text"),
    [
        ("forgets", "last.ckpt/state_dict/w: 1 of 1 numbers, by up to 31"),
        ("fails", "ends with 3: out of luck"),
        ("hangs", "hangs while it trains, step "),
    ],
)
def test_a_flaw_is_found(flaw: str, text: str, tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that does not go on as it should is killed in its steps."""
    monkeypatch.setattr(script, "AGAIN", 0)
    strict, kept = tools(tmp_path, made, flaw), record()
    strict.reference("m")
    seconds(strict, 0.4)
    strict.killer.limit = 1.5 if flaw == "hangs" else 20.0
    monkeypatch.setattr(script.random.Random, "uniform", lambda *_: 0.15)  # within the steps
    assert script.torture(strict, ["m"], 1, kept, False, quiet()) is False
    (case,) = kept.cases
    assert case.differences[0].startswith(text)
    assert (tmp_path / "m" / "case_000").is_dir(), "for a look"
    assert script.totals(kept.cases) == ["m: 0 of 1 equal (0 killed more than once)"]


def seconds(strict: StandIn, value: float) -> None:
    """Lets the moments be drawn below ``value``."""
    (strict.folder / "m" / "uninterrupted.json").write_text(json.dumps({"seconds": value}))


def test_a_run_that_cannot_be_repeated_is_no_yardstick(tmp_path: Path, made: Path) -> None:
    strict = tools(tmp_path, made)
    strict.made = tmp_path / "nowhere"
    with pytest.raises(
        UserError, match=r"--models m: the uninterrupted run ends with 2: .*No such file.* Fix: see .*\.log"
    ):
        strict.case("m", 0)


def test_a_run_that_is_never_killed_proves_nothing(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "DRAWS", 2)
    strict = tools(tmp_path, made)
    strict.reference("m")
    seconds(strict, 1e9)  # all moments lie far behind the end
    case = strict.case("m", 0)
    assert not case.equal
    assert case.differences == ["was never killed: it always ended before the moment drawn"]


@pytest.mark.parametrize(
    ("flaw", "code", "equal"),
    [("saves", 143, True), ("", -signal.SIGTERM, True), ("deaf", -signal.SIGKILL, False)],
)
def test_sigterm(flaw: str, code: int, equal: bool, tmp_path: Path, made: Path) -> None:
    """143 is what a run that saves ends with; one that does not heed it is killed after some patience, and told."""
    strict = tools(tmp_path, made, flaw, number=signal.SIGTERM, patience=0.02)
    strict.reference("m")
    seconds(strict, 0.15)  # within the steps
    case = strict.case("m", 1)
    assert case.kills[0].code == code
    assert case.equal is equal, case.differences


def test_the_whole_group_dies(tmp_path: Path) -> None:
    """Also what the first process has started and left behind."""
    program = tmp_path / "program.py"
    program.write_text(
        "import subprocess, sys, time\nfrom pathlib import Path\n"
        "child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'])\n"
        "folder = Path(sys.argv[1]); folder.mkdir(); (folder / 'child').write_text(str(child.pid))\n"
        "(folder / 'doing.txt').touch(); time.sleep(60 if sys.argv[2] == 'waits' else 0)\n"
    )
    for how, after in (("waits", 0.05), ("leaves", None)):
        folder = tmp_path / how
        ended = script.Killer().run([sys.executable, "-S", str(program), str(folder), how], folder, after)
        assert ended.killed is (after is not None)
        child = int((folder / "child").read_text())
        for _ in range(200):  # the system removes it in its own time
            if not _alive(child):
                break
            time.sleep(0.01)
        assert not _alive(child)


def _alive(pid: int) -> bool:
    """A dead process that nobody has asked after is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# --- going on with the script itself ---------------------------------------------------------------------------------


def test_finished_cases_are_not_made_again(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.json"
    first = tools(tmp_path / "runs", made)
    script.torture(first, ["m"], 2, record(path, seed=0), False, quiet())
    before = json.loads(path.read_text())
    monkeypatch.setattr(StandIn, "reference", None)  # nothing is run
    assert script.torture(first, ["m"], 2, record(path, seed=0), False, quiet()) is True
    monkeypatch.undo()
    assert script.torture(first, ["m"], 3, record(path, seed=0), False, quiet()) is True
    after = json.loads(path.read_text())
    assert after["cases"][:2] == before["cases"]
    assert len(after["cases"]) == 3


def test_ctrl_c_keeps_what_is_finished(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / "out.json", StandIn.case

    def stopped(self: StandIn, model: str, number: int) -> Any:
        if number == 1:
            raise KeyboardInterrupt
        return real(self, model, number)

    monkeypatch.setattr(StandIn, "case", stopped)
    with pytest.raises(KeyboardInterrupt):
        script.torture(tools(tmp_path / "runs", made), ["m"], 3, record(path), False, quiet())
    assert [case["number"] for case in json.loads(path.read_text())["cases"]] == [0]


def test_ctrl_c_ends_with_130_and_cleans_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without an output nothing could go on from the runs; with one they stay."""

    def stopped(used: Any, *_: Any) -> bool:
        (used.folder / "m").mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "torture", stopped)
    monkeypatch.setattr(script.tempfile, "mkdtemp", lambda **_: str(tmp_path / "runs"))
    assert script.torture_resume(["--models", "yolo"]) == 130
    assert "with --output a second command could have gone on" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert script.torture_resume(["--models", "yolo", "--output", str(tmp_path / "x.json")]) == 130
    assert "the same command goes on" in capsys.readouterr().out
    assert (tmp_path / "x_runs" / "m").is_dir()


def test_a_case_does_not_depend_on_those_before(tmp_path: Path, made: Path) -> None:
    """Its moments are drawn from the seed, the model and its number."""
    drawn: list[Any] = []

    class Noting(script.Killer):  # type: ignore[name-defined, misc]
        def run(self, command: Any, folder: Path, after: float | None = None) -> Any:
            drawn.append((folder, after))
            return super().run(command, folder, after)

    for folder, numbers in ((tmp_path / "a", (0, 1)), (tmp_path / "b", (1,))):
        strict = tools(folder, made)
        strict.reference("m")
        seconds(strict, 0.3)
        strict.killer = Noting(limit=20.0)
        for number in numbers:
            strict.case("m", number)
    first = [next(after for path, after in drawn if path == tmp_path / x / "m" / "case_001") for x in "ab"]
    assert first[0] == first[1]
    assert first[0] != next(after for path, after in drawn if path.name == "case_000")


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"settings": {}, "cases": [{"model": 1}]}', '{"settings": {}, "cases": 1}']
)
def test_an_output_that_is_something_else(content: str, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"out\.json: no record of torture_resume .*Fix: another file"):
        record(path)
    assert path.read_text() == content


def test_an_output_of_other_settings(tmp_path: Path) -> None:
    record(tmp_path / "out.json", seed=0).add(script.Case("m", 0))
    with pytest.raises(UserError, match=r"made with {'seed': 0}, now {'seed': 1}. Fix: the same options"):
        record(tmp_path / "out.json", seed=1)


# --- the table -------------------------------------------------------------------------------------------------------


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    kills = [script.Kill(1.25, "trains epoch 1 batch 3, step 9", -9, 6), script.Kill(0.5, "starts", -9, None)]
    cases = [
        script.Case("yolo", 1, kills, ["a: 1 and 2", "b: x", "c: y", "d: z"]),
        script.Case("yolo", 0, kills[:1]),
        script.Case("facenet", 0, []),  # never killed: proves nothing
    ]
    Console(width=160).print(script.table(cases))
    text = capsys.readouterr().out
    rows = [[cell.strip() for cell in row.strip()[1:-1].split("│")] for row in text.splitlines() if row.startswith("│")]
    assert ["yolo", "0", "1.25 s", "trains epoch 1 batch 3, step 9", "step 6", "equal"] in rows
    assert ["yolo", "1", "1.25 s", "trains epoch 1 batch 3, step 9", "step 6"] in [row[:5] for row in rows]
    assert ["", "", "0.50 s", "starts", "the beginning"] in [row[:5] for row in rows]
    assert "(and 1 more)" in text
    assert script.totals(cases) == [
        "yolo: 1 of 2 equal (1 killed more than once)",
        "facenet: 0 of 1 equal (0 killed more than once)",
    ]


# --- the real runs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_the_words_of_a_run_are_right(model: str, compose: Callable[..., Any], tmp_path: Path) -> None:
    """They compose, nothing in them is unknown, and what may go wrong in a resume is on."""
    command = script.Torture(tmp_path, 2, 2, 0, script.Killer()).command(model, tmp_path / "it's = here")
    assert command[1:3] == ["-m", "cvexp.train"]
    words = command[3:]
    check_overrides(words)
    cfg = compose(*(word for word in words if not word.startswith(("resume=", "hydra."))))
    check_config(cfg, supplied=SUPPLIED, extra=cfg.allow_targets)
    assert (cfg.trainer.max_epochs, cfg.trainer.devices, cfg.trainer.strategy, cfg.data.num_workers) == (3, 2, "ddp", 2)
    assert cfg.budget.minutes is None
    assert cfg.scheduler._target_.endswith("WarmupCosine")
    assert cfg.callbacks.last.steps == 3
    assert cfg.callbacks.ema.decay == 0.9
    assert 0.2 in (cfg.model.get("dropout"), cfg.model.get("head", {}).get("dropout"))
    assert cfg.data.augment.jitter == 0.2
    assert isinstance(instantiate(cfg.callbacks.progress_doing), script.Doing)
    data = instantiate(cfg.data)
    steps = len(data.train_dataloader())
    assert 10 <= steps <= 40
    assert steps % 3, "so that saves and epochs do not coincide"


def test_a_model_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="yolo"):
        script.torture_resume(["--models", "yollo", "--output", str(tmp_path / "x.json")])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--count", "0"], ["--workers", "-1"], ["--processes", "0"]])
def test_options_out_of_range(words: list[str]) -> None:
    with pytest.raises(UserError, match=f"{words[0]} {words[1]}: at least .*Fix: {words[0]} "):
        script.torture_resume(words)


def test_a_run_says_what_it_does(tmp_path: Path) -> None:
    trainer = SimpleNamespace(is_global_zero=True, global_step=7, current_epoch=2)
    said = script.Doing(str(tmp_path))
    assert script.doing(tmp_path) == "starts"
    said.on_train_batch_start(trainer, None, None, 3)
    assert script.doing(tmp_path) == "trains epoch 2 batch 3, step 7"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/.last.ckpt.part").touch()
    assert script.doing(tmp_path) == "trains epoch 2 batch 3, step 7, last.ckpt half written"
    (tmp_path / "checkpoints/.last.ckpt.part").unlink()
    said.on_validation_batch_start(trainer, None, None, 0)
    assert script.doing(tmp_path) == "validates epoch 2 batch 0, step 7"
    other = copy.copy(trainer)
    other.is_global_zero = False
    said.on_test_end(other, None)
    assert script.doing(tmp_path) == "validates epoch 2 batch 0, step 7", "the first process speaks"
    (tmp_path / "result.json").touch()
    assert script.doing(tmp_path) == "has written its results"


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_a_real_run_is_killed_and_goes_on(model: str, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    assert script.torture_resume(["--models", model, "--count", "2", "--workers", "1", "--output", str(path)]) == 0
    cases = json.loads(path.read_text())["cases"]
    assert [case["equal"] for case in cases] == [True, True]
    assert not (tmp_path / "out_runs").exists()
