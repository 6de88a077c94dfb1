"""Any timm model as a backbone: one YAML line names it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from cvexp.backbones.prepare import Prepare
from cvexp.types import UserError


class Timm(nn.Module):
    """The feature maps of a timm model.

    Args:
        name: timm's name of the model.
        out_indices: which of its feature maps to hand out, from fine to coarse.
        weights: a local file with a state dict of the whole model, or None for random weights; nothing is downloaded.
        freeze: the stem and so many stages get no gradient and keep their batch-norm statistics; 0 trains everything.
        freeze_norm: every batch norm keeps its statistics and scale (small batches).

    Raises:
        UserError: an unknown name, a missing weight file or one that does not fit.
    """

    def __init__(
        self,
        name: str,
        out_indices: Sequence[int] = (4,),
        weights: str | None = None,
        freeze: int = 0,
        freeze_norm: bool = False,
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
        self.freeze, self.freeze_norm = freeze, freeze_norm
        self._freeze()

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

    def _freeze(self) -> None:
        for module in self._frozen():
            module.requires_grad_(False)
        if self.freeze_norm:
            for module in self.body.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.requires_grad_(False)

    def train(self, mode: bool = True) -> Timm:
        """Frozen parts stay in evaluation mode, whatever Lightning asks."""
        super().train(mode)
        if mode:
            for module in self._frozen():
                module.eval()
            for module in self.body.modules() if self.freeze_norm else ():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """uint8 ``[B, 3, H, W]`` to maps ``[B, out_channels[i], H / strides[i], W / strides[i]]``."""
        return self.body(self.prepare(images))


def load_weights(body: nn.Module, path: Path) -> None:
    """Loads a state dict; only entries of the classifier that a feature extractor lacks may be left over.

    Raises:
        UserError: missing file, or entries that are missing or differ in shape.
    """
    if not path.is_file():
        raise UserError(
            f"model.backbone.weights={path}: no such file. Fix: give a local file, or train from random weights with"
            " model.backbone.weights=null"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"model.backbone.weights={path}: not a plain state dict ({type(error).__name__}). Fix: save tensors only"
        ) from None
    own = body.state_dict()
    missing = [name for name in own if name not in state or state[name].shape != own[name].shape]
    if missing:
        raise UserError(
            f"model.backbone.weights={path}: {len(missing)} of {len(own)} entries are missing or differ in shape,"
            f" first {missing[0]!r}. Fix: weights and model.backbone.name must belong together"
        )
    if not next(body.parameters()).is_meta:  # on the meta device only the fit is checked
        body.load_state_dict({name: state[name] for name in own})
