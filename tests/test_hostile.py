"""Input that was made to harm: nothing of it runs code, leaves its folder, fills the memory or shows a traceback.

What could take the machine with it is tried in a process of its own with little memory and time (`attempt`).
"""

from __future__ import annotations

import ast
import contextlib
import copy
import io
import json
import math
import os
import random
import resource
import signal
import stat
import struct
import tarfile
import traceback
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from cvexp.backbones.prepare import load_weights
from cvexp.build import build_model, describe
from cvexp.comparators.squared_l2 import SquaredL2
from cvexp.config import check_overrides, report_errors
from cvexp.config.messages import one_line, plain
from cvexp.data import face_files, records
from cvexp.data.coco import COCOData
from cvexp.data.download import unpack
from cvexp.data.faces import FacesData
from cvexp.data.voc import VOCData, read_xml
from cvexp.data.yolo_txt import YOLOTxtData
from cvexp.evaluate import evaluate
from cvexp.inference import load, read_checkpoint
from cvexp.models.face_resnet29 import FaceResNet29
from cvexp.predict import cell, predict
from cvexp.transfer import read_weights, transfer
from cvexp.types import UserError

SECRET = "hostile-test-secret-5512"
ESCAPE = "\x1b]0;owned\x07\x1b[2J"  # a title and an empty screen
Content = dict[str, Any]


def attempt(run: Callable[[], object], memory: int = 1 << 30, seconds: int = 20) -> str:
    """What a `UserError` of ``run`` says (empty if it raises none), from a process with so much more memory and time.

    Raises:
        AssertionError: the process died, or raised something else.
    """
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + memory,) * 2)
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
            signal.alarm(6 * seconds)  # for what waits and computes nothing
            told = "ok"
            try:
                run()
            except UserError as error:
                told += str(error)
            except BaseException:
                told = traceback.format_exc()
            os.write(write, told.encode("utf-8", "backslashreplace")[:60_000])
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        told = stream.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == 0, f"died by {signal.Signals(-status).name}"
    assert told.startswith("ok"), told
    return told[2:]


def refused(run: Callable[[], object], *words: str, **limits: int) -> str:
    """As `attempt`; there must be a refusal with these words and a fix, and no word of memory."""
    told = attempt(run, **limits)
    assert told, "it was taken"
    for word in (*words, "Fix:" if "Fix:" in told else "fix:"):
        assert word in told, told
    assert "alloc" not in told
    assert "Memory" not in told
    return told


# --- the fence itself ------------------------------------------------------------------------------------------------


def fill() -> None:
    b"x" * (3 << 30)


def spin() -> None:
    while True:
        pass


def raises() -> None:
    raise KeyError("x")


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (fill, "MemoryError"),
        (raises, "KeyError"),
        (lambda: os._exit(0), "startswith"),  # ends without a word
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"),
    ],
)
def test_an_attempt_that_fails_is_noticed(run: Callable[[], None], words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        attempt(run)


def test_an_attempt_that_hangs_is_noticed() -> None:
    with pytest.raises(AssertionError, match="SIGXCPU"):
        attempt(spin, seconds=1)


def test_an_attempt_tells_what_a_user_error_says() -> None:
    def run() -> None:
        raise UserError("x. Fix: y")

    assert attempt(lambda: None) == ""
    assert refused(run, "x.") == "x. Fix: y"


# --- checkpoints -----------------------------------------------------------------------------------------------------


def made(words: list[str], classes: list[str]) -> Content:
    """What `cvexp.train` saves, untrained."""
    from cvexp.config import Composer

    common = ["data.num_workers=0", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]
    config = Composer().compose([*words, *common])
    config = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    config.paths.output = "nowhere"
    state = {f"model.{n}": v for n, v in build_model(config.model, len(classes)).state_dict().items()}
    return {"state_dict": state, "cvexp": describe(config, classes)}


@pytest.fixture(scope="module")
def detector() -> Content:
    few = ["data.train_size=4", "data.val_size=2", "data.test_size=2", "data.batch_size=2"]
    return made(["model=yolo", "model.size=tiny", "data=shapes", *few], ["ellipse", "rectangle", "triangle"])


@pytest.fixture
def content(detector: Content) -> Content:
    """A detector's checkpoint to be changed; tensors are shared."""
    about = copy.deepcopy(detector["cvexp"])
    return {"state_dict": dict(detector["state_dict"]), "cvexp": about}


def saved(content: object, folder: Path, **options: bool) -> Path:
    path = folder / "run" / "checkpoints" / "evil.ckpt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, **options)  # type: ignore[arg-type]
    return path


def config_of(content: Content) -> Content:
    return content["cvexp"]["config"]


def uses(path: Path, folder: Path) -> dict[str, Callable[[], object]]:
    """Everything that reads a checkpoint."""
    picture = folder / "picture.png"
    Image.new("RGB", (40, 30)).save(picture)
    return {
        "load": lambda: load(path, device="cpu"),
        "predict": lambda: predict([f"ckpt={path}", f"source={picture}", f"output={folder / 'out'}", "device=cpu"]),
        "evaluate": lambda: evaluate([f"ckpt={path}", f"output={folder / 'out'}"]),
    }


def test_a_good_checkpoint_is_taken(content: Content, tmp_path: Path) -> None:
    """In this process, as the engine of the metric has threads of its own, which no fork may have behind it."""
    for use in uses(saved(content, tmp_path), tmp_path).values():
        use()


class Bomb:
    """A pickle that makes a folder when it is read."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trap),)


@pytest.mark.parametrize("place", ["file", "top", "config", "model", "classes", "state", "legacy"])
def test_no_pickle_is_run(place: str, content: Content, tmp_path: Path) -> None:
    bomb = Bomb(tmp_path / "trap")
    holders = {"config": content["cvexp"], "model": config_of(content), "classes": content["cvexp"], "top": content}
    holders |= {"legacy": content, "state": content["state_dict"]}
    if place in holders:
        holders[place]["model.x" if place == "state" else place] = bomb
    path = saved(bomb if place == "file" else content, tmp_path, _use_new_zipfile_serialization=place != "legacy")
    for use in (*uses(path, tmp_path).values(), lambda: read_weights(path)):
        with pytest.raises(UserError, match=r"evil\.ckpt: .*safely.*Fix"):
            use()
    assert not (tmp_path / "trap").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "trap").is_dir(), "the bomb works, so the refusals above meant something"


def test_weights_of_backbones_and_faces_run_no_pickle(tmp_path: Path) -> None:
    path = saved({"x": Bomb(tmp_path / "trap")}, tmp_path)
    with pytest.raises(UserError, match=r"weights=.*evil\.ckpt.*Fix"):
        load_weights(nn.Linear(2, 2), path)
    with torch.device("meta"), pytest.raises(UserError, match=r"weights=.*evil\.ckpt.*Fix"):
        FaceResNet29(SquaredL2, 2, weights=str(path))
    assert not (tmp_path / "trap").exists()


UNSAFE_CALLS = {
    "pickle.load",
    "pickle.loads",
    "eval",
    "exec",
    "os.system",
    "torch.hub.load",
    "yaml.unsafe_load",
    "marshal.loads",
}


def calls(source: str) -> list[tuple[str, set[str], str]]:
    """Name, keywords and text of every call."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [(ast.unparse(n.func), {str(k.arg) for k in n.keywords}, ast.unparse(n)) for n in nodes]


def unsafe(source: str) -> list[str]:
    """Calls that read a file so that it may run code."""
    found = []
    for name, keywords, text in calls(source):
        careless = name == "torch.load" and "weights_only=True" not in text
        careless |= (
            name.endswith((".fit", ".test", ".validate"))
            and "ckpt_path" in keywords
            and "weights_only=True" not in text
        )
        careless |= name in ("yaml.load", "yaml.compose", "yaml.parse") and not (
            "SafeLoader" in text or "get_yaml_loader" in text
        )
        careless |= name in ("np.load", "numpy.load") and "allow_pickle=False" not in text
        careless |= "shell=True" in text
        found += [text] if careless or name in UNSAFE_CALLS else []
    return found


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("", 0),
        ("torch.load(p, weights_only=True)", 0),
        ("torch.load(p)\ntorch.load(p, weights_only=False)", 2),
        ("trainer.fit(task, ckpt_path=p)", 1),
        ("trainer.fit(task, data)", 0),
        ("yaml.load(t, Loader=yaml.SafeLoader)\nyaml.safe_load(t)\nmodel.eval()\nnp.load(t, allow_pickle=False)", 0),
        ("yaml.load(t, Loader=yaml.Loader)\neval(t)\nsubprocess.run(t, shell=True)\npickle.loads(t)\nnp.load(t)", 5),
    ],
)
def test_unsafe_calls_are_found(source: str, count: int) -> None:
    assert len(unsafe(source)) == count


def test_no_file_is_read_so_that_it_may_run_code(repository: Path) -> None:
    files = [*(repository / "cvexp").rglob("*.py"), *(repository / "scripts").glob("*.py")]
    wrong = {path.name: found for path in files if (found := unsafe(path.read_text(encoding="utf-8")))}
    assert wrong == {}


# A node for a place of the configuration where something is built, and a word of the refusal.
NODES: dict[str, tuple[str, Content, str]] = {
    "a program": ("model", {"_target_": "os.system", "_args_": ["touch TRAP"]}, "os.system"),
    "eval": ("metric", {"_target_": "builtins.eval", "_args_": ["1"], "_convert_": "all"}, "builtins.eval"),
    "a process": ("data", {"_target_": "subprocess.Popen", "_args_": [["true"]], "_recursive_": False}, "subprocess"),
    "later": ("model", {"_target_": "os.mkdir", "_partial_": True, "path": "TRAP"}, "os.mkdir"),
    "inside": (
        "task",
        {"_target_": "cvexp.tasks.detection.DetectionTask", "x": {"_target_": "os.mkdir", "path": "TRAP"}},
        "os.mkdir",
    ),
    "in a list": (
        "metric",
        {"_target_": "torch.nn.Linear", "_args_": [{"_target_": "os.mkdir", "path": "TRAP"}]},
        "os.mkdir",
    ),
    "an import of ours": ("model", {"_target_": "cvexp.config.sources.os.mkdir", "path": "TRAP"}, "cvexp.config"),
    "an import of theirs": ("model", {"_target_": "torch.nn.modules.module.functools.partial"}, "functools"),
    "torch.hub": ("model", {"_target_": "torch.hub.load", "repo_or_dir": "a/b", "model": "c"}, "torch.hub"),
    "torch.load": ("data", {"_target_": "torch.load", "f": "TRAP"}, "torch.load"),
    "numpy.load": ("data", {"_target_": "numpy.load", "file": "TRAP", "allow_pickle": True}, "numpy.load"),
    "Hydra": ("model", {"_target_": "hydra._internal.utils._locate", "path": "os.system"}, "hydra"),
    "Hydra's call": ("model", {"_target_": "hydra.utils.call", "config": {"_target_": "os.getcwd"}}, "hydra.utils"),
    "a download": (
        "data",
        {"_target_": "cvexp.data.download.download", "names": ["voc2012"], "root": "TRAP"},
        "download",
    ),
    "a conversion": (
        "data",
        {"_target_": "cvexp.data.convert.convert", "data": None, "to": "voc", "out": "TRAP"},
        "convert",
    ),
    "a logger as a model": (
        "model",
        {"_target_": "cvexp.loggers.wandb.wandb", "folder": "TRAP"},
        "has no place in 'model'",
    ),
    "a trainer as a metric": ("metric", {"_target_": "lightning.pytorch.Trainer"}, "has no place in 'metric'"),
    "a profiler as data": (
        "data",
        {"_target_": "lightning.pytorch.profilers.SimpleProfiler", "dirpath": "TRAP"},
        "no place",
    ),
    "a command": ("model", {"_target_": "cvexp.train.main"}, "cvexp.train"),
    "no text": ("model", {"_target_": ["os.system"]}, "os.system"),
    "no node": ("model", {"a": 1}, "no part 'model'"),
    "timm's hub": ("model", {"_target_": "timm.create_model", "model_name": "hf-hub:a/b"}, "would load a file"),
}


def with_trap(value: Any, trap: Path) -> Any:
    if isinstance(value, dict):
        return {name: with_trap(child, trap) for name, child in value.items()}
    if isinstance(value, list):
        return [with_trap(child, trap) for child in value]
    return value.replace("TRAP", str(trap)) if isinstance(value, str) else value


@pytest.mark.parametrize("name", NODES)
def test_a_checkpoint_names_nothing_else(name: str, content: Content, tmp_path: Path) -> None:
    place, node, word = NODES[name]
    config_of(content)[place] = with_trap(node, tmp_path / "trap")
    before = sorted(tmp_path.rglob("*"))
    path = saved(content, tmp_path)
    with pytest.raises(UserError, match=r"(?i)fix:") as error:
        evaluate([f"ckpt={path}", f"output={tmp_path / 'out'}"])
    assert word in str(error.value)
    assert "evil.ckpt" in str(error.value)
    assert {p for p in tmp_path.rglob("*") if p.is_file()} - {path} == set(before)
    if place in ("model", "data"):
        with pytest.raises(UserError, match=r"(?i)fix:"):
            load(path)
    assert not (tmp_path / "trap").exists()


def test_what_only_training_uses_is_not_built(content: Content, tmp_path: Path) -> None:
    """Callbacks other than pictures, profiler and loggers could write where they are told to."""
    config = config_of(content)
    config["trainer"] |= {
        "profiler": {
            "_target_": "lightning.pytorch.profilers.SimpleProfiler",
            "dirpath": str(tmp_path),
            "filename": "trap",
        },
        "default_root_dir": str(tmp_path / "trap"),
    }
    config["logger"] = {
        "w": {"_target_": "cvexp.loggers.wandb.wandb", "folder": str(tmp_path / "trap"), "mode": "offline"}
    }
    config["callbacks"]["pictures"]["folder"] = str(tmp_path / "trap")
    config["paths"]["output"] = str(tmp_path / "trap")
    path = saved(content, tmp_path)
    evaluate([f"ckpt={path}", f"output={tmp_path / 'out'}"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "run"]


INTERPOLATIONS = (
    "${oc.env:SECRET}",
    "${oc.env:NOT_THERE,${oc.env:SECRET}}",
    "${oc.decode:${oc.env:SECRET}}",
    "a ${oc.env:SECRET} b",
    "${hydra:runtime.cwd}",
    "${oc.create:{_target_:os.system}}",
    "${seed}",  # harmless, but cvexp writes none
    "${",
    "\\${oc.env:SECRET}",
)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        *((text, "seed") for text in INTERPOLATIONS),
        *((INTERPOLATIONS[0], key) for key in ("model.B", "data.train_size", "metric.difficult", "task._target_")),
    ],
)
def test_a_checkpoint_reads_no_environment(
    text: str, key: str, content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", SECRET)
    *parents, name = key.split(".")
    node = config_of(content)
    for parent in parents:
        node = node[parent]
    node[name] = text
    path = saved(content, tmp_path)
    for run in (lambda: evaluate([f"ckpt={path}", f"output={tmp_path / 'out'}"]), lambda: load(path)):
        with pytest.raises(
            UserError, match=r"evil\.ckpt: its configuration refers to something outside: .*Fix"
        ) as error:
            run()
        assert SECRET not in str(error.value)
    assert not (tmp_path / "out").exists()


def laughs(levels: int = 12) -> list[Any]:
    value: list[Any] = ["ha"]
    for _ in range(levels):
        value = [value] * 9
    return value


def deep(levels: int = 200) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


# What a configuration asks for: key, value, words of the refusal.
GREEDY: dict[str, tuple[str, Any, str]] = {
    "a picture": ("data.image_size", 10**6, "asks for more than 4,096"),
    "the model's size": ("model.image_size", 2**62, "asks for more than"),
    "layers": ("model.head.layers", 10**9, "asks for more than 1,000,000"),
    "many layers": ("model.head.layers", 10**5, "far larger than the weights"),
    "channels": ("model.head.hidden", 10**6, "far larger than the weights"),
    "boxes": ("model.B", 10**6, "far larger than the weights"),
    "other channels": ("model.head.hidden", 33, "do not fit"),
    "no channels": ("model.head.hidden", 0, "do not fit"),
    "fewer than none": ("model.head.hidden", -5, "its model cannot be used"),
    "workers": ("data.num_workers", 100_000, "asks for more than 256"),
    "images": ("data.test_size", 10**9, "asks for more than 1,000,000"),
    "devices": ("trainer.devices", 5000, "asks for more than 64"),
    "a beyond": ("model.B", 2**200, "model"),
    "laughs": ("model.x", laughs(), "larger than any"),
    "depth": ("model.x", deep(), "larger than any"),
    "a tensor": ("model.x", torch.zeros(3), "holds a Tensor"),
    "a number as a key": ("model.x", {7: 1}, "which is no text"),
    "no number": ("model.score_threshold", math.nan, ""),  # a threshold that nothing passes: odd, but harmless
}


@pytest.mark.parametrize("name", GREEDY)
def test_a_checkpoint_asks_for_no_more_than_it_has(name: str, content: Content, tmp_path: Path) -> None:
    key, value, word = GREEDY[name]
    *parents, last = key.split(".")
    node = config_of(content)
    for parent in parents:
        node = node[parent]
    node[last] = value
    path = saved(content, tmp_path)
    run = lambda: evaluate([f"ckpt={path}", f"output={tmp_path / 'out'}"])  # noqa: E731
    if word:
        refused(run, "evil.ckpt", word)
    else:
        run()


# What stands in the file instead of weights.
STATES: dict[str, Callable[[Content], object]] = {
    "a shape without numbers": lambda s: s | {"model.head.predict.bias": torch.zeros(1).expand(10**12)},
    "the right shape without numbers": lambda s: {n: torch.zeros(()).expand(v.shape) for n, v in s.items()},
    "no tensor": lambda s: s | {"model.head.predict.bias": [1, 2]},
    "sparse": lambda s: s | {"model.head.predict.bias": torch.zeros(13).to_sparse()},
    "without memory": lambda s: s | {"model.head.predict.bias": torch.zeros(13, device="meta")},
    "complex": lambda s: s | {"model.head.predict.bias": torch.zeros(13, dtype=torch.complex64)},
    "a number as a name": lambda s: s | {7: torch.zeros(1)},
    "nothing": lambda s: {},
    "a list": lambda s: list(s),
    "None": lambda s: None,
    "a terminal's words": lambda s: s | {f"model.{ESCAPE}": torch.zeros(1)},
}


@pytest.mark.parametrize("name", STATES)
def test_weights_that_are_none(name: str, content: Content, tmp_path: Path) -> None:
    content["state_dict"] = STATES[name](content["state_dict"])
    path = saved(content, tmp_path)
    assert "\x1b" not in refused(lambda: load(path, device="cpu"), "evil.ckpt")


def test_faces_of_a_network_without_numbers(tmp_path: Path) -> None:
    face = made(["model=facenet", "model.size=tiny"], ["Ann", "Bob"])
    name = next(name for name, value in face["state_dict"].items() if value.is_floating_point())
    face["state_dict"][name] = torch.full_like(face["state_dict"][name], math.nan)
    refused(lambda: load(saved(face, tmp_path), device="cpu"), "evil.ckpt", "NaN or infinity")


# The words of a checkpoint about itself.
ABOUT: dict[str, tuple[Any, str]] = {
    "classes": ([], "not a list of names"),
    "known": ([["a"]], "its known are not a list of names"),
    "verification": ({"threshold": {"a": 1}}, "its threshold is no number"),
    "config": ("model", "no mapping"),
}


@pytest.mark.parametrize("key", ABOUT)
def test_words_about_itself(key: str, content: Content, tmp_path: Path) -> None:
    content["cvexp"][key], word = ABOUT[key]
    refused(lambda: load(saved(content, tmp_path)), "evil.ckpt", word)


@pytest.mark.parametrize("name", [ESCAPE, "a\nb", "\u202egnp.exe", "\ud800", "x" * 300])
def test_class_names_of_a_checkpoint(name: str, content: Content, tmp_path: Path) -> None:
    content["cvexp"]["classes"][0] = name
    assert "\x1b" not in refused(lambda: read_checkpoint(saved(content, tmp_path)), "evil.ckpt: the name")


def repacked(path: Path, **more: bytes) -> Path:
    """A checkpoint compressed, with further parts."""
    with zipfile.ZipFile(path) as archive:
        files = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (files | more).items():
            archive.writestr(name, data)
    return path


def test_a_checkpoint_does_not_burst(content: Content, tmp_path: Path) -> None:
    path = repacked(saved(content, tmp_path))
    with zipfile.ZipFile(path) as archive:
        storage = next(info for info in archive.infolist() if "/data/0" in info.filename)
    repacked(path, **{storage.filename: b"\0" * (200 << 20)})
    assert path.stat().st_size < 1 << 20
    for run in (lambda: load(path), lambda: read_weights(path)):
        refused(run, "evil.ckpt", "compressed", memory=100 << 20)


def test_init_from_says_nothing_to_the_terminal(
    content: Content, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    state = {n.removeprefix("model."): v for n, v in content["state_dict"].items()} | {f"more.{ESCAPE}": torch.zeros(3)}
    path = saved({"state_dict": state, "classes": [ESCAPE, *content["cvexp"]["classes"][1:]]}, tmp_path)
    model = build_model(_node(config_of(content)["model"]), 3)
    transfer(model, read_weights(path), content["cvexp"]["classes"], tmp_path)
    said = capfd.readouterr()
    assert "\x1b" not in said.out + said.err


def _node(value: Content) -> Any:
    return OmegaConf.create(value)


# --- configurations --------------------------------------------------------------------------------------------------

# Each line refers nine times to the one before.
PAIRS = list(zip("abcdefgh", "bcdefghi", strict=True))
LAUGHS = "a: &a [x,x]\n" + "".join(f"{c}: &{c} [{f'*{p},' * 9}]\n" for p, c in PAIRS)
MERGED = "a: &a {k: v}\n" + "".join(f"{c}: &{c} {{<<: [{f'*{p},' * 9}]}}\n" for p, c in PAIRS)

# A file of somebody else's, chosen as an experiment, and a word of the refusal.
EXPERIMENTS: dict[str, tuple[str, str]] = {
    "a callback of Hydra": ("hydra: {callbacks: {x: {_target_: os.mkdir, path: TRAP}}}", "'os.mkdir' is refused"),
    "hidden": ("x: os.mkdir\nhydra: {callbacks: {x: {_target_: '${x}', path: TRAP}}}", "is refused: Hydra would run it"),
    "a launcher": ("hydra: {launcher: {_target_: os.system}}", "'os.system' is refused"),
    "a handler": ("hydra: {job_logging: {handlers: {x: {(): os.mkdir, path: TRAP}}}}", "logging would run it"),
    "fileConfig": ("hydra: {job_logging: {handlers: {x: {class: logging.config.fileConfig, fname: x}}}}", "would run it"),
    "an import": ("hydra: {job_logging: {handlers: {console: {stream: 'ext://evil.x'}}}}", "logging would import it"),
    "a preload": ("hydra: {job: {env_set: {LD_PRELOAD: evil.so}}}", "other programs would run other code"),
    "allowing itself": ("allow_targets: [torch]\nmodel: {_target_: torch.hub.load}", "which would allow itself"),
    "a YAML tag": ("x: !!python/object/apply:os.mkdir [TRAP]", "could not determine a constructor"),
    "another tag": ("x: !!python/name:os.system", "could not determine a constructor"),
    "laughs": (LAUGHS, "until it is longer"),
    "merged laughs": (MERGED, "until it is longer"),
    "itself": ("a: &a [*a]", "until it is longer"),
    "depth": ("x: " + "[" * 600 + "]" * 600, "not valid YAML"),
    "no text": ("x: \udcff", "not valid YAML"),
    "a null": ("x: \0", "not valid YAML"),
}  # fmt: skip


def small_conf(folder: Path) -> Path:
    """A configuration that composes at once."""
    conf = folder / "conf"
    conf.mkdir()
    (conf / "train.yaml").write_text(
        "defaults: [_self_, {experiment: null}]\nallow_targets: []\nx: 0\na: 0\nmodel: {_target_: torch.nn.ReLU}\ntrainer: {}\n"
    )
    return conf


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_configuration_of_somebody_else(name: str, tmp_path: Path) -> None:
    text, word = EXPERIMENTS[name]
    mine = tmp_path / "mine" / "experiment"
    mine.mkdir(parents=True)
    text = f"# @package _global_\n{text.replace('TRAP', str(tmp_path / 'trap'))}\n"
    (mine / "evil.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
    words = ["--config-dir", str(mine.parent), "experiment=evil"]
    told = refused(lambda: check_overrides(words, conf=small_conf(tmp_path)), word)
    assert "evil.yaml" in told or "fix: take it out of the file" in told
    assert not (tmp_path / "trap").exists()


def test_a_harmless_file_of_somebody_else_is_taken(tmp_path: Path) -> None:
    mine = tmp_path / "experiment"
    mine.mkdir()
    hydra = {"job": {"env_set": {"OMP_NUM_THREADS": "1"}}}
    hydra |= {"callbacks": {"log": {"_target_": "hydra.experimental.callbacks.LogJobReturnCallback"}}}
    content = {"trainer": {"max_epochs": 3, "min_epochs": 1}, "hydra": hydra}
    (mine / "good.yaml").write_text(f"# @package _global_\n{yaml.safe_dump(content)}")
    check_overrides(["--config-dir", str(tmp_path), "experiment=good"], conf=small_conf(tmp_path))


@pytest.mark.parametrize(
    "word",
    [
        "model._target_=os.system",
        "+model.x={_target_:os.mkdir,path:TRAP}",
        "data={_target_:subprocess.Popen}",
        "metric._target_=torch.hub.load",
        "+task.x=[{_target_:builtins.eval}]",
    ],
)
def test_what_is_typed_names_nothing_else(word: str, compose: Callable[..., Any], tmp_path: Path) -> None:
    from cvexp.build import SUPPLIED
    from cvexp.config import check_config

    config = compose(word.replace("TRAP", str(tmp_path / "trap")))
    with pytest.raises(UserError, match=r"(?s)is refused.*fix:"):
        check_config(config, origin=lambda key: key, supplied=SUPPLIED)
    assert not (tmp_path / "trap").exists()


# --- what is printed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("größe 日本 👩‍🔬\n\tb", "größe 日本 👩‍🔬\n\tb"),  # what people write
        ("\x1b[2J", "\\x1b[2J"),
        ("a\rb\x07\x9b", "a\\rb\\x07\\x9b"),
        ("\u202egnp", "\\u202egnp"),  # turns the line around
        ("\udcff", "\\udcff"),  # a byte of a file name that is no text
    ],
)
def test_plain(text: str, shown: str) -> None:
    assert plain(text) == shown
    shown.encode("utf-8")


def test_a_name_stays_on_its_line() -> None:
    assert one_line("a\nb\x1b") == "a\\nb\\x1b"


def test_a_message_holds_no_commands_for_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    @report_errors
    def main() -> None:
        raise UserError(f"{ESCAPE}{'x' * 100_000}. Fix: [red]y[/red]")

    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().err
    assert "\x1b]" not in said
    assert "\x07" not in said
    assert "[red]y[/red]" in said
    assert len(said) < 5000


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("", ""),
        ("cat.jpg", "cat.jpg"),
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),  # what a spreadsheet would run
        ("+1", "'+1"),
        ("-1.jpg", "'-1.jpg"),
        ("@SUM(1)", "'@SUM(1)"),
        ("\t=1", "'\t=1"),
        ("a=1", "a=1"),
    ],
)
def test_cells_of_a_table_are_no_formulas(text: str, written: str) -> None:
    assert cell(text) == written


def test_names_of_pictures_stay_names(content: Content, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of a folder with names that are commands, formulas, no text, a folder, a loop."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    names = [
        "=1+1.png",
        "-rf.png",
        f"{ESCAPE.replace('/', '')}.png",
        "a\nb.png",
        os.fsdecode(b"\xff.png"),
        "x" * 240 + ".png",
    ]
    for name in names:
        Image.new("RGB", (20, 20)).save(folder / name)
    (folder / "folder.png").mkdir()
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "again").symlink_to(folder)
    words = [
        f"ckpt={saved(content, tmp_path)}",
        f"source={folder}",
        f"output={tmp_path / 'out'}",
        "device=cpu",
        "threshold=0",
    ]
    done = predict(words)
    assert done["images"] == len(names)
    drawn = tmp_path / "out" / "pictures"
    assert {path.name for path in drawn.iterdir()} == set(names)
    listed = json.loads((tmp_path / "out" / "detections.json").read_text(encoding="utf-8"))
    assert {image["file_name"] for image in listed["images"]} == set(names)  # unchanged there
    table = (tmp_path / "out" / "detections.csv").read_text(encoding="utf-8")
    assert "\n'=1+1.png," in table
    assert "\n=1+1.png," not in table
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "pictures", "run"]


def test_names_of_faces_stay_names(tmp_path: Path) -> None:
    """Of sources and of people, which are drawn, too."""
    people = tmp_path / "people"
    names = ["=1+1", "a\nb", ESCAPE.replace("/", ""), os.fsdecode(b"\xff"), "\u202egnp"]
    for i, name in enumerate(names):
        (people / name).mkdir(parents=True)
        Image.new("RGB", (20, 20), (i * 40, 90, 30)).save(people / name / f"{name}.png")
    face = made(["model=facenet", "model.size=tiny"], ["Ann", "Bob"])
    words = [
        f"ckpt={saved(face, tmp_path)}",
        f"source={people}",
        f"gallery={people}",
        f"output={tmp_path / 'out'}",
        "device=cpu",
    ]
    done = predict(words)
    assert done["images"] == len(names)
    table = (tmp_path / "out" / "matches.csv").read_text(encoding="utf-8")
    assert ",'=1+1," in table
    assert ",=1+1," not in table
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "people", "run"]


# --- pictures --------------------------------------------------------------------------------------------------------


def png(width: int, height: int, data: bytes = b"", bits: int = 1, colour: int = 0) -> bytes:
    """A PNG that says it is so large."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(data, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in chunks
    )


def encoded(kind: str, mode: str = "RGB", size: tuple[int, int] = (16, 12), **more: Any) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, kind, **more)
    return stream.getvalue()


def jpeg(width: int, height: int) -> bytes:
    data = encoded("JPEG")
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def gif(width: int, height: int) -> bytes:
    data = encoded("GIF", "L")
    return data[:6] + struct.pack("<HH", width, height) + data[10:]


def bmp(width: int, height: int) -> bytes:
    data = encoded("BMP")
    return data[:18] + struct.pack("<ii", width, height) + data[26:]


def film(frames: int, side: int) -> bytes:
    """An animated GIF, the same picture again and again."""
    data = encoded("GIF", "L", (side, side))
    at = data.index(b"\x2c\0\0\0\0")
    return data[:at] + data[at:-1] * frames + b";"


def tiff(width: int, height: int) -> bytes:
    data = bytearray(encoded("TIFF", "L"))
    for tag, value in ((256, width), (257, height)):
        at = data.index(struct.pack("<HHI", tag, 4 if struct.pack("<HHI", tag, 4, 1) in data else 3, 1))
        data[at : at + 12] = struct.pack("<HHII", tag, 4, 1, value)
    return bytes(data)


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "png": (lambda: png(100_000, 100_000, b"\0"), "100000x100000"),
    "png whole": (lambda: png(30_000, 10_000, b"\0" * 3751 * 10_000), "30000x10000"),  # 300 million in 36 kB
    "png of nothing": (lambda: png(0, 5), "not a readable image"),
    "png without pixels": (
        lambda: png(3_000, 4_000, b"\0" * 100, 8, 2),
        "not a readable image",
    ),  # torchvision would die
    "jpeg": (lambda: jpeg(65_000, 65_000), "65000x65000"),
    "gif": (lambda: gif(65_000, 65_000), "65000x65000"),
    "bmp": (lambda: bmp(100_000, 100_000), "100000x100000"),
    "tiff": (lambda: tiff(100_000, 100_000), "100000x100000"),
    "cut off": (lambda: encoded("PNG", size=(300, 200))[:60], "not a readable image"),
    "text": (lambda: b"not a picture", "not a readable image"),
    "nothing": (lambda: b"", "file is empty"),
    "a program": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not a readable image"),
    "another format": (lambda: encoded("PPM"), "not a readable image"),
}


def read_as_face(path: Path) -> None:
    try:
        face_files.decode(face_files.read_picture(path))
    except ValueError as error:
        raise UserError(f"{path}: {error}. Fix: replace it") from None


@pytest.mark.parametrize("read", [records.decode, read_as_face])
@pytest.mark.parametrize("name", BOMBS)
def test_pictures_that_are_none(name: str, read: Callable[[Path], object], tmp_path: Path) -> None:
    make, word = BOMBS[name]
    path = tmp_path / "x.jpg"
    path.write_bytes(make())
    told = refused(lambda: read(path), "x.jpg", memory=300 << 20)
    assert word in told or "DecompressionBomb" in told or "exceeds limit" in told, told


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
def test_noise_in_pictures_ends_no_process(kind: str, tmp_path: Path) -> None:
    """Decoders are written in C: a broken file must not break the process."""
    rng = random.Random(kind)
    whole = encoded(kind, size=(60, 50))
    paths = []
    for i in range(60):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 3, 30])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        paths.append(tmp_path / f"{i}.img")
        paths[-1].write_bytes(data[: rng.choice([len(data), len(data), rng.randrange(len(data))])])

    def run() -> None:
        for path in paths:
            for read in (records.decode, records.image_size, read_as_face):
                with contextlib.suppress(UserError, ValueError):
                    read(path)

    assert attempt(run) == ""


def test_the_pictures_of_a_film_are_not_all_decoded(tmp_path: Path) -> None:
    path = tmp_path / "film.gif"
    path.write_bytes(film(300, 1000))  # 0.9 GB as RGB
    with Image.open(path) as picture:
        assert getattr(picture, "n_frames", 1) == 300
    for read in (records.decode, read_as_face):
        assert attempt(lambda read=read: read(path), memory=300 << 20) == ""


@pytest.mark.parametrize("orientation", [0, 1, 6, 9, 255, 65_535])
def test_orientations_out_of_range(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "x.jpg"
    path.write_bytes(encoded("JPEG", exif=exif))
    sides = {tuple(records.decode(path).shape), tuple(face_files.decode(path.read_bytes()).shape)}
    assert sides <= {(3, 12, 16), (3, 16, 12)}


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "I;16"])
def test_unusual_pixels_are_read(kind: str, mode: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{kind.lower()}"
    path.write_bytes(encoded(kind, mode))
    assert records.decode(path).shape == (3, 12, 16)


def test_a_file_may_be_too_large(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(encoded("PNG"))
    os.truncate(path, 40 << 30)  # sparse: it takes no space
    refused(lambda: records.decode(path), "x.png", "bytes, more than", memory=300 << 20)
    refused(lambda: read_as_face(path), "x.png", "larger than", memory=300 << 20)


def test_a_folder_and_a_loop_are_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "x.png").mkdir()
    (tmp_path / "y.png").symlink_to(tmp_path / "y.png")
    for name in ("x.png", "y.png", "x" * 300 + ".png", "z.png"):
        refused(lambda name=name: records.decode(tmp_path / name), name[:100])


# --- archives --------------------------------------------------------------------------------------------------------


def faces(path: Path, *extra: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    """Seven people with three pictures each, and further members."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for n in range(7):
            for i in range(3):
                archive.writestr(f"P{n}/P{n}_{i + 1:04d}.png", encoded("PNG", size=(16, 16 + n)))
        for name, data in extra:
            archive.writestr(name, data)
    return path


def read_faces(path: Path) -> None:
    data = FacesData(
        root=str(path), image_size=16, batch_size=4, images_per_identity=2, num_workers=0, pairs=3, val_identities=2
    )
    data.setup("fit")
    next(iter(data.train_dataloader()))


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


ARCHIVES: dict[str, tuple[list[tuple[str | zipfile.ZipInfo, bytes]], str]] = {
    "good": ([], ""),
    "leaves": ([("P0/../../trap.png", b"x")], "leaves the archive"),
    "absolute": ([("/P0/trap.png", b"x")], "leaves the archive"),
    "a link": ([(link("P0/P0_0009.png"), b"../../../secret")], "not a readable image"),  # its text is no picture
    "bursts": ([("P0/P0_0009.png", b"\0" * (65 << 20))], "would be 68,157,440 bytes unpacked"),
    "a large picture": ([("P0/P0_0009.png", png(20_000, 5_000, b"\0" * 2501 * 5_000))], "20000x5000 pixels"),
    "an archive": ([("P0/inner.zip", b"PK\x05\x06" + b"\0" * 18)], ""),  # no image: left alone
    "a terminal's words": ([(f"{ESCAPE}/a.png", encoded("PNG"))], "control character"),
    "a long name": ([("P0/" + "x" * 5000 + ".png", b"x")], "not a readable image"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_of_faces(name: str, tmp_path: Path) -> None:
    extra, word = ARCHIVES[name]
    path = faces(tmp_path / "faces.zip", *extra)
    run = lambda: read_faces(path)  # noqa: E731
    if word:
        refused(run, "faces.zip", word, memory=500 << 20)
    else:
        assert attempt(run) == ""
    assert [p.name for p in tmp_path.iterdir()] == ["faces.zip"]


@pytest.mark.parametrize(("claim", "word"), [(1, "faces.zip"), (2**20, ""), (2**31, "2,147,483,648 bytes unpacked")])
def test_an_archive_that_lies_about_sizes(claim: int, word: str, tmp_path: Path) -> None:
    """One that claims more than there is gives what there is."""
    path = faces(tmp_path / "faces.zip")
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", claim)
    path.write_bytes(bytes(data))
    told = attempt(lambda: read_faces(path))
    assert word in told
    assert bool(told) == bool(word)


# Kind, name and target of a member of a tar file.
MEMBERS = [
    (tarfile.REGTYPE, "../trap", ""),
    (tarfile.REGTYPE, "a/../../trap", ""),
    (tarfile.SYMTYPE, "a", "../.."),
    (tarfile.SYMTYPE, "a", "/"),
    (tarfile.LNKTYPE, "a", "../secret"),
    (tarfile.CHRTYPE, "null", ""),
    (tarfile.FIFOTYPE, "pipe", ""),
]


SAFE_TAR = pytest.mark.skipif(
    not hasattr(tarfile, "data_filter"),
    reason="Python 3.11.4 is the oldest that unpacks tar files safely; older ones refuse them",
)


@SAFE_TAR
@pytest.mark.parametrize("member", MEMBERS)
def test_a_tar_file_stays_in_its_folder(member: tuple[bytes, str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "secret").write_text(SECRET)
    path = tmp_path / "set.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for kind, name, target in ((tarfile.REGTYPE, "good.txt", ""), member):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, target, 3 if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(b"abc"))
    refused(lambda: unpack(path, out), "set.tar.gz", "nothing was unpacked")
    assert list(out.iterdir()) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "secret", "set.tar.gz"]


@SAFE_TAR
def test_members_in_each_others_way(tmp_path: Path) -> None:
    path = tmp_path / "set.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("a", "a/b", "x" * 300):
            info = tarfile.TarInfo(name)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))
    refused(lambda: unpack(path, tmp_path), "set.tar", "nothing was unpacked")
    assert [p.name for p in tmp_path.iterdir()] == ["set.tar"]


@pytest.mark.parametrize("member", ["../trap", "/trap", "C:\\trap", link("a")])
def test_a_zip_file_stays_in_its_folder(member: str | zipfile.ZipInfo, tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("good.txt", b"x")
        archive.writestr(member, b"/etc")
    refused(lambda: unpack(path, tmp_path), "set.zip", "nothing was unpacked")
    assert [p.name for p in tmp_path.iterdir()] == ["set.zip"]


@pytest.fixture
def few_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that many are soon written."""
    assert records.MAX_PROBLEMS == 100_000
    monkeypatch.setattr(records, "MAX_PROBLEMS", 1000)


# --- annotations -----------------------------------------------------------------------------------------------------

BOX = "<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
GOOD = f"<annotation><object><name>cat</name>{BOX}</object></annotation>"
ENTITIES = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10 if i else "ha" * 50}">' for i in range(9))
XMLS: dict[str, tuple[str, str]] = {
    "good": (GOOD, ""),
    "billion laughs": (f"<!DOCTYPE a [{ENTITIES}]>{GOOD.replace('cat', '&l8;')}", "it has a DOCTYPE"),
    "quadratic": (
        f'<!DOCTYPE a [<!ENTITY x "{"x" * 50_000}">]>{GOOD.replace("cat", "&x;" * 20_000)}',
        "it has a DOCTYPE",
    ),
    "a file": (
        f'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]>{GOOD.replace("cat", "&x;")}',
        "it has a DOCTYPE",
    ),
    "the network": (f'<!DOCTYPE a SYSTEM "http://127.0.0.1:9/x.dtd">{GOOD}', "it has a DOCTYPE"),
    "an unknown entity": (GOOD.replace("cat", "&x;"), "not valid XML"),
    "an unknown encoding": (f'<?xml version="1.0" encoding="zlib"?>{GOOD}', "not valid XML"),
    "depth": (GOOD.replace("<object>", "<a>" * 200_000 + "</a>" * 200_000 + "<object>", 1), ""),
    "a huge number": (GOOD.replace(">9<", f">{'9' * 100_000}<", 1), "is not finite"),
    "no number": (GOOD.replace(">9<", ">nan<", 1), "is not finite"),
    "beyond": (GOOD.replace(">9<", ">1e300<", 1), "leaves the 40x30 image"),
    "many bad objects": (GOOD.replace("<object>", "<object/>" * 2000 + "<object>"), "more than 1,000 problems"),
    "a long name": (GOOD.replace("cat", "c" * 100_000), "is not one of"),
    "a terminal's words": (GOOD.replace("cat", "\x9b2J"), "is not one of"),
}


def voc(root: Path, xml: str, **more: Any) -> VOCData:
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    for name in "ab":
        (root / "JPEGImages" / f"{name}.jpg").write_bytes(encoded("JPEG", size=(40, 30)))
        (root / "Annotations" / f"{name}.xml").write_text(GOOD if name == "b" else xml, encoding="utf-8")
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\nb\n")
    return VOCData(root=str(root), num_workers=0, classes=["cat"], **more)


@pytest.mark.parametrize("name", XMLS)
def test_xml(name: str, tmp_path: Path, few_problems: None) -> None:
    xml, word = XMLS[name]
    data = voc(tmp_path / "set", xml)
    run = lambda: data.source("train")  # noqa: E731
    if word:
        refused(run, "a.xml", word, memory=500 << 20)
    else:
        assert attempt(run, memory=500 << 20) == ""


def test_a_document_type_is_refused_before_its_entities(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text(XMLS["billion laughs"][0])
    with pytest.raises(ValueError, match="DOCTYPE"):
        read_xml(path)
    path.write_text(GOOD)
    assert [element.tag for element in read_xml(path)] == ["object"]


@pytest.mark.parametrize("name", ["../../secret", "/etc/hostname", "x" * 300, "a\0b", "..", ESCAPE])
def test_names_of_a_list(name: str, tmp_path: Path) -> None:
    data = voc(tmp_path / "set", GOOD)
    (tmp_path / "set" / "ImageSets" / "Main" / "train.txt").write_text(f"b\n{name}\n")
    (tmp_path / "secret.jpg").write_bytes(encoded("JPEG"))
    (tmp_path / "secret.xml").write_text(GOOD)
    assert str(tmp_path / "secret") not in refused(lambda: data.source("train"), "train.txt")


def coco(
    root: Path, change: Callable[[Content], Any] | None = None, text: Callable[[str], str] = str, **more: Any
) -> COCOData:
    square = [[2, 2, 20, 2, 20, 20, 2, 20]]
    content: Content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 40, "height": 30} for i in (1, 2)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [2, 2, 18, 18], "segmentation": square} for i in (1, 2)
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    if change is not None:
        change(content)
    root.mkdir()
    for i in (1, 2):
        (root / f"{i}.jpg").write_bytes(encoded("JPEG", size=(40, 30)))
    (root / "a.json").write_text(text(json.dumps(content)))
    return COCOData(root=str(root), train="a.json", val="a.json", num_workers=0, **more)


def first(key: str, value: Any, part: str = "annotations") -> Callable[[Content], Any]:
    return lambda content: content[part][0].update({key: value})


def runs(counts: Any) -> Callable[[Content], Any]:
    return first("segmentation", {"size": [30, 40], "counts": counts})


def category(count: int) -> list[Content]:
    return [{"id": i, "name": f"c{i}"} for i in range(2, count)]


# What is changed in the file, and words of the refusal.
JSONS: dict[str, tuple[Callable[[Content], Any], str]] = {
    "id 2**63": (first("id", 2**63), "is not a whole number of 64 bits"),
    "id 2**200": (first("image_id", 2**200), "is not a whole number of 64 bits"),
    "id -1": (first("image_id", -1), "image_id -1 is not among the images"),
    "id 1.0": (first("id", 1.0, "images"), "is not a whole number"),
    "id '1'": (first("category_id", "1"), "is not a whole number"),
    "id true": (first("id", True, "categories"), "is not a whole number"),
    "NaN": (first("bbox", [math.nan, 2, 3, 4]), "is not finite"),
    "infinity": (first("area", math.inf), "is not a number from 0"),
    "beyond": (first("bbox", [1, 2, 10**400, 4]), "is not four numbers"),
    "outside": (first("file_name", "../../etc/passwd", "images"), "leaves the folder"),
    "absolute": (first("file_name", "/etc/passwd", "images"), "leaves the folder"),
    "Windows": (first("file_name", "C:\\x.jpg", "images"), "leaves the folder"),
    "a null": (first("file_name", "a\0.jpg", "images"), "is not a text"),
    "half a sign": (first("name", "\ud800", "categories"), "is not a text"),
    "a long file name": (first("file_name", "x" * 5000, "images"), "not a readable image"),
    "a terminal's words": (first("name", ESCAPE, "categories"), "control character"),
    "a long name": (first("name", "x" * 300, "categories"), "more than 200"),
    "runs beyond": (runs([10**12, 10**12]), "has run lengths of"),
    "runs without end": (runs([0] * 10**5 + [1200]), "covers no pixel"),
    "runs below 0": (runs([-5, 1205]), "has a negative run length"),
    "runs of text": (runs("~" * 10**5), "is not a text of run lengths"),
    "runs of a long number": (runs("o" * 10**5), "is not a text of run lengths"),
    "a size beyond": (first("segmentation", {"size": [10**9, 10**9], "counts": [10**18]}), "has the size"),
    "a long polygon": (first("segmentation", [[1.0, 2.0] * 10**5]), "covers no pixel"),
    "many entries": (lambda c: c["annotations"].extend([{}] * 2000), "more than 1,000 problems"),
    "many images": (lambda c: c["images"].extend([0] * 2000), "more than 1,000 problems"),
    "many categories": (lambda c: c["categories"].extend([*category(10**5), *category(10**5)]), "is also that of"),
}  # fmt: skip


@pytest.mark.parametrize("name", JSONS)
def test_json(name: str, tmp_path: Path, few_problems: None) -> None:
    change, word = JSONS[name]
    data = coco(tmp_path / "set", change, masks=True)
    refused(lambda: data.source("train"), "set", word, memory=700 << 20)


# The text of the file, and words of the refusal; empty if it is taken.
JSON_TEXTS: dict[str, tuple[Callable[[str], str], str]] = {
    "as it is": (str, ""),
    "depth": (lambda t: t.replace("18, 18]", "18, " + "[" * 100_000 + "]" * 100_000 + "]", 1), "nested too deeply"),
    "depth of objects": (lambda t: '{"a":' * 100_000, "nested too deeply"),
    "1e400": (lambda t: t.replace("18, 18]", "18, 1e400]", 1), "is not finite"),
    "five thousand digits": (lambda t: t.replace("18, 18]", f"18, {'9' * 5000}]", 1), "not valid JSON"),
    "a key twice": (
        lambda t: t.replace('"annotations"', '"annotations": [], "annotations"'),
        "",
    ),  # the last one counts
    "an empty key twice": (
        lambda t: t.replace('"categories"', '"images": [], "categories"'),
        "is not among the images",
    ),
    "not closed": (lambda t: t[:-5], "not valid JSON"),
    "no text": (lambda t: "\0" * 100, "not valid JSON"),
    "a number": (lambda t: "1e999", "has no list"),
}


@pytest.mark.parametrize("name", JSON_TEXTS)
def test_texts_of_json(name: str, tmp_path: Path) -> None:
    change, word = JSON_TEXTS[name]
    data = coco(tmp_path / "set", text=change)
    run = lambda: data.source("train")  # noqa: E731
    if word:
        refused(run, "a.json", word)
    else:
        assert attempt(run) == ""


def yolo(root: Path, label: str = "0 0.5 0.5 0.2 0.2\n", about: str = "names: [cat]\n") -> YOLOTxtData:
    for part in ("images/train", "labels/train"):
        (root / part).mkdir(parents=True)
    (root / "images" / "train" / "a.jpg").write_bytes(encoded("JPEG", size=(40, 30)))
    (root / "labels" / "train" / "a.txt").write_text(label)
    (root / "data.yaml").write_bytes(about.encode("utf-8", "surrogateescape"))
    return YOLOTxtData(root=str(root), num_workers=0)


# A label file, and words of the refusal.
LABELS: dict[str, tuple[str, str]] = {
    "a huge class": (f"{10**300} 0.5 0.5 0.2 0.2", "is out of range"),
    "a class beyond": (f"{10**400} 0.5 0.5 0.2 0.2", "is not a finite number"),
    "a class without end": (f"{'9' * 100_000} 0.5 0.5 0.2 0.2", "is not a finite number"),
    "no number": ("0 nan 0.5 0.2 0.2", "nan is not a finite number"),
    "a negative class": ("-1 0.5 0.5 0.2 0.2", "is negative"),
    "a terminal's words": (f"0 {ESCAPE} 0.5 0.2 0.2", "is not a number"),
    "a line without end": ("0 " + "0.5 " * 10**6, "has no area"),
    "many bad lines": ("x\n" * 2000, "more than 1,000 problems"),
    "binary": ("\0" * 100, "binary"),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_of_yolo(name: str, tmp_path: Path, few_problems: None) -> None:
    label, word = LABELS[name]
    data = yolo(tmp_path / "set", label)
    assert "\x1b" not in refused(lambda: data.source("train"), "a.txt", word)


# A data.yaml, and words of the refusal.
ABOUTS: dict[str, tuple[str, str]] = {
    "a program": ("names: !!python/object/apply:os.mkdir [TRAP]", "could not determine a constructor"),
    "an object": ("names: !!python/object:os.system {}", "could not determine a constructor"),
    "laughs": (LAUGHS + "names: [*i]", "refers to itself"),
    "merged laughs": (MERGED, "refers to itself"),
    "itself": ("names: &n [*n]", "refers to itself"),
    "depth": ("names: " + "[" * 600 + "]" * 600, "not valid YAML"),
    "infinity": ("names: {0: cat, .inf: dog}", "are not 0, 1"),
    "a huge number of names": (f"names: [cat]\nnc: {10**300}", "but 1 names"),
    "a date that is none": ("names: [cat]\nx: 2001-99-99", "not valid YAML"),
    "outside": ("names: [cat]\ntrain: ../../../etc", "the folder"),
    "absolute": ("names: [cat]\ntrain: /etc", "leaves the folder"),
    "a long path": (f"names: [cat]\ntrain: {'x' * 5000}", "does not exist in"),
    "a terminal's words": ('names: ["\\e[2J"]', "control character"),
    "a line break": ('names: ["a\\nb"]', "control character"),
    "a long name": (f"names: [{'x' * 100_000}]", "more than 200"),
    "no text": ("names: [\udcff]", "not text in UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("name", ABOUTS)
def test_data_yaml(name: str, tmp_path: Path) -> None:
    about, word = ABOUTS[name]
    data = yolo(tmp_path / "set", about=about.replace("TRAP", str(tmp_path / "trap")))
    assert "\x1b" not in refused(lambda: data.source("train"), "data.yaml", word)
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("name", ["cat/../../dog", "a/b", "..", "C:\\x"])
def test_class_names_are_no_paths(name: str, tmp_path: Path) -> None:
    """They may hold separators (``car/truck``), and no file is named by them."""
    from cvexp.data.convert import convert

    data = yolo(tmp_path / "set", about=json.dumps({"names": [name]}))
    for split in ("images", "labels"):
        (tmp_path / "set" / split / "val").symlink_to(tmp_path / "set" / split / "train")
    convert(data, "voc", tmp_path / "out", splits=("train",), progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "set"]
    assert name in (tmp_path / "out" / "Annotations" / "a.xml").read_text()


# --- wide networks are counted, not built ----------------------------------------------------------------------------


def test_building_stops_at_what_the_weights_allow() -> None:
    from cvexp.inference import _no_larger_than

    state = {"a": torch.zeros(10)}
    with torch.device("meta"), _no_larger_than(state):
        nn.Sequential(*(nn.Linear(3, 3) for _ in range(100)))
    with pytest.raises(ValueError, match="far larger"), torch.device("meta"), _no_larger_than(state):
        nn.Sequential(*(nn.ReLU() for _ in range(2000)))
    with pytest.raises(ValueError, match="far larger"), torch.device("meta"), _no_larger_than(state):
        nn.Linear(10**5, 10**5)
    nn.Sequential(*(nn.ReLU() for _ in range(2000)))  # nothing is left of the limit
