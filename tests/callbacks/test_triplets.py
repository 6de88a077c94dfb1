"""``debug=targets`` of an embedding model: triplets are counted by hand, drawn, and nothing is trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cvexp.callbacks.targets import draw_targets
from cvexp.callbacks.triplets import Mined, sort_triplets, squared_distances
from cvexp.errors import UserError
from cvexp.types import FaceBatch, Triplets
from cvexp.viz.faces import RIGHT, WRONG, column, distance_histogram, shortened, tile, wrapped

# Two people with two images each and one with a single one, on the unit circle.
PLACES = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8], [0.96, 0.28]])
LABELS = torch.tensor([0, 0, 1, 1, 2])
#    d(0, 1) = .4, d(2, 3) = .4; of anchor 0 the negatives are at 2 (2), .8 (3), .08 (4); of anchor 2: 2 (0), .8 (1), 1.44 (4)
MINED = [(0, 1, 2), (0, 1, 3), (0, 1, 4), (2, 3, 1)]


class Circle(nn.Module):
    """Gives the places above in turn, and the triplets that it is told."""

    def __init__(self, mined: list[tuple[int, int, int]] = MINED) -> None:
        super().__init__()
        self.mined, self.asked = mined, []

    def forward(self, images: Tensor) -> Tensor:
        self.asked.append((self.training, torch.is_grad_enabled()))
        return PLACES[: len(images)]

    def mine(self, embeddings: Tensor, labels: Tensor, image_ids: Tensor) -> Triplets:
        rows = [*self.mined, (0, 0, 0)]  # the last is not valid
        anchor, positive, negative = torch.tensor(rows).unbind(dim=1)
        return Triplets(anchor, positive, negative, torch.tensor([True] * len(self.mined) + [False]))

    def statistics(self, embeddings: Tensor, labels: Tensor, image_ids: Tensor) -> dict[str, Tensor]:
        known = {"active": 0.25, "triplets": 4.0, "semi_hard": 0.5, "positive_distance": 0.4, "negative_distance": 1.1}
        return {name: torch.tensor(value) for name, value in (known | {"spread": 0.9, "margin": 0.2}).items()}


def setting(model: nn.Module) -> dict[str, Any]:
    """What a recipe gets; no trainer may be made."""

    class Task(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.classes = model, ["Ann", "Bob", "Luiz_Inacio_Lula_da_Silva"]

    def no_trainer() -> None:
        raise AssertionError("nothing is to be trained")

    images = torch.stack([torch.full((3, 12, 10), 40 * i, dtype=torch.uint8) for i in range(5)])
    batch = FaceBatch(images, LABELS, torch.arange(5))
    return {
        "make_trainer": no_trainer,
        "task": Task().eval(),
        "data": SimpleNamespace(train_dataloader=lambda: [batch]),
    }


def test_counts_files_and_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Circle()
    results = draw_targets(**setting(model), folder=str(tmp_path), images=16, side=400)
    assert results == {
        "targets/triplets/pairs": 4,  # anchor and positive: (0, 1), (1, 0), (2, 3), (3, 2)
        "targets/triplets/mined": 4,
        "targets/triplets/easy": 3,  # negatives at 2, .8 and .8 of positives at .4, margin .2
        "targets/triplets/semi_hard": 0,
        "targets/triplets/hard": 1,  # the negative at .08
        "targets/triplets/active": pytest.approx(0.25),
        "targets/triplets/semi_hard_pairs": pytest.approx(0.5),
        "targets/triplets/positive_distance": pytest.approx(0.4),
        "targets/triplets/negative_distance": pytest.approx(1.1),
        "targets/triplets/spread": pytest.approx(0.9),
    }
    assert model.asked == [(True, False)], "as in training, without a gradient"
    assert {path.name for path in tmp_path.iterdir()} == {"triplets_1.png", "distances.png"}
    said = " ".join(capsys.readouterr().out.split())
    for text in ("5 images of 3 people; margin 0.2", "1, 0, 3", "25.0%", "50.0%", "0.4000", "1.1000", "0.900"):
        assert text in said
    assert f"4 of 4 triplets drawn: {tmp_path / 'triplets_*.png'}, distances: {tmp_path / 'distances.png'}" in said


@pytest.mark.parametrize(
    ("images", "count", "names"),
    [
        (0, 4, set()),
        (1, 4, {"triplets_1.png"}),
        (5, 12, {"triplets_1.png"}),  # a page
        (6, 12, {"triplets_1.png", "triplets_2.png"}),
        (None, 12, {"triplets_1.png", "triplets_2.png", "triplets_3.png"}),  # all
        (None, 52, {f"triplets_{k:02}.png" for k in range(1, 12)}),  # names sort as numbers do
    ],
)
def test_pages(images: int | None, count: int, names: set[str], tmp_path: Path) -> None:
    mined = (MINED * 13)[:count]
    results = draw_targets(**setting(Circle(mined)), folder=str(tmp_path), images=images, side=130)
    assert {path.name for path in tmp_path.glob("triplets_*")} == names
    assert results["targets/triplets/mined"] == count, "all are counted"


def test_no_triplet_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = draw_targets(**setting(Circle([])), folder=str(tmp_path))
    assert results["targets/triplets/mined"] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"distances.png"}
    assert "no triplet was mined" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(2, 2), r"Linear has no mine\(.*Fix: .*model=facenet"),  # not trained on triplets
        (Circle([(1, 1, 2)]), r"made an anchor its own positive\. Fix"),
    ],
)
def test_refusal(model: nn.Module, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        draw_targets(**setting(model), folder=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_triplets_are_sorted_by_loss() -> None:
    """The example of the docstring, and its losses."""
    between = squared_distances(torch.cat([PLACES, torch.tensor([[0.70710678, 0.70710678]])]))
    rows = torch.tensor([*MINED, (0, 1, 5)])
    mined = sort_triplets(Triplets(*rows.unbind(dim=1), torch.ones(5, dtype=torch.bool)), between, 0.2)
    assert mined.negative.tolist() == [4, 5, 3, 1, 2], "hardest first; of equal ones the miner's order"
    assert mined.near.tolist() == pytest.approx([0.4] * 5, abs=1e-6)
    assert mined.far.tolist() == pytest.approx([0.08, 0.58578644, 0.8, 0.8, 2], abs=1e-6)
    assert mined.loss.tolist() == pytest.approx([0.52, 0.01421356, 0, 0, 0], abs=1e-6)
    assert mined.kinds == ["hard", "semi-hard", "easy", "easy", "easy"]


@pytest.mark.parametrize(
    ("near", "far", "kind"),
    [
        (0.5, 0.5, "hard"),  # as far as the positive
        (0.5, 0.75, "easy"),  # exactly at the margin: no loss
        (0.5, 0.625, "semi-hard"),
        (0.0, 0.0, "hard"),  # collapsed
    ],
)
def test_kinds_at_their_borders(near: float, far: float, kind: str) -> None:
    one = torch.zeros(1, dtype=torch.int64)
    assert Mined(one, one, one, torch.tensor([near]), torch.tensor([far]), 0.25).kinds == [kind]


def test_distances_are_exact() -> None:
    between = squared_distances(PLACES.half())
    assert between.dtype == torch.float32
    assert between.diagonal().tolist() == [0] * 5
    assert between[0, 2] == 2


# --- pictures --------------------------------------------------------------------------------------------------------


def test_tile() -> None:
    """A frame around the square, the face in the middle of it, a line of text each."""
    face = torch.full((3, 20, 10), 9, dtype=torch.uint8)
    pixels = np.asarray(tile(face, ["a name", "0.4"], side=100, ink=WRONG))
    assert pixels.shape == (108 + 40, 108, 3)
    assert (pixels[[0, 107, 50, 50], [50, 50, 0, 107]] == WRONG).all(), "the frame"
    assert (pixels[54, [35, 54, 72]] == 9).all(), "the face is 50 pixels wide"
    assert (pixels[54, [10, 97]] == 255).all(), "beside it"
    assert (pixels[108:128].min(axis=(0, 1)) < 60).all(), "the name is black"
    assert not (np.asarray(tile(face, [], 100))[0] != 255).any(), "no frame without ink"


def test_text_fits() -> None:
    from cvexp.viz.boxes import font

    lettering = font(13)
    assert shortened("Ann", 100, lettering) == "Ann"
    cut = shortened("Luiz_Inacio_Lula_da_Silva", 100, lettering)
    assert cut.endswith("…")
    assert lettering.getlength(cut) <= 100
    assert shortened("Luiz", 1, lettering) == "…"
    assert wrapped("one two three", 60, lettering) == ["one two", "three"]
    assert wrapped("", 60, lettering) == [""]


def test_column_grows_with_its_heading() -> None:
    picture = Image.new("RGB", (120, 50), "black")
    assert column([picture], []).size == (144, 74)
    assert column([picture, picture], [("short", RIGHT)]).size == (144, 12 + 24 + 8 + 2 * 62)
    assert column([picture], [("a line that has to be broken", RIGHT)]).height > 120


@pytest.mark.parametrize("counts", [(3, 4), (0, 4), (3, 0), (0, 0)])
def test_histogram(counts: tuple[int, int]) -> None:
    positive, negative = (torch.linspace(0, 2, count) for count in counts)
    picture = np.asarray(distance_histogram(positive, negative, "title", 0.2))
    assert picture.shape[2] == 3
    assert (picture.std(axis=(0, 1)) > 1).all()


# --- the real model --------------------------------------------------------------------------------------------------


def test_facenet_by_the_command(compose: Callable[..., Any], tmp_path: Path) -> None:
    """``model=facenet debug=targets``: what is mined are semi-hard triplets."""
    from cvexp.train import train

    config = compose(
        "model=facenet", "model.size=tiny", "data=drawn_faces", "data.batch_size=16", "data.train_identities=8",
        "data.val_identities=4", "data.test_identities=4", "debug=targets", "trainer.accelerator=cpu",
    )  # fmt: skip
    results = train(config)
    assert results["targets/triplets/pairs"] == 16 * 3, "4 people with 4 images"
    assert results["targets/triplets/semi_hard"] == results["targets/triplets/mined"] > 0
    assert (tmp_path / "distances.png").exists()
    assert (tmp_path / "triplets_1.png").exists()
    assert "train/steps" not in json.loads((tmp_path / "result.json").read_text())
