"""Any timm model as a backbone: one YAML line names it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from cvexp.backbones.prepare import Prepare, load_weights
from cvexp.types import UserError


class Timm(nn.Module):
    """The feature maps of a timm model.

    Args:
        name: timm's name of the model.
        out_indices: which of its feature maps to hand out, from fine to coarse.
        weights: a local file with a state dict of the whole model, or None for random weights; nothing is downloaded.
        freeze: the stem and so many stages get no gradient and keep their batch-norm statistics; 0 trains everything.
        fold_norm: every batch norm keeps its statistics and scale (small batches) and becomes part of the convolution
            before it: the same function, a fifth faster to train on a CPU.

    Raises:
        UserError: an unknown name, a missing weight file or one that does not fit.
    """

    def __init__(
        self,
        name: str,
        out_indices: Sequence[int] = (4,),
        weights: str | None = None,
        freeze: int = 0,
        fold_norm: bool = False,
    ) -> None:
        super().__init__()
        if not timm.is_model(name):
            near = timm.list_models(f"*{name.split('_')[0]}*")[:5]
            raise UserError(f"model.backbone.name={name}: timm {timm.__version__} has no such model. Near: {near}")
        self.body = timm.create_model(name, pretrained=False, features_only=True, out_indices=tuple(out_indices))
        self.out_channels: list[int] = self.body.feature_info.channels()
        self.strides: list[int] = self.body.feature_info.reduction()
        config = timm.get_pretrained_cfg(name)
        self.prepare = Prepare(config.mean, config.std)  # type: ignore[union-attr]
        if weights is not None:
            load_weights(self.body, Path(weights).expanduser())
        self.freeze = freeze
        if fold_norm:
            fold_batch_norm(self.body)
        for module in self._frozen():
            module.requires_grad_(False)
        self.train()  # frozen norms keep their statistics: Lightning leaves modules in the mode that they come in

    def _frozen(self) -> list[nn.Module]:
        if not self.freeze:
            return []
        stem = [
            m for n, m in self.body.named_children() if n in ("conv_stem", "bn1", "conv1", "stem", "stem_0", "stem_1")
        ]
        stages = self.body.blocks if hasattr(self.body, "blocks") else [
            m for n, m in self.body.named_children() if n.startswith(("layer", "stages"))
        ]  # fmt: skip
        return [*stem, *list(stages)[: self.freeze]]

    def train(self, mode: bool = True) -> Timm:
        """Frozen parts stay in evaluation mode, whatever Lightning asks."""
        super().train(mode)
        if mode:
            for module in self._frozen():
                module.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """uint8 ``[B, 3, H, W]`` to maps ``[B, out_channels[i], H / strides[i], W / strides[i]]``."""
        return self.body(self.prepare(images))


def fold_batch_norm(body: nn.Module) -> None:
    """Makes every batch norm that follows a convolution part of it: ``w' = w g / s``, ``b' = (b - m) g / s + o``.

    A module's children are taken in the order in which it applies them, as timm's are written; a norm without such a
    convolution before it stays. What timm does in the norm's module besides (activation) is kept.
    """
    for parent in list(body.modules()):
        convolution: nn.Conv2d | None = None
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d):
                convolution = child
            elif isinstance(child, nn.modules.batchnorm._BatchNorm) and convolution is not None:
                if convolution.out_channels != child.num_features:
                    continue
                _fold(convolution, child)
                rest = [m for n, m in child.named_children() if n in ("drop", "act")]
                parent.add_module(name, nn.Sequential(*rest))
                convolution = None


@torch.no_grad()
def _fold(convolution: nn.Conv2d, norm: nn.modules.batchnorm._BatchNorm) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    bias = torch.zeros_like(norm.running_mean) if convolution.bias is None else convolution.bias
    convolution.weight.mul_(scale.view(-1, 1, 1, 1))
    convolution.bias = nn.Parameter((bias - norm.running_mean) * scale + norm.bias)
