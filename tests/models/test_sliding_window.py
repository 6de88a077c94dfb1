"""The sliding window: both ways of looking agree, windows are matched and drawn as said, known negatives come first."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cvexp.losses.smooth_l1 import SmoothL1
from cvexp.models.sliding_window import SlidingWindow, WindowNet
from cvexp.types import Target, UserError

IMAGES = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
TINY = {"channels": (8, 16, 16), "hidden": 24, "largest_scale": 2.0, "scales": 5, "image_size": 96}


def network(**changes: object) -> SlidingWindow:
    torch.manual_seed(0)
    model = SlidingWindow(3, **(TINY | changes))  # type: ignore[arg-type]
    nn.init.normal_(model.classifier.classify.weight, std=0.5)  # so that windows differ
    return model.eval()


def target(
    boxes: list[list[float]],
    image_id: int = 0,
    to_original: tuple[float, ...] = (1, 1, 0, 0),
    labels: list[int] | None = None,
) -> Target:
    count = len(boxes)
    return Target(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels or [1] * count, dtype=torch.int64),
        difficult=torch.zeros(count, dtype=torch.bool),
        crowd=torch.zeros(count, dtype=torch.bool),
        area=torch.ones(count),
        image_id=image_id,
        size=(96, 96),
        original_size=(96, 96),
        to_original=torch.tensor(to_original, dtype=torch.float32),
    )


@pytest.mark.parametrize(
    ("channels", "window", "side"),
    [
        ((8, 16, 16), 32, 3),  # 32 -> 15 -> 7 -> 3
        ((8, 16), 8, 1),  # 8 -> 3 -> 1: the smallest
        ((8, 16, 16), 64, 7),  # 64 -> 31 -> 15 -> 7
    ],
)
def test_the_window_is_the_receptive_field(channels: tuple[int, ...], window: int, side: int) -> None:
    """Every pixel of the window is read, and one stride further the next window begins."""
    net = WindowNet(2, channels, 8, window)
    assert (net.side, net.stride) == (side, 2 ** len(channels))
    image = torch.rand(1, 3, window, window, requires_grad=True)
    torch.manual_seed(1)
    nn.init.normal_(net.classify.weight)
    for bias in (net.hidden.bias, *(m.bias for m in net.features if isinstance(m, nn.Conv2d))):
        nn.init.constant_(bias, 10.0)  # no ReLU is off
    net(image)[0, 1].backward()
    assert (image.grad.abs().sum(dim=1) > 0).all()
    assert net.dense(torch.rand(1, 3, window + net.stride, window)).shape == (1, 2, 3)


@pytest.mark.parametrize("window", [8, 36, 0])  # less than two strides; no multiple; none
def test_a_window_that_does_not_suit_the_network(window: int) -> None:
    with pytest.raises(UserError, match=f"model.window={window} .*Fix: a multiple of 8, at least 16"):
        WindowNet(2, (8, 16, 16), 8, window)


def test_dense_evaluation_equals_crops() -> None:
    """The sheet's oracle, all windows of all levels of two images."""
    model = network()
    with torch.no_grad():
        dense = model.scan(IMAGES)
        model.mode = "crops"
        crops = model.scan(IMAGES)
    assert dense.shape == crops.shape == (2, len(model.grid(IMAGES)[1]), 4)
    assert dense.std() > 0.1  # else nothing is compared
    torch.testing.assert_close(dense, crops, atol=1e-4, rtol=1e-4)


def test_both_ways_find_the_same() -> None:
    found = [network(mode=mode)(IMAGES) for mode in ("dense", "crops")]
    for dense, crops in zip(*found, strict=True):
        assert len(dense) == len(crops) > 0
        torch.testing.assert_close(dense.scores, crops.scores, atol=1e-4, rtol=1e-4)


def test_training_classifies_what_the_scan_classifies() -> None:
    """The loss of the sampled windows, from the scan's logits and by hand."""
    model = network(samples=10)
    targets = [target([[10, 10, 40, 40]]), target([], 1)]
    with torch.no_grad():
        loss = model(IMAGES, targets)["class"]
        logits = model.scan(IMAGES)
        index, match = model.sample_windows(model.grid(IMAGES)[1], targets)
    expected = 0.0
    for image in range(2):
        for n, window in enumerate(index[image].tolist()):
            label = 2 if match.positive[image, n] else 0  # class 1, after the background
            expected -= float(logits[image, window].log_softmax(0)[label])
    assert loss.item() == pytest.approx(expected / 20, rel=1e-4)


def test_the_work_of_an_image() -> None:
    """96 x 96 at five scales, square: 21^2 + 14^2 + 9^2 + 5^2 + 3^2 = 752 windows."""
    square = network(ratios=(1.0,))
    assert square.work(96, 96) == {"windows_per_image": 752, "cnn_passes_per_image": 5, "possible_boxes": 4656**2}
    assert network(ratios=(1.0,), mode="crops").work(96, 96)["cnn_passes_per_image"] == 752
    assert square.work(375, 500)["possible_boxes"] == 8_830_125_000


def test_windows_are_objects_background_or_neither() -> None:
    model = network(ratios=(1.0,), best_of_each=False)
    _, boxes = model.grid(IMAGES)
    (assignment,) = model.assignments(IMAGES[:1], [target([[16, 16, 48, 48]])])
    match = assignment.match
    where = {tuple(box): n for n, box in enumerate(boxes.tolist())}
    same, half, far = where[16, 16, 48, 48], where[24, 24, 56, 56], where[64, 64, 96, 96]
    assert match.positive[0, same]
    assert match.ignored[0, half]  # 24 * 24 / (2 * 1024 - 576) = 0.39
    assert not match.positive[0, far]
    assert not match.ignored[0, far]


def test_a_thin_object_gets_its_best_window() -> None:
    thin = [target([[5, 40, 90, 43]])]
    assert network().assignments(IMAGES[:1], thin)[0].match.positive.sum() >= 1
    assert network(best_of_each=False).assignments(IMAGES[:1], thin)[0].match.positive.sum() == 0


def test_a_sample_has_its_share_of_objects() -> None:
    model = network(samples=32, positive_share=0.25)
    targets = [target([[10, 10, 40, 40], [40, 40, 90, 90]]), target([], 1)]
    _, match = model.sample_windows(model.grid(IMAGES)[1], targets)
    assert match.weight.sum(dim=1).tolist() == [32, 32]
    assert (match.positive * match.weight).sum(dim=1).tolist() == [8, 0]


def test_draws_change_in_training_and_only_there() -> None:
    model = network(samples=8)
    targets = [target([], 1)]

    def drawn() -> list[int]:
        return sorted(model.sample_windows(model.grid(IMAGES)[1], targets)[0][0].tolist())

    first = drawn()
    model(IMAGES[:1], targets)
    assert drawn() == first
    model.train()
    model(IMAGES[:1], targets)
    assert drawn() != first
    model.eval()
    assert drawn() == first


# -- negatives of former rounds ----------------------------------------------------------------------------------------

WRONG = torch.tensor([[64.0, 64, 96, 96], [0, 64, 32, 96]])


@pytest.mark.parametrize(
    ("to_original", "expected"),
    [
        ((1, 1, 0, 0), [[64, 64, 96, 96], [0, 64, 32, 96]]),  # as it was
        ((-1, 1, 96, 0), [[0, 64, 32, 96], [64, 64, 96, 96]]),  # flipped
        ((0.5, 0.5, 0, 0), [[32, 32, 48, 48], [0, 32, 16, 48]]),  # half the size
        ((1, 1, -200, 0), []),  # cropped away
    ],
)
def test_negatives_follow_the_image(to_original: tuple[float, ...], expected: list[list[float]]) -> None:
    model = network()
    model.learn_negatives([WRONG], [7])
    boxes = model.grid(IMAGES)[1]
    hard = model.hard_windows(boxes, [target([], 7, to_original)])
    assert hard is not None
    assert sorted(boxes[hard[0]].tolist()) == sorted(expected)


def test_negatives_are_in_every_sample_of_their_image() -> None:
    model = network(samples=8, hard_share=0.5)
    model.learn_negatives([WRONG, torch.zeros(0, 4)], [7, 8])
    model.learn_negatives([torch.tensor([[64.0, 0, 96, 32]])], [7])  # another round
    boxes = model.grid(IMAGES)[1]
    where = {tuple(box): n for n, box in enumerate(boxes.tolist())}
    known = {where[64, 64, 96, 96], where[0, 64, 32, 96], where[64, 0, 96, 32]}
    model.train()
    for _ in range(3):
        index, match = model.sample_windows(boxes, [target([], 7), target([], 8)])
        assert known <= set(index[0].tolist())
        assert not known & set(index[1].tolist())  # of another image; 8 of 2,202 at random
        assert match.weight.sum(dim=1).tolist() == [8, 8]
        model.draws += 1


def test_no_more_than_their_share() -> None:
    """Of 20 known ones at most half of a sample of 8."""
    model = network(samples=8, hard_share=0.5)
    boxes = model.grid(IMAGES)[1]
    model.learn_negatives([boxes[:20]], [7])
    index, _ = model.sample_windows(boxes, [target([], 7)])
    assert len(set(index[0].tolist()) & set(range(20))) == 4


def test_what_is_an_object_now_is_no_negative() -> None:
    """Annotations win: a window that was background before (another crop, mended labels) and is an object now."""
    model = network(samples=64)
    model.learn_negatives([WRONG[:1]], [7])
    index, match = model.sample_windows(model.grid(IMAGES)[1], [target([[64, 64, 96, 96]], 7)])
    box = model.grid(IMAGES)[1][index[0]]
    same = (box == WRONG[0]).all(dim=1)
    assert match.positive[0][same].all()


def test_negatives_are_no_part_of_the_weights() -> None:
    model = network()
    before = set(model.state_dict())
    model.learn_negatives([WRONG], [7])
    assert set(model.state_dict()) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "fast"}, "model.mode='fast'"),
        ({"scales": 0}, "model.scales=0"),
        ({"per_octave": 0}, "model.per_octave=0"),
        ({"largest_scale": float("nan")}, "model.largest_scale=nan"),
        ({"ratios": ()}, r"model.ratios=\[\]"),
        ({"ratios": (1.0, -1.0)}, r"model.ratios=\[1.0, -1.0\]"),
        ({"class_loss": SmoothL1()}, "model.class_loss: SmoothL1"),
    ],
)
def test_what_cannot_be_built(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=f"{message}.*Fix: "):
        network(**changes)


def test_an_image_of_any_shape() -> None:
    """As in ``pad=batch``; smaller than the window too."""
    for size in ((40, 150), (9, 9)):
        (found,) = network(score_threshold=0.0)(IMAGES[:1, :, : size[0], : size[1]])
        assert len(found) > 0
        assert (found.boxes <= torch.tensor([size[1], size[0]] * 2)).all()
