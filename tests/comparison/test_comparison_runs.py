"""Run folders: which are found, what a run says of itself, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from written_runs import judged, write_face_run, write_run

from cvexp.comparison.runs import Run, find_runs, survey
from cvexp.errors import UserError


def names(runs: list[Run], below: Path) -> list[str]:
    return [str(run.folder.relative_to(below)) for run in runs]


def test_runs_are_found_at_and_below_a_path_each_once_by_number(tmp_path: Path) -> None:
    for place in ("sweep/10", "sweep/2", "deep/a/b/c", "alone"):
        write_run(tmp_path / place)
    write_run(tmp_path / "alone" / "checkpoints")  # what lies in a run's folder is its own
    write_run(tmp_path / ".hidden" / "x")
    (tmp_path / "loop").symlink_to(tmp_path)
    found = find_runs([tmp_path / "sweep", tmp_path, tmp_path / "alone"])
    assert names(found, tmp_path) == ["sweep/2", "sweep/10", "alone", "deep/a/b/c"]


def test_what_a_run_says_of_itself(tmp_path: Path) -> None:
    run = find_runs([write_run(tmp_path / "x", "yolo", 3, words=["+optimizer.lr=0.1"], curve=[0.1, 0.2])])[0]
    assert (run.model, run.data, run.seed, run.test_set) == ("yolo", "shapes", 3, "aaaa")
    assert run.words["optimizer.lr"] == "0.1"
    assert run.curves == [{"epoch": 0, "step": 4, "val/AP": 0.1}, {"epoch": 1, "step": 9, "val/AP": 0.2}]
    assert run.evidence is None
    assert run.sweep is None
    assert run.number("test/AP") == 0.5
    assert run.number("metric/settings") is None


def test_choices_of_the_manifest_win_then_words_then_hydra_then_the_target(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "x", "typed")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"choices": {"model": "chosen", "model/neck": None}}))
    assert find_runs([folder])[0].model == "chosen"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    hydra = {"hydra": {"runtime": {"choices": {"model": "hydras", "optimizer": "sgd"}}}}
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump(hydra))
    run = find_runs([folder])[0]
    assert (run.model, run.choices["optimizer"]) == ("typed", "sgd")
    (folder / "manifest.json").unlink()
    assert find_runs([folder])[0].model == "hydras"
    (folder / ".hydra" / "hydra.yaml").unlink()
    assert find_runs([folder])[0].model == "Net"
    (folder / "config.yaml").unlink()
    assert find_runs([folder])[0].model == "unknown"  # detections of another tool have no configuration


def test_a_test_set_without_a_manifest_is_that_of_the_evidence(tmp_path: Path) -> None:
    folder = write_face_run(tmp_path / "x", judged(40, [0]), test=None)
    run = find_runs([folder])[0]
    assert run.test_set == "faces-1"
    assert run.evidence is run.evidence
    (folder / "evidence.npz").unlink()
    assert find_runs([folder])[0].test_set is None


def test_a_job_knows_its_sweep(tmp_path: Path) -> None:
    run = find_runs([write_run(tmp_path / "sweep" / "0")])[0]
    (tmp_path / "sweep" / "ledger.db").touch()
    assert run.sweep == tmp_path / "sweep"


BROKEN = {
    "half written": '{"test/AP": 0.',
    "a list": "[]",
    "nothing": "",
    "no text": "\udcff",
    "endless": "[" * 200_000,
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_a_result_that_cannot_be_read_is_named(tmp_path: Path, content: str) -> None:
    write_run(tmp_path / "good")
    bad = write_run(tmp_path / "bad")
    (bad / "result.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    runs, left = survey([tmp_path])
    assert names(runs, tmp_path) == ["good"]
    assert left[0].reason.startswith("cannot be read: result.json")
    with pytest.raises(UserError, match=r"bad: cannot be read: result\.json.*Fix: "):
        find_runs([tmp_path])


def test_a_broken_configuration_is_named_and_other_files_may_be_missing(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "x")
    (folder / "manifest.json").write_text("{")
    (folder / "metrics.csv").write_bytes(b"\xff\x00,,\n1")
    run = find_runs([folder])[0]
    assert (run.manifest, run.curves, run.model) == ({}, [], "Net")
    (folder / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"x: cannot be read: config\.yaml"):
        find_runs([folder])
    lines = ["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))]
    (folder / "config.yaml").write_text("\n".join(lines))  # 9 ** 11 values
    with pytest.raises(UserError, match=r"x: cannot be read: config\.yaml"):
        find_runs([folder])


def test_numbers_that_are_none_are_not_taken_for_some(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "x")
    (folder / "result.json").write_text(
        '{"a": NaN, "b": Infinity, "c": true, "d": "1", "e": 1e999, "f": ' + "9" * 400 + "}"
    )
    run = find_runs([folder])[0]
    assert [run.number(name) for name in "abcdefg"] == [None] * 7
    assert run.seed == 0  # of the configuration


REFUSED = {
    "no folder": ("nowhere", r"nowhere: no such folder. Fix: "),
    "an empty one": ("empty", r"empty: no run there \(no result.json\). Fix: "),
    "one that has not ended": ("cut", r"cut: no finished run there; 1 without.*Fix: go on with it, .*resume=.*cut"),
}


@pytest.mark.parametrize(("place", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_path_without_a_run_is_refused_with_the_fix(tmp_path: Path, place: str, message: str) -> None:
    write_run(tmp_path / "good")
    (tmp_path / "empty").mkdir()
    (write_run(tmp_path / "cut") / "result.json").unlink()
    with pytest.raises(UserError, match=message):
        find_runs([tmp_path / "good", tmp_path / place])


def test_reading_runs_needs_no_torch() -> None:
    code = "import sys, cvexp.compare, cvexp.comparison.runs; print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
