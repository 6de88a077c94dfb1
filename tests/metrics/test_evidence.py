"""evidence.npz: written whole, read back to the bit, refused where it cannot be trusted; written beside result.json."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_oracle import random_set
from omegaconf import OmegaConf
from test_pair_evidence import WORKED
from test_verification_metric import faces, filled
from torch import nn

from cvexp.metrics.detection import DetectionMAP
from cvexp.metrics.detection_evidence import DetectionEvidence
from cvexp.metrics.evidence import Evidence, belongs_to, read_evidence, write_evidence
from cvexp.metrics.significance import draws
from cvexp.results import write_results
from cvexp.types import UserError


def evaluated(seed: int = 0) -> tuple[DetectionMAP, dict[str, float]]:
    """A metric that has seen a test set, and its figures as a run has them."""
    gt, found = random_set(seed)
    metric = DetectionMAP()
    metric.set_ground_truth(gt)
    ids = gt.image_ids.tolist()
    metric.update(ids, [found.of(i) for i in ids])
    return metric, {f"test/{name}": float(value) for name, value in metric.compute().items()}


def detection_evidence() -> DetectionEvidence:
    evidence = evaluated()[0].evidence
    assert evidence is not None
    return evidence


# --- the file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("evidence", [detection_evidence(), WORKED], ids=lambda e: e.kind)
def test_written_and_read_is_the_same(evidence: Any, tmp_path: Path) -> None:
    path = tmp_path / "a folder" / "evidence.npz"
    write_evidence(path, evidence)
    back = read_evidence(path)
    assert [p.name for p in path.parent.iterdir()] == ["evidence.npz"]  # no temporary file
    assert (back.kind, back.unit, back.fingerprint) == (evidence.kind, evidence.unit, evidence.fingerprint)
    assert back.measures == evidence.measures
    weights = draws(len(evidence.ids), 20, 0, evidence.strata)
    for measure in evidence.measures:
        np.testing.assert_array_equal(back.values(weights, measure), evidence.values(weights, measure))
    for name, array in evidence.arrays().items():
        np.testing.assert_array_equal(back.arrays()[name], array)


def test_a_write_that_fails_leaves_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "evidence.npz"
    write_evidence(path, WORKED)
    before = path.read_bytes()

    def full(file: io.BufferedWriter, **_: Any) -> None:
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="no space"):
        write_evidence(path, detection_evidence())
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["evidence.npz"]


def changed(evidence: Any, **arrays: Any) -> dict[str, Any]:
    """The arrays of a file with some replaced; None removes one."""
    content = {"kind": np.array(evidence.kind), "version": np.array(1), **evidence.arrays(), **arrays}
    return {name: array for name, array in content.items() if array is not None}


BOXES = detection_evidence()
N, U, K = len(BOXES.image), len(BOXES.ids), len(BOXES.classes)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (changed(BOXES, kind=np.array("tracking")), "tracking"),  # of another program
        (changed(BOXES, version=np.array(2)), "later cvexp"),
        (changed(BOXES, version=np.array("x")), "invalid literal"),
        (changed(BOXES, kind=None), "'kind' is missing"),
        (changed(BOXES, objects=None), "'objects' is missing"),
        (changed(BOXES, image=np.full(N, U)), "an image that is not there"),
        (changed(BOXES, image=np.full(N, -1)), "an image that is not there"),
        (changed(BOXES, image=np.zeros(N)), "whole numbers"),
        (changed(BOXES, label=np.arange(N)[::-1].copy()), "labels"),
        (changed(BOXES, label=np.full(N, K)), "labels"),
        (changed(BOXES, label=np.zeros(N - 1, int)), "labels"),
        (changed(BOXES, objects=np.zeros((U, K + 1), int)), "objects"),
        (changed(BOXES, objects=np.full((U, K), -1)), "objects"),
        (changed(BOXES, ids=BOXES.ids[::-1].copy()), "ascend"),
        (changed(BOXES, ids=BOXES.ids[:0], objects=BOXES.objects[:0]), "no image"),
        (changed(BOXES, correct=np.zeros((10, 1), np.uint8)), "flags"),
        (changed(BOXES, correct=np.packbits(np.ones((10, N), bool), axis=1),
                 ignored=np.packbits(np.ones((10, N), bool), axis=1)), "both correct and ignored"),
        (changed(BOXES, ids=np.array(5)), "unsized"),  # a number where a list belongs
        (changed(BOXES, classes=np.array(5)), "not iterable"),
        (changed(WORKED, scores=np.full(6, np.nan)), "not finite"),
        (changed(WORKED, scores=np.zeros(5)), "length"),
        (changed(WORKED, same=np.ones(6, bool)), "one kind"),
        (changed(WORKED, same=np.ones(6)), "flags"),
        (changed(WORKED, fars=np.array([2.0])), "false accept rate"),
        (changed(WORKED, ids=np.zeros(6, int)), "ascend"),
    ],
)  # fmt: skip
def test_a_hostile_file_is_refused(content: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "evidence.npz"
    np.savez_compressed(path, **content)
    with pytest.raises(UserError, match=words) as caught:
        read_evidence(path)
    assert str(path) in str(caught.value)
    assert "Fix: " in str(caught.value)


def _pickled() -> bytes:
    file = io.BytesIO()
    np.savez(file, kind=np.array([print], dtype=object))
    return file.getvalue()


def _short_member() -> bytes:
    """Its header promises far more numbers than there are."""
    array = io.BytesIO()
    np.lib.format.write_array_header_1_0(array, {"descr": "<f8", "fortran_order": False, "shape": (10**15,)})
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("kind.npy", array.getvalue())
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"no archive", _pickled(), _short_member(), b"PK\x03\x04" + bytes(40)],
    ids=["empty", "text", "pickle", "short", "torn"],
)
def test_what_is_no_archive_of_arrays_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "evidence.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"evidence\.npz: no usable evidence: .+ Fix: "):
        read_evidence(tmp_path / "evidence.npz")


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evidence.npz"
    write_evidence(path, BOXES)
    whole = path.read_bytes()
    for size in range(0, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="Fix: "):
            read_evidence(path)


def test_nothing_huge_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "evidence.npz"
    np.savez_compressed(path, kind=np.zeros(10**6))
    assert path.stat().st_size < 20_000
    monkeypatch.setattr("cvexp.metrics.evidence.LARGEST", 10**6)
    with pytest.raises(UserError, match=r"unpack to 8,000,128 bytes"):
        read_evidence(path)


def test_no_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.npz", tmp_path):
        with pytest.raises(UserError, match="Fix: "):
            read_evidence(path)


# --- beside result.json ----------------------------------------------------------------------------------------------


class _Data:
    class_names = ("a",)
    problems: dict[str, list] = {}  # noqa: RUF012


def run(folder: Path, results: dict[str, float], metric: Any) -> dict[str, Any]:
    cfg = OmegaConf.create({"paths": {"output": str(folder)}, "seed": 3, "trainer": {"fast_dev_run": False}})
    write_results(results, nn.Linear(2, 2), _Data(), cfg, metric)
    return json.loads((folder / "result.json").read_text())


def test_a_run_leaves_its_evidence(tmp_path: Path) -> None:
    metric, results = evaluated()
    written = run(tmp_path, results, metric)
    evidence: Evidence = read_evidence(tmp_path / "evidence.npz")
    ones = np.ones((1, len(evidence.ids)))
    for measure in ("AP", "AP50", "AP75"):
        assert evidence.values(ones, measure)[0] == pytest.approx(written[f"test/{measure}"], abs=1e-12)


def test_a_run_on_faces_leaves_its_evidence(tmp_path: Path) -> None:
    metric = filled(*faces(), fars=(0.1,))
    metric.threshold = -6.0
    written = run(tmp_path, {f"test/{name}": float(value) for name, value in metric.compute().items()}, metric)
    evidence = read_evidence(tmp_path / "evidence.npz")
    assert (evidence.kind, evidence.unit, len(evidence.ids)) == ("verification", "pairs", 60)
    for measure in ("accuracy", "AUC", "TAR@1e-1"):
        assert evidence.values(np.ones((1, 60)), measure)[0] == pytest.approx(written[f"test/{measure}"], abs=1e-12)


@pytest.mark.parametrize(
    ("metric", "results"),
    [
        (None, {"test/AP": 0.5}),  # no metric
        (object(), {"test/AP": 0.5}),  # one without evidence
        (DetectionMAP(), {"test/AP": 0.5}),  # one that has seen nothing
        (evaluated()[0], {"test/AP": 0.999}),  # the figure of another evaluation
        (evaluated()[0], {"val/best": 0.5}),  # trained but not tested
    ],
)
def test_evidence_of_something_else_is_not_written_and_goes(metric: Any, results: dict, tmp_path: Path) -> None:
    (tmp_path / "evidence.npz").write_bytes(b"of a former evaluation")
    run(tmp_path, results, metric)
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_another_split_has_evidence_too() -> None:
    metric, results = evaluated()
    assert metric.evidence is not None
    assert belongs_to(metric.evidence, {"val/AP": results["test/AP"]})
    assert not belongs_to(metric.evidence, {"AP": results["test/AP"]})
