"""The ROC figure: what it shows, where it is dashed, and that a reader never meets half a file."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from cvexp.metrics.face_protocol import VerificationResult
from cvexp.metrics.roc_curves import draw_roc
from cvexp.metrics.verification import roc, tar_interval


def result(pairs_same: int = 300, pairs_different: int = 200, falling: bool = True, **changes) -> VerificationResult:
    random = np.random.default_rng(0)
    scores = np.concatenate([random.normal(-1.0, 0.2, pairs_same), random.normal(-1.4, 0.2, pairs_different)])
    kinds = np.arange(pairs_same + pairs_different) < pairs_same
    curve = roc(scores, kinds) if pairs_same and pairs_different else None
    tars = {far: (curve.tar_at_far(far), *tar_interval(scores, kinds, far)) for far in (0.05, 1e-3)} if curve else {}
    values = {
        "name": "pairs.txt", "index": np.arange(len(scores)), "scores": scores, "same": kinds, "roc": curve, "threshold": -1.2,
        "chosen": "given", "measure": "squared distance", "falling": falling, "tars": tars,
    }  # fmt: skip
    return VerificationResult(**(values | changes))


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """The figures that were saved."""
    saved: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (saved.append(self), save(self, *a, **k)))
    return saved


def legend(axes) -> str:
    return "\n".join(text.get_text() for text in axes.get_legend().get_texts())


def test_shows_the_curve_and_the_values(tmp_path, figures) -> None:
    r = result()
    path = draw_roc(r, tmp_path / "new" / "roc.png", title="FaceNet")
    assert min(Image.open(path).size) > 500
    curve, values = figures[0].axes
    assert figures[0].get_suptitle() == "FaceNet: 300 same and 200 different pairs of pairs.txt"
    assert curve.get_xscale() == "log"
    assert curve.get_xlim() == (1 / 200, 1)
    words = legend(curve)
    assert f"AUC {r.roc.auc():.3f}" in words
    assert f"EER {r.roc.eer():.3f}" in words
    tar, low, high = r.tars[0.05]
    assert f"TAR at FAR 0.05: {tar:.3f}  ({low:.3f} to {high:.3f})" in words
    assert "0.001" not in words, "not a figure with 200 different pairs"
    assert values.get_xlabel() == "squared distance"
    assert "threshold 1.2 (given)" in legend(values)
    assert sum(patch.get_height() for patch in values.patches) == 500


def test_the_drawn_curve_is_the_roc_and_dashed_where_few_carry_it(tmp_path, figures) -> None:
    r = result()
    draw_roc(r, tmp_path / "roc.png")
    dashed, solid = figures[0].axes[0].lines[:2]
    assert dashed.is_dashed()
    assert not solid.is_dashed()
    turn = 10 / 200
    assert dashed.get_xdata().max() == solid.get_xdata().min() == turn
    for line in (dashed, solid):
        for far, tar in zip(line.get_xdata(), line.get_ydata(), strict=True):
            assert tar in r.roc.tar
            assert tar <= r.roc.tar[r.roc.far <= far + 1e-12].max()
    assert dashed.get_ydata()[-1] == solid.get_ydata()[0] == r.roc.tar_at_far(turn)
    assert (solid.get_xdata()[-1], solid.get_ydata()[-1]) == (1, 1)


@pytest.mark.parametrize("different", [1, 9, 10, 11])
def test_hardly_any_pairs(tmp_path, figures, different: int) -> None:
    draw_roc(result(pairs_different=different), tmp_path / "roc.png")
    assert figures[0].axes[0].lines[0].is_dashed()


@pytest.mark.parametrize(
    ("same", "different", "words"),
    [
        (5, 0, "no curve: it needs pairs of both kinds"),
        (0, 5, "no curve: it needs pairs of both kinds"),
        (0, 0, "no pairs"),
    ],
)
def test_without_a_curve_it_says_so(tmp_path, figures, same: int, different: int, words: str) -> None:
    draw_roc(result(same, different), tmp_path / "roc.png")
    assert words in [text.get_text() for axes in figures[0].axes for text in axes.texts]


def test_a_measure_that_rises_and_no_threshold(tmp_path, figures) -> None:
    r = result(falling=False, threshold=None, name="my $list_1.txt", measure="cosine")
    draw_roc(r, tmp_path / "roc.png")
    values = figures[0].axes[1]
    assert "threshold" not in legend(values)
    assert values.patches[0].get_x() == pytest.approx(r.scores.min())


def test_equal_scores_are_drawn(tmp_path) -> None:
    same = np.arange(40) < 20
    r = result(scores=np.ones(40), same=same, roc=roc(np.ones(40), same), index=np.arange(40))
    assert draw_roc(r, tmp_path / "roc.png").exists()


def test_a_failed_write_leaves_the_former_file(tmp_path, monkeypatch) -> None:
    path = draw_roc(result(), tmp_path / "roc.png")
    before = path.read_bytes()

    def broken(self, file, **_):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", broken)
    with pytest.raises(OSError, match="disk full"):
        draw_roc(result(), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["roc.png"]
