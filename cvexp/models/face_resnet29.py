"""dlib's face embedding (Davis E. King, dlib_face_recognition_resnet_model_v1, 2017), to be measured, not trained.

A face becomes 128 numbers; two faces are of one person where the L2 distance of their numbers is small (0.6 is the author's
threshold, on his own crops). The numbers are compared as they are, without being brought to the unit sphere, because the
network was trained with a loss on plain distances. Its score says what a network that has seen three million faces makes of
a test set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from cvexp.backbones.face_resnet29 import FaceResNet29 as Body
from cvexp.comparators.comparator import Comparator
from cvexp.types import UserError

LEAST = 103
"""Pixels; fewer leave less than a 3 x 3 kernel to the last convolutions, which have no padding."""


class FaceResNet29(nn.Module):
    """A face embedding (contract 8) whose embeddings are **not** of length 1.

    Args:
        comparator: partial that takes ``dim``; squared L2 orders pairs as the L2 of the original does.
        num_classes: number of training identities; nothing depends on it.
        weights: a local file with the published entries, or None for random weights (tests).
        image_size: side of the images, pixels; the weights belong to 150.
        dim: length of an embedding.
        width: multiplies every number of channels.

    Attributes:
        class_parameters: none depends on the list of classes.

    Raises:
        UserError: a missing weight file or one that does not fit, or images of fewer than 103 pixels.
    """

    kind = "embedding"
    class_parameters: tuple[str, ...] = ()

    def __init__(
        self,
        comparator: Callable[[int], Comparator],
        num_classes: int,
        weights: str | None = None,
        image_size: int = 150,
        dim: int = 128,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        if image_size < LEAST:
            raise UserError(
                f"model.image_size={image_size}: nothing is left of an image below {LEAST} pixels. Fix: model.image_size=150"
            )
        self.image_size = image_size
        self.backbone = Body(width)
        self.fc = nn.Linear(self.backbone.out_channels[-1], dim, bias=False)
        self.comparator = comparator(dim)
        if weights is not None:
            self._load(Path(weights).expanduser())

    def features(self, images: Tensor) -> Tensor:
        """uint8 ``[B, 3, H, W]`` to ``[B, D]``."""
        return self.fc(self.backbone(images)[-1].mean(dim=(2, 3)))

    def forward(self, images: Tensor) -> Tensor:
        """The same, at least float32; not normalised."""
        return self.features(images).float()

    def embed(self, images: Tensor) -> Tensor:
        """What tests compare: `forward`."""
        return self(images)

    def losses(self, embeddings: Tensor, labels: Tensor, image_ids: Tensor) -> dict[str, Tensor]:
        """Refuses: there is nothing to train.

        Raises:
            UserError: always.
        """
        raise UserError(
            "model=face_resnet29 is only measured, it has no loss. Fix: recipe=test_only, or model=facenet to train an embedding"
        )

    def statistics(self, embeddings: Tensor, labels: Tensor, image_ids: Tensor) -> dict[str, Tensor]:
        """Refuses, as `losses` does, which training would call next."""
        return self.losses(embeddings, labels, image_ids)

    # -- weights -------------------------------------------------------------------------------------------------------

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The published entries under this model's names; None for a file of another kind."""
        if "conv32_down.conv.weight" not in state:
            return None
        return {name if name.startswith("fc.") else f"backbone.{name}": value for name, value in state.items()}

    def _load(self, path: Path) -> None:
        state = self.translate(_read(path)) or {}
        wanted = {name: value for name, value in self.state_dict().items() if name.startswith(("backbone.", "fc."))}
        unfit = [name for name in wanted if name not in state or state[name].shape != wanted[name].shape]
        if unfit or len(state) > len(wanted):
            names = unfit or [name for name in state if name not in wanted]
            raise UserError(
                f"model.weights={path}: {len(state)} entries of the published network, {len(names)} of them missing, of another"
                f" shape or unknown, first {names[0]!r}. Fix: model.weights=<face_resnet29_128d_fp16.pth>, with model.size=base"
            )
        if not self.fc.weight.is_meta:  # on the meta device only the fit is checked
            self.load_state_dict(state, strict=False)  # the comparator's own entries are not in the file


def _read(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a file.

    Raises:
        UserError: no such file, or not a plain state dict.
    """
    if not path.is_file():
        raise UserError(
            f"model.weights={path}: no such file. Fix: put face_resnet29_128d_fp16.pth there, or give its place by"
            " model.weights=<file>"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken or hostile file provokes
        raise UserError(
            f"model.weights={path}: cannot be read safely ({type(error).__name__})."
            " Fix: model.weights=<face_resnet29_128d_fp16.pth>"
        ) from None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(
            f"model.weights={path}: not a plain state dict. Fix: model.weights=<face_resnet29_128d_fp16.pth>"
        )
    return state
