"""`init_from`: which tensors are taken, which are not and why; files that are refused."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from kinds import models_of
from torch import Tensor, nn

from cvexp.build import build_model
from cvexp.errors import UserError
from cvexp.transfer import Report, Weights, grouped, init_model, known_people, read_weights, transfer

MODELS = models_of("detection")  # an embedding model has no parameters by class


class Net(nn.Module):
    """Two layers and a norm before the layer that knows the classes."""

    class_parameters: tuple[str, ...] = ("head.predict.*",)

    def __init__(self, classes: int = 2, width: int = 3) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width))
        self.head = nn.ModuleDict({"body": nn.Linear(width, 3), "predict": nn.Linear(3, classes)})


class Translating(Net):
    """Knows files in which the backbone is called ``features``."""

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        if not any(name.startswith("features.") for name in state):
            return None
        return {name.replace("features.", "backbone."): value for name, value in state.items() if name != "step"}


class Silent(nn.Module):
    """Says nothing about classes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)


def ones(model: nn.Module) -> dict[str, Tensor]:
    """A state whose values differ from every initialisation."""
    return {name: torch.full_like(value, 7) for name, value in model.state_dict().items()}


def weights(state: Mapping[str, Tensor], classes: list[str] | None, plain: bool = False) -> Weights:
    return Weights(Path("best.ckpt"), dict(state), classes, plain)


def taken(model: nn.Module) -> set[str]:
    """The tensors that hold the file's values."""
    return {name for name, value in model.state_dict().items() if (value == 7).all()}


BODY = {f"backbone.{name}" for name in ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var")}
BODY |= {"backbone.1.num_batches_tracked", "head.body.weight", "head.body.bias"}
CLASSES = {"head.predict.weight", "head.predict.bias"}


# --- classes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "data", "copied"),
    [
        (["cat", "dog"], ["cat", "dog"], BODY | CLASSES),  # the same task: everything
        (["cat", "dog"], ["dog", "cat"], BODY),  # as many, in another order: row 0 would be the wrong animal
        (["cat", "dog"], ["cat", "cow"], BODY),  # as many, others
        (["cat", "dog", "cow"], ["cat", "dog"], BODY),  # more in the file
        (["cat"], ["cat", "dog"], BODY),  # fewer
        ([], ["cat", "dog"], BODY),  # none
        (None, ["cat", "dog"], BODY),  # the file does not say
    ],
)
def test_class_rows_are_copied_for_the_same_classes_only(
    file: list[str] | None, data: list[str], copied: set[str]
) -> None:
    model = Net(classes=len(data))
    count = len(file or data)
    report = init_model(model, weights(ones(Net(classes=count)), file), data)
    assert taken(model) == set(report.copied) == copied
    assert set(report.skipped) == (BODY | CLASSES) - copied
    assert not report.missing
    assert not report.unused


def test_the_reason_is_told() -> None:
    report = init_model(Net(2), weights(ones(Net(3)), ["a", "b", "c"]), ["a", "b"])
    assert report.skipped["head.predict.weight"] == "[3, 3] in the file, [2, 3] here; classes differ"
    assert report.notes == ["classes: ['a', 'b', 'c'] in the file, ['a', 'b'] in the data"]
    report = init_model(Net(2), weights(ones(Net(2)), None, plain=True), ["a", "b"])
    assert report.skipped["head.predict.bias"] == "the file does not name its classes"


def test_a_model_that_says_nothing_about_classes() -> None:
    """Equal classes need no declaration; others cannot be told apart, whatever the shapes."""
    state = ones(Silent())
    for classes in (["b", "a"], None):
        model = Silent()
        with pytest.raises(UserError, match=r"Silent does not say which .*Fix: .*class_parameters"):
            init_model(model, weights(state, classes), ["a", "b"])
        assert not taken(model)
    model = Silent()
    init_model(model, weights(state, ["a", "b"]), ["a", "b"])
    assert taken(model) == {"layer.weight", "layer.bias"}


def test_a_model_without_class_parameters_at_all() -> None:
    class Agnostic(Silent):
        class_parameters = ()

    model = Agnostic()
    init_model(model, weights(ones(model), ["x"]), ["a", "b"])
    assert taken(model) == {"layer.weight", "layer.bias"}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_declares_what_depends_on_its_classes(name: str, compose) -> None:
    """Whatever changes its shape with the number of classes is declared, and every declaration finds something."""
    cfg = compose(f"model={name}", "model.size=tiny").model
    two, three = (build_model(cfg, count) for count in (2, 3))
    state = three.state_dict()
    by_class = {n for n, value in two.state_dict().items() if value.shape != state[n].shape}
    assert by_class
    if by_class >= {n for n, _ in two.named_parameters()}:  # filters of classes and nothing else, as DPM's
        with pytest.raises(UserError, match="not one parameter"):
            init_model(two, weights(ones(two), ["a", "b"]), ["b", "a"])
        return
    report = init_model(two, weights(ones(two), ["a", "b"]), ["b", "a"])
    assert by_class <= set(report.skipped), "add them to class_parameters"
    assert set(report.skipped.values()) == {"classes differ"}
    assert len(report.copied) > len(report.names) / 2
    for pattern in two.class_parameters:
        assert any(n.startswith(pattern.rstrip("*")) for n in report.skipped), pattern


# --- what fits -------------------------------------------------------------------------------------------------------


def test_another_shape_is_skipped_and_the_rest_is_told() -> None:
    """A wider first layer: what hangs on its width stays as it was built; entries are grouped as far as they can be."""
    state = ones(Net(width=4)) | {"neck.a.weight": torch.ones(1), "neck.b.weight": torch.ones(1), "odd": torch.ones(1)}
    del state["head.body.bias"]
    model = Net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = init_model(model, weights(state, ["a", "b"]), ["a", "b"])
    assert taken(model) == {"backbone.1.num_batches_tracked", "head.predict.weight", "head.predict.bias"}
    assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items() if n not in report.copied)
    assert report.text() == "\n".join(
        [
            "init_from=best.ckpt: copied 3 of 11 tensors (8 of 35 parameters)",
            "skipped, left as initialised:",
            "  backbone.0.weight: [4, 2] in the file, [3, 2] here",
            "  backbone.0.bias: [4] in the file, [3] here",
            "  backbone.1.weight: [4] in the file, [3] here",
            "  backbone.1.bias: [4] in the file, [3] here",
            "  backbone.1.running_mean: [4] in the file, [3] here",
            "  backbone.1.running_var: [4] in the file, [3] here",
            "  head.body.weight: [3, 4] in the file, [3, 3] here",
            "not in the file, left as initialised:",
            "  head.body.bias",
            "unused entries of the file:",
            "  neck.* (2 tensors)",
            "  odd",
        ]
    )
    assert report.text(limit=2).splitlines()[1:5] == [*report.text().splitlines()[1:4], "  ... 5 more"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.ones(3, dtype=torch.float16), ""),  # half precision is widened
        (torch.ones(3, dtype=torch.int64), "int64 in the file, float32 here"),
        (torch.ones(1), "[1] in the file, [3] here"),  # would be spread over all rows by a careless copy
        (torch.ones(()), "[] in the file, [3] here"),
        (torch.ones(3, dtype=torch.complex64), "not a plain tensor of real numbers"),
        (torch.ones(3).to_sparse(), "not a plain tensor of real numbers"),
        (torch.ones(3, device="meta"), "not a plain tensor of real numbers"),  # a shape without values
    ],
)
def test_odd_tensors(value: Tensor, reason: str) -> None:
    report = init_model(Net(), weights(ones(Net()) | {"head.body.bias": value}, ["a", "b"]), ["a", "b"])
    assert report.skipped.get("head.body.bias", "") == reason


def test_nothing_that_fits_is_an_error() -> None:
    model = Net()
    state = {"backbone.1.num_batches_tracked": torch.tensor(7), "conv.weight": torch.ones(2)}  # a buffer is not enough
    with pytest.raises(
        UserError, match=r"(?s)best\.ckpt: not one parameter fits.*conv\.weight.*backbone\.0\.weight.*Fix: "
    ):
        init_model(model, weights(state, ["a", "b"]), ["a", "b"])
    assert not taken(model), "nothing was changed"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_numbers_are_an_error(bad: float) -> None:
    model, state = Net(), ones(Net())
    state["head.body.bias"][1] = bad
    with pytest.raises(UserError, match=r"NaN or infinity in head\.body\.bias\. Fix: "):
        init_model(model, weights(state, ["a", "b"]), ["a", "b"])
    assert not taken(model), "nothing was changed"


def test_broken_numbers_that_are_not_copied_do_no_harm() -> None:
    state = ones(Net()) | {"head.predict.bias": torch.tensor([float("nan"), 0.0])}
    assert "head.predict.bias" in init_model(Net(), weights(state, ["x", "y"]), ["a", "b"]).skipped


# --- foreign files ---------------------------------------------------------------------------------------------------


def foreign(model: nn.Module) -> dict[str, Tensor]:
    state = {name.replace("backbone.", "features."): value for name, value in ones(model).items()}
    return state | {"step": torch.tensor(3)}


def test_published_weights_are_translated() -> None:
    model = Translating()
    report = init_model(model, weights(foreign(model), None, plain=True), ["a", "b"])
    assert taken(model) == BODY
    assert report.notes[0] == "translated: 12 entries of the file became 11 of Translating"


def test_own_names_need_no_translation() -> None:
    model = Translating()
    init_model(model, weights(ones(model), None, plain=True), ["a", "b"])
    assert taken(model) == BODY


def test_a_checkpoint_of_cvexp_is_never_translated() -> None:
    with pytest.raises(UserError, match="not one parameter fits"):
        init_model(Translating(), weights({"features.0.weight": torch.ones(3, 2)}, ["a"]), ["a"])


def test_a_translation_that_stumbles() -> None:
    class Stumbling(Net):
        def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {"head.body.bias": state["fc.bias"]}

    with pytest.raises(UserError, match=r"best\.ckpt: Stumbling\.translate cannot read it \(KeyError.*Fix: "):
        init_model(Stumbling(), weights(foreign(Net()), None, plain=True), ["a", "b"])


# --- files -----------------------------------------------------------------------------------------------------------


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


STATE = {"layer.weight": torch.ones(2, 2)}


@pytest.mark.parametrize(
    ("content", "classes", "plain"),
    [
        (STATE, None, True),  # model.state_dict()
        ({"state_dict": STATE, "epoch": 3}, None, True),  # somebody's checkpoint
        ({"model": STATE, "classes": ["a", "b"]}, ["a", "b"], True),  # one that names its classes
        ({**STATE, "note": "text"}, None, True),  # other things among the tensors
        # ours; what belongs to the metric or a loss is not the model's
        (
            {
                "cvexp": {"classes": ["a"], "config": {}},
                "state_dict": {"model.layer.weight": STATE["layer.weight"], "metric.x": torch.ones(1)},
            },
            ["a"],
            False,
        ),
    ],
)
def test_kinds_of_file(tmp_path: Path, content: Any, classes: list[str] | None, plain: bool) -> None:
    found = read_weights(saved(tmp_path / "file.pt", content))
    assert list(found.state) == ["layer.weight"]
    assert (found.classes, found.plain) == (classes, plain)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "no tensors with names in it .found: nothing that has names"),
        ([torch.ones(1)], "no tensors with names"),  # a list
        (torch.ones(3), "no tensors with names"),
        ({"epoch": 3}, "found: epoch"),
        ({3: torch.ones(1)}, "no tensors with names"),  # numbers for names
        ({"cvexp": {"classes": ["a"]}, "state_dict": {"metric.x": torch.ones(1)}}, "no tensors"),  # nothing of a model
        ({"cvexp": {"classes": "ab"}, "state_dict": {"model.x": torch.ones(1)}}, "classes are not a list of names"),
        ({"model": STATE, "classes": [1, 2]}, "classes are not a list of names"),
    ],
)
def test_files_without_weights(tmp_path: Path, content: Any, message: str) -> None:
    path = saved(tmp_path / "file.pt", content)
    with pytest.raises(UserError, match=rf"init_from=.*file\.pt: .*{message}.*Fix: "):
        read_weights(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [b"", b"text", b"\x80\x04junk", b"PK\x03\x04junk"])
def test_files_that_cannot_be_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.ckpt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"file\.ckpt: cannot be read safely .*Fix: "):
        read_weights(path)


def test_a_truncated_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "file.ckpt", {"w": torch.ones(10_000)})
    path.write_bytes(path.read_bytes()[:9_000])
    with pytest.raises(UserError, match="cannot be read safely"):
        read_weights(path)


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    path = saved(tmp_path / "bomb.ckpt", {"state_dict": Bomb(tmp_path / "sprung"), "cvexp": {"classes": ["a"]}})
    with pytest.raises(UserError, match=r"bomb\.ckpt: cannot be read safely"):
        read_weights(path)
    assert not (tmp_path / "sprung").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "sprung").is_dir(), "the bomb works, so the refusal above meant something"


def test_missing_files_and_folders_name_what_is_near(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    best = saved(tmp_path / "checkpoints" / "best.ckpt", STATE)
    for path, what in ((tmp_path, "is a folder"), (best.with_name("bset.ckpt"), "no such file")):
        with pytest.raises(UserError, match=what) as refused:
            read_weights(path)
        assert str(best) in str(refused.value)
    with pytest.raises(UserError, match=r"no such file\. Fix: give a file that is there"):
        read_weights(tmp_path / "nowhere" / "best.ckpt")


# --- the report ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "everything", "lines"),
    [
        ([], [], []),  # nothing
        ([], ["a.x"], []),
        (["a.x"], ["a.x"], ["a.x"]),  # one is told by its name
        (["a.x", "a.y"], ["a.x", "a.y"], ["a.* (2 tensors)"]),
        (["a.x", "a.y"], ["a.x", "a.y", "a.z"], ["a.x", "a.y"]),  # not all of a
        (["a.b.x", "a.b.y"], ["a.b.x", "a.b.y", "a.c.x"], ["a.b.* (2 tensors)"]),  # as far out as it goes
        (["b", "a.x", "a.y"], ["a.x", "a.y", "b"], ["a.* (2 tensors)", "b"]),  # in the model's order
        (["a", "a.x"], ["a", "a.x", "a.y"], ["a", "a.x"]),  # a tensor with the name of a part
        (["ab.x", "a.x", "a.y"], ["a.x", "a.y", "ab.x", "ab.y"], ["a.* (2 tensors)", "ab.x"]),  # `ab` is not in `a`
    ],
)
def test_grouped(names: list[str], everything: list[str], lines: list[str]) -> None:
    assert grouped(names, everything) == lines


def test_the_report_is_kept_in_full(tmp_path: Path) -> None:
    many = {f"extra{i}": torch.ones(1) for i in range(50)}
    transfer(Net(), weights(ones(Net()) | many, ["a", "b"]), ["a", "b"], tmp_path / "run")
    text = (tmp_path / "run" / "init_from.txt").read_text()
    assert text.startswith("init_from=best.ckpt: copied 11 of 11 tensors (35 of 35 parameters)\n")
    assert text.count("extra") == 50
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["init_from.txt"], "nothing half-written"


def test_an_empty_report() -> None:
    assert Report(Path("x"), {}, [], []).text() == "init_from=x: copied 0 of 0 tensors (0 of 0 parameters)"


def test_many_classes_are_cut() -> None:
    many = [f"c{i}" for i in range(80)]
    report = init_model(Net(2), weights(ones(Net(80)), many), ["a", "b"])
    six = "['c0', 'c1', 'c2', 'c3', 'c4', 'c5'] ... (80 in all)"
    assert report.notes == [f"classes: {six} in the file, ['a', 'b'] in the data"]


# --- people ----------------------------------------------------------------------------------------------------------


class People:
    """Data of people."""

    trained = None
    class_names = ("Cy", "Bo")


def face_weights(classes: list[str] | None, known: tuple[str, ...] = ()) -> Weights:
    return Weights(Path("x.ckpt"), {}, classes, plain=False, known=known)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (None, []),  # from scratch: nobody but the data's own, who are checked anyway
        (face_weights(None), []),  # a file that names nobody
        (face_weights(["Al"]), ["Al", "Bo", "Cy"]),
        (face_weights(["Al"], ("Di", "Al")), ["Al", "Bo", "Cy", "Di"]),  # and those that it began with itself
    ],
)
def test_people_that_weights_know_are_no_strangers(weights: Weights | None, expected: list[str]) -> None:
    data = People()
    assert known_people(weights, data) == expected
    assert data.trained == (set(expected) or None)


def test_classes_of_boxes_are_no_people() -> None:
    class Boxes:
        class_names = ("cat",)

    assert known_people(face_weights(["cat"]), Boxes()) == []
