"""Which runs are repetitions of one another, and what the groups are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from written_runs import write_run

from cvexp.comparison.grouping import Group, group_runs, test_sets
from cvexp.comparison.runs import find_runs
from cvexp.errors import UserError

test_sets.__test__ = False  # type: ignore[attr-defined]  # a function of the package, no test


def grouped(folder: Path, *by: str) -> dict[str, list[str]]:
    """Labels, and the folders of their runs."""
    return {g.label: [run.folder.name for run in g.runs] for g in group_runs(find_runs([folder]), by)}


def lr(value: float, **more: Any) -> dict[str, Any]:
    return {"config": {"optimizer": {"lr": value}} | more, "words": [f"optimizer.lr={value}"]}


SAME: dict[str, dict[str, Any]] = {
    "another seed": {"seed": 7},
    "another folder in a path": {"config": {}},
    "other loader processes": {
        "config": {"data": {"_target_": "cvexp.data.shapes.ShapesData", "seed": 0, "num_workers": 8}}
    },
    "other devices": {"config": {"trainer": {"max_epochs": 2, "devices": 4, "default_root_dir": "x"}}},
    "another logger": {"config": {"logger": {"wandb": {"name": "x"}}}},
    "resumed": {"config": {"resume": "last.ckpt"}},
    "other pictures on the way": {"config": {"callbacks": {"pictures": {"images": 3}}}},
}
OTHER: dict[str, dict[str, Any]] = {
    "another learning rate": lr(0.1),
    "longer": {"config": {"trainer": {"max_epochs": 3, "devices": 1}}},
    "a budget": {"config": {"budget": {"minutes": 1}}},
    "another precision": {"config": {"trainer": {"max_epochs": 2, "devices": 1, "precision": "bf16"}}},
    "another measure": {"config": {"metric": {"difficult": "count"}}},
    "averaged weights": {"config": {"callbacks": {"ema": {"decay": 0.9}}}},
    "another model": {"model": "detr"},
}


@pytest.mark.parametrize("changed", SAME.values(), ids=SAME.keys())
def test_what_makes_no_other_group(tmp_path: Path, changed: dict[str, Any]) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", **changed)
    assert grouped(tmp_path) == {"yolo": ["a", "b"]}


@pytest.mark.parametrize("changed", OTHER.values(), ids=OTHER.keys())
def test_what_makes_another_group(tmp_path: Path, changed: dict[str, Any]) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", **changed)
    assert list(grouped(tmp_path).values()) == [["a"], ["b"]]
    assert len(grouped(tmp_path)) == 2


def test_labels_say_what_differs_among_those_of_the_same_model(tmp_path: Path) -> None:
    write_run(tmp_path / "0", **lr(0.003))
    write_run(tmp_path / "1", **lr(0.003), seed=1)
    write_run(tmp_path / "2", "detr", **lr(0.1))
    write_run(tmp_path / "3")  # the default, not typed
    assert grouped(tmp_path) == {"yolo lr=0.003": ["0", "1"], "detr": ["2"], "yolo lr=0.001": ["3"]}


def test_all_that_was_typed_stands_in_a_label_and_of_the_rest_what_it_takes(tmp_path: Path) -> None:
    write_run(tmp_path / "0", words=["optimizer.lr=1", "loss.lr=2"], config={"optimizer": {"lr": 1}, "loss": {"lr": 2}})
    write_run(tmp_path / "1", words=["optimizer.lr=3", "loss.lr=4"], config={"optimizer": {"lr": 3}, "loss": {"lr": 4}})
    assert list(grouped(tmp_path)) == ["yolo loss.lr=2 optimizer.lr=1", "yolo loss.lr=4 optimizer.lr=3"]
    for name, depth in (("2", 1), ("3", 2)):  # nobody typed it: a preset did
        write_run(tmp_path / "more" / name, config={"net": {"depth": depth, "width": depth}})
    assert list(grouped(tmp_path / "more")) == ["yolo depth=1", "yolo depth=2"]


def test_runs_without_a_configuration_are_groups_of_their_own(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (write_run(tmp_path / name, test=None) / "config.yaml").unlink()
    assert grouped(tmp_path) == {"unknown a": ["a"], "unknown b": ["b"]}


def test_group_by_choices_or_keys(tmp_path: Path) -> None:
    write_run(tmp_path / "0", **lr(0.003))
    write_run(tmp_path / "1", **lr(0.1))
    write_run(tmp_path / "2", "detr", **lr(0.1))
    assert grouped(tmp_path, "model") == {"yolo": ["0", "1"], "detr": ["2"]}
    assert grouped(tmp_path, "optimizer.lr") == {"optimizer.lr=0.003": ["0"], "optimizer.lr=0.1": ["1", "2"]}
    assert list(grouped(tmp_path, "model", "data")) == ["yolo data=shapes", "detr data=shapes"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("modle", r"by=modle: no run has .*did you mean 'model'.*Fix: by=model"),  # misspelled
        ("optimizer.rl", r"did you mean 'optimizer\.lr'"),  # a key, misspelled
        ("seed", r"by=seed: runs of one group differ in it. Fix: "),  # each run would be alone
    ],
)
def test_by_what_no_run_has(tmp_path: Path, name: str, message: str) -> None:
    write_run(tmp_path / "0", **lr(0.003))
    with pytest.raises(UserError, match=message):
        grouped(tmp_path, name)


def test_runs_are_kept_apart_by_what_they_were_tested_on(tmp_path: Path) -> None:
    for name, test, data in (("0", "aaaa", "voc"), ("1", "bbbb", "voc"), ("2", None, "voc"), ("3", "aaaa", "voc_full")):
        write_run(tmp_path / name, test=test, data=data)
    assert [[run.folder.name for run in runs] for runs in test_sets(find_runs([tmp_path]))] == [
        ["0", "3"],
        ["1"],
        ["2"],
    ]


def test_seeds_that_come_twice(tmp_path: Path) -> None:
    for name, seed in (("0", 2), ("1", 1), ("2", 2)):
        write_run(tmp_path / name, seed=seed)
    group: Group = group_runs(find_runs([tmp_path]))[0]
    assert (group.seeds, group.repeated_seeds) == ([1, 2, 2], [2])


def test_hostile_names_reach_no_terminal(tmp_path: Path) -> None:
    write_run(tmp_path / "a", model="x\x1b[31m")
    write_run(
        tmp_path / "b", model="x\x1b[31m", words=["optimizer.lr=\x1b[0m"], config={"optimizer": {"lr": "\x1b[0m\n"}}
    )
    assert not [label for label in grouped(tmp_path) if "\x1b" in label or "\n" in label]
