"""What the parity tests with torchvision's detectors share: weights that say something, images, objects."""

from __future__ import annotations

from typing import NamedTuple

import hydra
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from torch import Tensor, nn

from cvexp.config import conf_dir, register_resolvers
from cvexp.types import Target

SIZE, K, ALL = 128, 5, 100_000
# What differs from the YAML: everything is sampled, so that no draw differs, and torchvision's head has beta 1/9.
WORDS = (
    f"model.image_size={SIZE}", f"model.rpn_batch={ALL}", f"model.roi_batch={ALL}", f"model.candidates={ALL}",
    "model.roi_box_loss.beta=0.1111111111111111",
)  # fmt: skip


class Pair(NamedTuple):
    """torchvision's network and ours with the same weights."""

    theirs: nn.Module
    ours: nn.Module

    def rested(self) -> None:
        """As before a test: in evaluation mode, without gradients."""
        for model in self:
            model.eval().zero_grad()


def model_node(*words: str) -> DictConfig:
    """The node ``model`` of the real configuration."""
    register_resolvers()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return hydra.compose("train", [*WORDS, *words]).model


def speaking(model: nn.Module, passes: int, batch: int) -> nn.Module:
    """Random weights whose outputs say something; the norms' statistics are filled, so that activations stay tame."""
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("cls_score", "bbox_pred", "cls_logits")):
            nn.init.normal_(parameter, std=0.1 if "cls_score" in name else 0.03)
    with torch.no_grad():
        for _ in range(passes):
            model.train().backbone(torch.randn(batch, 3, SIZE, SIZE))
    return model.eval()


def translated(theirs: nn.Module, ours: nn.Module) -> Pair:
    """Ours with their weights, through its own ``translate``."""
    found = ours.eval().load_state_dict(ours.translate(theirs.state_dict()), strict=False)
    assert (found.missing_keys, found.unexpected_keys) == (["draws"], [])
    return Pair(theirs, ours)


def squares_and_noise() -> Tensor:
    """Coloured squares of 16 pixels and noise: one alone looks the same everywhere, or is exactly equal in many places."""
    generator = torch.Generator().manual_seed(1)
    squares = torch.rand(2, 3, SIZE // 16, SIZE // 16, generator=generator).mul(156)
    noise = torch.rand(2, 3, SIZE, SIZE, generator=generator) * 100
    return (squares.repeat_interleave(16, dim=2).repeat_interleave(16, dim=3) + noise).byte()


def target(boxes: list, labels: list[int], image_id: int) -> Target:
    """Ellipses in their boxes."""
    count = len(labels)
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    places = torch.arange(SIZE) + 0.5
    centre, half = (corners[:, :2] + corners[:, 2:]) / 2, (corners[:, 2:] - corners[:, :2]) / 2
    across, down = ((places - centre[:, i, None]) / half[:, i, None] for i in (0, 1))
    return Target(
        boxes=corners,
        labels=torch.tensor(labels, dtype=torch.int64),
        difficult=torch.zeros(count, dtype=torch.bool),
        crowd=torch.zeros(count, dtype=torch.bool),
        area=torch.ones(count),
        image_id=image_id,
        size=(SIZE, SIZE),
        original_size=(SIZE, SIZE),
        to_original=torch.tensor([1.0, 1.0, 0.0, 0.0]),
        masks=(across**2)[:, None, :] + (down**2)[:, :, None] <= 1,
    )


def frozen(model: nn.Module) -> nn.Module:
    """In training mode, norms with their statistics."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


SEVERAL = target([[10, 15, 60, 100], [50, 25, 120, 75], [5, 80, 40, 120]], [1, 3, 4], 0)
ONE, NONE = target([[3, 3, 30, 30]], [2], 1), target([], [], 2)
LOSSES = {  # torchvision's names, ours
    "loss_objectness": "rpn_objectness",
    "loss_rpn_box_reg": "rpn_box",
    "loss_classifier": "roi_class",
    "loss_box_reg": "roi_box",
    "loss_mask": "mask",
}


def losses_by_our_names(model: nn.Module, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
    """torchvision's; labels from 1; the norms keep their statistics."""
    given = [{"boxes": t.boxes, "labels": t.labels + 1, "masks": t.masks.to(torch.uint8)} for t in targets]
    return {LOSSES[name]: value for name, value in frozen(model)(list(images / 255), given).items()}
