"""A trained checkpoint as a thing that predicts: ``load(ckpt).predict(image)``, for faces ``load(ckpt).compare(a, b)``."""

from __future__ import annotations

import math
import pickle
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image, ImageOps
from torch import Tensor, nn

from cvexp.build import SUPPLIED, build_model
from cvexp.comparators.comparator import Comparator
from cvexp.config import check_config
from cvexp.data import face_files
from cvexp.data.module import collate
from cvexp.data.records import decode
from cvexp.data.transforms import Fit
from cvexp.tasks.detection import in_original_pixels
from cvexp.types import Detection, Target, UserError

Picture = str | Path | Image.Image | np.ndarray | Tensor


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a cvexp checkpoint; tensors and plain Python only, no code is run.

    Raises:
        UserError: missing file, something else than a checkpoint, or one that cvexp did not write.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob("*.ckpt"))[:5] if path.parent.is_dir() else []
        raise UserError(
            f"ckpt={path}: no such file. Fix: give a checkpoint's path" + (f", as {', '.join(near)}" if near else "")
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        raise UserError(
            f"ckpt={path}: not a checkpoint that can be read safely ({str(error).splitlines()[0][:160]})."
            " Fix: give a file that cvexp.train wrote (tensors and plain Python, no pickled objects)"
        ) from None
    if (
        not isinstance(content, Mapping)
        or not {"config", "classes"} <= set(content.get("cvexp", {}))
        or "state_dict" not in content
    ):
        raise UserError(f"ckpt={path}: not written by cvexp (no 'cvexp' entry). Fix: give a checkpoint of cvexp.train")
    return dict(content)


def rebuild_model(content: Mapping[str, Any], config: DictConfig, path: str | Path) -> nn.Module:
    """The network of a checkpoint with its trained weights.

    Raises:
        UserError: the weights do not fit the configuration.
    """
    node = OmegaConf.create(OmegaConf.to_container(config.model))
    for key in ("weights", "backbone.weights"):
        if OmegaConf.select(node, key) is not None:
            OmegaConf.update(node, key, None)  # the checkpoint has them; the file need not be there
    model = build_model(node, num_classes=len(content["cvexp"]["classes"]))
    state = {
        name.removeprefix("model."): value for name, value in content["state_dict"].items() if name.startswith("model.")
    }
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"ckpt={path}: its weights do not fit its configuration: {str(error).splitlines()[-1].strip()}"
        ) from None
    return model.eval()


@dataclass
class Predictor:
    """A trained detector that takes any picture and answers in the picture's own pixels.

    Attributes:
        model: in evaluation mode.
        classes: names in label order.
        fit: how a picture is brought to the model's size.
        config: the checkpoint's whole configuration.
    """

    model: nn.Module
    classes: list[str]
    fit: Fit
    config: DictConfig
    device: torch.device

    def predict(self, image: Picture, threshold: float = 0.0) -> Detection:
        """Finds the objects of one picture.

        Args:
            image: a path, a PIL image, an array uint8 ``[H, W, 3]`` RGB or a tensor uint8 ``[3, H, W]`` RGB.
            threshold: detections below this score are left out.

        Returns:
            Detections in pixels of the picture, by falling score.

        Raises:
            UserError: not a picture of a known kind.
        """
        return self.predict_batch([as_tensor(image)], threshold)[0]

    @torch.inference_mode()
    def predict_batch(self, images: Sequence[Tensor], threshold: float = 0.0) -> list[Detection]:
        """The same for several uint8 ``[3, H, W]`` of any sizes in one pass."""
        fitted = [self.fit(image, _no_objects(image), random.Random(0)) for image in images]
        batch = collate(fitted, ragged=not self.fit.pad).images.to(self.device)
        answers = []
        for detection, (_, target) in zip(self.model(batch), fitted, strict=True):
            found = in_original_pixels(detection.to("cpu"), target)
            keep = found.scores >= threshold
            answers.append(Detection(found.boxes[keep], found.scores[keep], found.labels[keep]))
        return answers


@dataclass(frozen=True)
class Comparison:
    """What a face model says of two pictures.

    Attributes:
        value: of the measure.
        threshold: of the same measure; None where nobody has chosen one.
        same: whether the two are taken for one person; None without a threshold.
        measure: ``squared distance``, ``cosine`` ...
        chosen: where the threshold comes from; empty without one.
    """

    value: float
    threshold: float | None
    same: bool | None
    measure: str
    chosen: str


@dataclass
class Embedder:
    """A trained face model that turns pictures of faces into embeddings and compares them.

    It does not find faces: a picture must be cut as those of the training were.

    Attributes:
        model: in evaluation mode; ``model.comparator`` scores two embeddings.
        people: names of the identities that it was trained on.
        fit: how a picture is brought to the model's size.
        config: the checkpoint's whole configuration.
        threshold: of the measure, as the last validation of the training chose it; None without one.
        chosen: a sentence that says how.
    """

    model: nn.Module
    people: list[str]
    fit: Fit
    config: DictConfig
    device: torch.device
    threshold: float | None = None
    chosen: str = ""

    @property
    def comparator(self) -> Comparator:
        """The model's own."""
        return self.model.comparator  # type: ignore[return-value]

    @torch.inference_mode()
    def embed(self, images: Picture | Sequence[Picture], batch_size: int = 32) -> Tensor:
        """Embeddings float32 ``[N, D]`` on the CPU, of one picture (N is 1) or of several; read ``batch_size`` at a time.

        Args:
            images: paths, PIL images, arrays uint8 ``[H, W, 3]`` RGB or tensors uint8 ``[3, H, W]`` RGB, of any sizes.

        Raises:
            UserError: not a picture of a known kind, an unreadable file, or embeddings that are not finite.
        """
        several: Sequence[Any] = [images] if isinstance(images, Picture) else images
        embed = getattr(self.model, "embed", self.model)
        parts = [torch.zeros(0, self.comparator.dim)]
        for start in range(0, len(several), batch_size):
            pictures = [face_tensor(image) for image in several[start : start + batch_size]]
            fitted = [self.fit(image, _no_objects(image), random.Random(0))[0] for image in pictures]
            parts.append(embed(torch.stack(fitted).to(self.device)).float().cpu())
        embeddings = torch.cat(parts)
        if not embeddings.isfinite().all():
            raise UserError("the network puts out NaN or infinity. Fix: take an earlier checkpoint")
        return embeddings

    @torch.inference_mode()
    def scores(self, first: Tensor, second: Tensor) -> Tensor:
        """Every embedding of ``first`` ``[N, D]`` with every one of ``second`` ``[M, D]``: ``[N, M]``, larger is more alike."""
        return self.comparator.matrix(first.to(self.device), second.to(self.device)).cpu()

    def compare(self, first: Picture, second: Picture, threshold: float | None = None) -> Comparison:
        """Whether two pictures show one person.

        Args:
            first, second: see `embed`.
            threshold: of the measure; None takes the checkpoint's.

        Raises:
            UserError: see `embed`.
        """
        a, b = self.embed([first, second])
        return self.judge(float(self.scores(a[None], b[None])), threshold)

    def judge(self, score: float, threshold: float | None = None) -> Comparison:
        """What a score means; ``threshold`` as in `compare`."""
        limit, chosen = (self.threshold, self.chosen) if threshold is None else (threshold, "as given")
        value, falling = self.comparator.shown(score), self.comparator.falling
        same = None if limit is None else (value < limit if falling else value > limit)
        return Comparison(value, limit, same, self.comparator.measure, chosen)


def load(ckpt: str | Path, device: str | None = None, allow_targets: Sequence[str] = ()) -> Predictor | Embedder:
    """Rebuilds a trained model from its checkpoint alone.

    Args:
        ckpt: written by ``cvexp.train``.
        device: None takes a GPU when there is one.
        allow_targets: your own packages that the configuration may name.

    Returns:
        An `Embedder` for a model that compares faces (it has a ``comparator``), else a `Predictor`.

    Raises:
        UserError: see `read_checkpoint`; also a configuration that names something outside the allow-list.
    """
    content = read_checkpoint(ckpt)
    config = OmegaConf.create(content["cvexp"]["config"])
    assert isinstance(config, DictConfig)
    check_config(config, origin=lambda _: f"in {ckpt}", supplied=SUPPLIED, extra=allow_targets)
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = rebuild_model(content, config, ckpt).to(chosen)
    classes = list(content["cvexp"]["classes"])
    square = config.data.get("pad", "square") == "square"
    fit = Fit(size=config.data.image_size, resize=config.data.resize, pad=square)
    if not hasattr(model, "comparator"):
        return Predictor(model=model, classes=classes, fit=fit, config=config, device=chosen)
    embedder = Embedder(model=model, people=classes, fit=fit, config=config, device=chosen)
    kept = content["cvexp"].get("verification") or {}
    score = kept.get("threshold")
    if isinstance(score, float) and not math.isnan(score):
        embedder.threshold, embedder.chosen = embedder.comparator.shown(score), str(kept.get("chosen", ""))
    return embedder


def as_tensor(image: Picture) -> Tensor:
    """Any kind of picture to uint8 RGB ``[3, H, W]``.

    Raises:
        UserError: a kind or shape that is not a picture.
    """
    if isinstance(image, (str, Path)):
        return decode(Path(image))
    if isinstance(image, Image.Image):
        image = np.array(image.convert("RGB"))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UserError(f"image: array {image.dtype} {image.shape} is not uint8 [H, W, 3] RGB. Fix: convert it")
        return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise UserError(
            f"image: {type(image).__name__} is not a path, a PIL image, an array [H, W, 3] or a tensor uint8 [3, H, W]"
        )
    return image


def face_tensor(image: Picture) -> Tensor:
    """As `as_tensor`, but files and PIL images as faces are read in training: turned as their EXIF orientation says.

    Raises:
        UserError: see `as_tensor`; a file that cannot be read.
    """
    if isinstance(image, Image.Image):
        return as_tensor(ImageOps.exif_transpose(image))
    if not isinstance(image, (str, Path)):
        return as_tensor(image)
    try:
        return face_files.decode(Path(image).read_bytes())
    except OSError as error:
        raise UserError(f"{image}: cannot be read ({error.strerror}). Fix: give the path of a picture") from None
    except ValueError as error:
        raise UserError(f"{image}: {error}. Fix: replace the file or take it off the list") from None


def _no_objects(image: Tensor) -> Target:
    height, width = image.shape[-2:]
    none = torch.zeros(0, dtype=torch.bool)
    return Target(
        boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64), difficult=none, crowd=none, area=torch.zeros(0),
        image_id=0, size=(height, width), original_size=(height, width), to_original=torch.tensor([1.0, 1.0, 0.0, 0.0]),
    )  # fmt: skip
