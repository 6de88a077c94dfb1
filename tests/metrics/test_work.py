"""What a model tells of an image's cost stands in results and reports."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from cvexp.callbacks.report import in_words
from cvexp.metrics.work import work_of
from cvexp.models.sliding_window import SlidingWindow


def source(*sizes: tuple[int, int]) -> SimpleNamespace:
    return SimpleNamespace(ground_truth=lambda: SimpleNamespace(sizes=torch.tensor(sizes)))


def test_the_lectures_count_is_of_the_most_common_size() -> None:
    model = SlidingWindow(3, channels=(4, 4, 4), hidden=8, image_size=320)
    found = work_of(model, source((375, 500), (500, 375), (375, 500), (333, 500)))
    assert found["possible_boxes"] == 8_830_125_000
    assert in_words(found["possible_boxes"]) == "8,830,125,000"
    assert found["windows_per_image"] == model.work(1, 1)["windows_per_image"] > 100  # of the canvas, not of the image
    assert found["cnn_passes_per_image"] == 21


def test_models_that_tell_less() -> None:
    assert work_of(SimpleNamespace(cnn_passes_per_image=299.5), None) == {"cnn_passes_per_image": 299.5}
    assert work_of(SimpleNamespace(cnn_passes_per_image=None), None) == {}
    assert work_of(object(), None) == {}
    assert in_words(299.5) == "299.5"
