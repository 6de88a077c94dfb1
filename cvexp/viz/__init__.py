"""Drawing on images: boxes, pages, what a loss is computed on. No Lightning here."""

from cvexp.viz.boxes import colour, draw_boxes, page, save, truth_and_prediction
from cvexp.viz.priors import Roles, Sorted, sort_priors, target_panel

__all__ = [
    "Roles",
    "Sorted",
    "colour",
    "draw_boxes",
    "page",
    "save",
    "sort_priors",
    "target_panel",
    "truth_and_prediction",
]
