"""Drawing on images: boxes, masks, pages, what a loss is computed on. No Lightning here."""

from cvexp.viz.boxes import colour, draw_boxes, draw_detections, page, save, truth_and_prediction
from cvexp.viz.masks import masks_in_image, paint_masks
from cvexp.viz.priors import Roles, Sorted, sort_priors, target_panel

__all__ = [
    "Roles",
    "Sorted",
    "colour",
    "draw_boxes",
    "draw_detections",
    "masks_in_image",
    "page",
    "paint_masks",
    "save",
    "sort_priors",
    "target_panel",
    "truth_and_prediction",
]
