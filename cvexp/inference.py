"""A trained checkpoint as a thing that predicts: ``load(ckpt).predict(image)``, for faces ``load(ckpt).compare(a, b)``."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from cvexp.build import SUPPLIED, build_model
from cvexp.comparators.comparator import Comparator
from cvexp.config import check_config
from cvexp.config.foreign import check_slots, read_foreign, tamed
from cvexp.config.messages import shown
from cvexp.data import face_files
from cvexp.data.module import collate, follow
from cvexp.data.proposals import Proposer, make_proposer
from cvexp.data.records import decode, name_problem
from cvexp.data.transforms import GREY, Fit, Resize
from cvexp.ops.stages import stage
from cvexp.tasks.detection import in_original_pixels
from cvexp.transfer import read_safely
from cvexp.types import Batch, Detection, Target, UserError

Propose = Callable[[Tensor], Tensor]
"""From a picture uint8 ``[3, H, W]`` to proposals ``[R, 4]`` xyxy in its pixels, best first."""
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
        content = read_safely(path)
    except ValueError as error:
        raise UserError(
            f"ckpt={path}: not a checkpoint that can be read safely ({error})."
            " Fix: give a file that cvexp.train wrote (tensors and plain Python, no pickled objects)"
        ) from None
    about = content.get("cvexp") if isinstance(content, Mapping) else None
    if not isinstance(about, Mapping) or not {"config", "classes"} <= set(about) or "state_dict" not in content:
        raise UserError(f"ckpt={path}: not written by cvexp (no 'cvexp' entry). Fix: give a checkpoint of cvexp.train")
    if wrong := _wrong_about(about):
        raise UserError(f"ckpt={path}: {wrong}. Fix: give a checkpoint as cvexp.train wrote it")
    return dict(content)


def _wrong_about(about: Mapping[str, Any]) -> str | None:
    """What is wrong with what a checkpoint says of itself, less its configuration."""
    for key in ("classes", "known"):
        names = about.get(key, about["classes"])
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            return f"its {key} are not a list of names"
        if wrong := next(filter(None, map(name_problem, names)), None):
            return wrong
    kept = about.get("verification", {})
    if not isinstance(kept, Mapping) or not isinstance(kept.get("threshold", 0.0), float | int | None):
        return f"its threshold is no number: {shown(kept)}"
    if not all(isinstance(kept.get(key, ""), str) for key in ("chosen", "measure", "list")):
        return f"its threshold has no words about it: {shown(kept)}"
    return None


def rebuild_model(content: Mapping[str, Any], config: DictConfig, path: str | Path) -> nn.Module:
    """The network of a checkpoint with its trained weights.

    It is first built without memory: a configuration may ask for any amount, the weights say how much it takes.

    Raises:
        UserError: the configuration cannot be built, or the weights do not fit it.
    """
    node = OmegaConf.create(tamed({"model": OmegaConf.to_container(config.model)})["model"])
    state = _weights(content["state_dict"], path)
    count = len(content["cvexp"]["classes"])
    with told(path, "model"), torch.device("meta"), _no_larger_than(state), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is worth saying is said when it is built
        sketch = build_model(node, num_classes=count)
    wanted = {name: value.shape for name, value in sketch.state_dict().items()}
    unfit = [name for name, shape in wanted.items() if name not in state or state[name].shape != shape]
    unfit += [name for name in state if name not in wanted]
    if unfit:
        raise UserError(
            f"ckpt={path}: its weights do not fit its configuration: {len(unfit)} tensor(s) are missing, unknown or of another"
            f" shape, first {shown(unfit[0])}. Fix: give a checkpoint as cvexp.train wrote it"
        )
    with told(path, "model"):
        model = build_model(node, num_classes=count)
        model.load_state_dict(state)
    return model.eval()


def _weights(found: object, path: str | Path) -> dict[str, Tensor]:
    """The entries of the network, by its own names.

    Raises:
        UserError: not tensors with names, or one that holds fewer numbers than its shape says.
    """
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise UserError(f"ckpt={path}: its state_dict has no names. Fix: give a checkpoint of cvexp.train")
    state = {name.removeprefix("model."): value for name, value in found.items() if name.startswith("model.")}
    for name, value in state.items():
        plain = (
            isinstance(value, Tensor) and value.layout == torch.strided and not (value.is_meta or value.is_quantized)
        )
        if not plain or value.is_complex() or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UserError(
                f"ckpt={path}: {shown(name)} is not a plain tensor. Fix: give a checkpoint as cvexp.train wrote it"
            )
    return state


@contextmanager
def told(path: str | Path, part: str) -> Iterator[None]:
    """Whatever the block raises becomes a `UserError`: it runs what a checkpoint's configuration says, not what cvexp says.

    Raises:
        UserError: with file, part and reason.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, UserError):
            raise UserError(f"ckpt={path}: {cause}") from error
        raise UserError(
            f"ckpt={path}: its {part} cannot be used ({type(cause).__name__}: {str(cause)[:300]})."
            f" Fix: give another checkpoint, or in cvexp.evaluate other values below {part}."
        ) from error


@contextmanager
def _no_larger_than(state: Mapping[str, Tensor]) -> Iterator[None]:
    """Stops the construction of a network that has far more parts or numbers than the weights for it.

    Raises:
        ValueError: it has.
    """
    modules, numbers = 1000 + 100 * len(state), 10**8 + 8 * sum(value.numel() for value in state.values())

    def count(_module: nn.Module, _name: str, part: Any) -> None:
        nonlocal modules, numbers
        modules -= 1
        numbers -= part.numel() if isinstance(part, Tensor) else 0
        if modules < 0 or numbers < 0:
            raise ValueError("it describes a network far larger than the weights beside it")

    hooks = [
        register_module_module_registration_hook(count),
        register_module_parameter_registration_hook(count),
        register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@dataclass
class Predictor:
    """A trained detector that takes any picture and answers in the picture's own pixels.

    Attributes:
        model: in evaluation mode.
        classes: names in label order.
        fit: how a picture is brought to the model's size.
        config: the checkpoint's whole configuration.
        propose: makes the proposals of a picture; None for a model that needs none.
    """

    model: nn.Module
    classes: list[str]
    fit: Fit
    config: DictConfig
    device: torch.device
    propose: Propose | None = None

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
        batch = batch_of(images, self.fit, self.propose)
        given = batch.to(self.device)
        found = self.model(given.images, **given.extras)
        return [
            in_original_pixels(detection.to("cpu").above(threshold), target)
            for detection, target in zip(found, batch.targets, strict=True)
        ]


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
            fitted = [self.fit(image, no_objects(image), random.Random(0))[0] for image in pictures]
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
    plain = tamed(read_foreign(content["cvexp"]["config"], ckpt, ("model", "data")))
    check_slots(plain, ckpt, allow_targets)
    config = OmegaConf.create(plain)
    assert isinstance(config, DictConfig)
    check_config(config, origin=lambda _: f"in {ckpt}", supplied=SUPPLIED, extra=allow_targets)
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = rebuild_model(content, config, ckpt).to(chosen)
    classes = list(content["cvexp"]["classes"])
    fit = fit_of(config, ckpt)
    propose = propose_of(model, config, content["cvexp"], ckpt)
    _try(model, fit, ckpt)
    if not hasattr(model, "comparator"):
        return Predictor(model=model, classes=classes, fit=fit, config=config, device=chosen, propose=propose)
    embedder = Embedder(model=model, people=classes, fit=fit, config=config, device=chosen)
    kept = content["cvexp"].get("verification", {})
    score = kept.get("threshold")
    if isinstance(score, float) and not math.isnan(score):
        embedder.threshold, embedder.chosen = embedder.comparator.shown(score), str(kept.get("chosen", ""))
    return embedder


def fit_of(config: DictConfig, ckpt: str | Path) -> Fit:
    """How the data of the training brought pictures to the model's size."""
    size, resize = config.data.get("image_size"), config.data.get("resize")
    if not isinstance(size, int) or size < 1 or resize not in get_args(Resize):
        raise UserError(
            f"ckpt={ckpt}: data.image_size={shown(size)} with data.resize={shown(resize)} brings no picture to a size."
            " Fix: give a checkpoint as cvexp.train wrote it"
        )
    return Fit(size=size, resize=resize, pad=config.data.get("pad", "square") == "square")


def batch_of(images: Sequence[Tensor], fit: Fit, propose: Propose | None = None) -> Batch:
    """Pictures uint8 ``[3, h, w]`` as a model takes them, with proposals where it needs any; the targets have no objects."""
    samples: list[Any] = []
    for image in images:
        given, target = fit(image, no_objects(image), random.Random(0))
        if propose is None:
            samples.append((given, target))
            continue
        with stage("proposals"):
            boxes = propose(image)
        samples.append((given, target, {"proposals": follow(boxes, target)}))
    return collate(samples, ragged=not fit.pad)


def propose_of(model: nn.Module, config: DictConfig, about: Mapping[str, Any], ckpt: str | Path) -> Propose | None:
    """What makes the proposals that a model needs, as the data of its training did; None for a model that needs none.

    Args:
        model: of the checkpoint.
        config: the checkpoint's.
        about: what the checkpoint says of itself; ``proposals`` holds what the proposer had learnt.
        ckpt: its name, for messages.

    Raises:
        UserError: it needs some and the configuration names none, or one that cannot be used.
    """
    if "proposals" not in getattr(model, "external", ()):
        return None
    choice = config.data.get("proposals")
    if choice is None:
        raise UserError(
            f"ckpt={ckpt}: the model needs proposals, data.proposals is null. Fix: data.proposals=selective_search"
        )
    with told(ckpt, "data"):
        proposer: Proposer = make_proposer(choice if isinstance(choice, str) else instantiate(choice))
        if about.get("proposals"):
            proposer.load_state(about["proposals"])
    limit = int(config.data.get("max_proposals") or 2000)
    return lambda image: proposer(image)[:limit]


@torch.inference_mode()
def _try(model: nn.Module, fit: Fit, ckpt: str | Path) -> None:
    """Runs the model on a grey picture: that its configuration can be built does not mean that it makes sense.

    Raises:
        UserError: it does not.
    """
    grey = torch.full((3, fit.size, fit.size), GREY, dtype=torch.uint8)
    external = "proposals" in getattr(model, "external", ())
    batch = batch_of([grey], fit, (lambda _: torch.tensor([[0.0, 0, fit.size, fit.size]])) if external else None)
    with told(ckpt, "model"):
        batch = batch.to(next(model.parameters()).device)
        found = getattr(model, "embed", model)(batch.images, **batch.extras)
    if isinstance(found, Tensor) and not found.isfinite().all():
        raise UserError(f"ckpt={ckpt}: the network puts out NaN or infinity. Fix: take an earlier checkpoint")


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
        return face_files.decode(face_files.read_picture(Path(image)))
    except ValueError as error:
        raise UserError(f"{image}: {error}. Fix: replace the file or take it off the list") from None


def no_objects(image: Tensor) -> Target:
    height, width = image.shape[-2:]
    none = torch.zeros(0, dtype=torch.bool)
    return Target(
        boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64), difficult=none, crowd=none, area=torch.zeros(0),
        image_id=0, size=(height, width), original_size=(height, width), to_original=torch.tensor([1.0, 1.0, 0.0, 0.0]),
    )  # fmt: skip
