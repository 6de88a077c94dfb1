"""Hashes of configuration and data: the same for the same run in another folder, others where one label differs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from cvexp.data.face_module import FaceData, FaceSource, Selected
from cvexp.data.faces import StoredImages
from cvexp.data.module import DetectionData, FirstImages, Split
from cvexp.data.records import RecordSource
from cvexp.types import FaceTruth, GroundTruth


def config_hash(cfg: DictConfig) -> str:
    """Of the resolved configuration without paths, loggers and ``resume``; what lies below the run's own folder or the data's
    counts by its name there, so that the same run in another folder, and one that goes on, have the same hash."""
    content: Any = OmegaConf.to_container(cfg, resolve=True)
    places = {str(content["paths"][name]): f"<{name}>" for name in ("output", "data")}
    places[str(content.get("resume"))] = ""  # callbacks have it too, and of a run that begins it is null
    kept = {name: value for name, value in content.items() if name not in ("paths", "logger", "resume", "hydra")}
    return _digest([_placeless(kept, places)])


def _placeless(value: Any, places: Mapping[str, str]) -> Any:
    """``value`` with the folders in ``places`` replaced by their words, and by None where the word is empty."""
    if isinstance(value, dict):
        return {name: _placeless(inner, places) for name, inner in value.items()}
    if isinstance(value, list):
        return [_placeless(inner, places) for inner in value]
    if not isinstance(value, str):
        return value
    if value in places:
        return places[value] or None
    folder = next((place for place in places if value.startswith(f"{place}/")), "")
    return places[folder] + value[len(folder) :] if folder else value


def data_state(data: Any) -> dict[str, dict[str, Any]]:
    """Of each split its counts and a hash; see `data_hash`. Empty for a data module that is not one of cvexp's kinds."""
    if not isinstance(data, DetectionData | FaceData):
        return {}
    return {split: _counts(data, split) | {"hash": data_hash(data, split)} for split in get_args(Split)}


def data_hash(data: DetectionData | FaceData, split: Split) -> str:
    """A hash of everything that is known of a split without reading its images.

    Objects: class names; of each image name, id, size and the size of its file in bytes; of each object its image, box, label,
    flags, area and mask. Faces: people; of each image name, person, whether it is a distractor, and the hash of its file's
    bytes, which checking it has computed; the pairs with answers and folds. The order counts. A set that is drawn (it has a
    ``draw_seed``) is a function of its settings: these, names and classes are hashed, and nothing is drawn.

    Not covered: pixels of image files (only their sizes, for objects), where they lie, and the data module's other settings,
    which `config_hash` covers.
    """
    source = data.source(split)
    parts: list[Any] = [type(data).kind, source.names]
    if hasattr(data, "draw_seed"):
        parts += [type(data).__name__, recipe(data, split)]
    if isinstance(source, FaceSource):
        parts += [*_truth_of_faces(source.truth()), _files(source)]
    else:
        parts += [source.classes]
        if not hasattr(data, "draw_seed"):
            parts += [*_truth_of_objects(source.ground_truth()), _files(source)]
    return _digest(parts)


def recipe(data: DetectionData | FaceData, split: Split) -> dict[str, Any]:
    """The settings that a drawn split follows from: those that other data sets do not have, less those of other splits."""
    if data.overfit is not None:  # all splits are the first of the training
        split = "train"
    common = {f.name for base in (DetectionData, FaceData) for f in fields(base)} - {"image_size"}
    others = tuple(f"{name}_" for name in get_args(Split) if name != split)
    names = [f.name for f in fields(data) if f.name not in common and not f.name.startswith(others)]
    return {name: getattr(data, name) for name in names}


def _counts(data: DetectionData | FaceData, split: Split) -> dict[str, int]:
    source = data.source(split)
    counts = {"images": len(source)}
    if isinstance(source, FaceSource):
        same = int(source.pairs.same.sum())
        counts |= {"people": len(source.people), "distractors": source.distractors}
        counts |= {"same_pairs": same, "different_pairs": len(source.pairs) - same}
    elif not hasattr(data, "draw_seed"):
        truth = source.ground_truth()
        counts |= {"objects": len(truth.labels), "ignored": int((truth.difficult | truth.crowd).sum())}
    return counts


def _truth_of_objects(truth: GroundTruth) -> list[Any]:
    names = ("image_ids", "sizes", "image_index", "boxes", "labels", "difficult", "crowd", "area")
    arrays = [getattr(truth, name) for name in names]
    if truth.masks is None:
        return arrays
    runs = [mask["counts"] for mask in truth.masks]
    runs = [run.encode() if isinstance(run, str) else run for run in runs]
    return [*arrays, list(map(len, runs)), b"".join(runs)]


def _truth_of_faces(truth: FaceTruth) -> list[Any]:
    pairs = truth.pairs
    arrays = [truth.image_ids, truth.labels, truth.distractor, pairs.first, pairs.second, pairs.same, pairs.fold]
    return [list(truth.people), *arrays]


def _files(source: Any) -> list[Any]:
    """Of each image file what can be had without reading it: its size, or the hash that checking it has left."""
    if isinstance(source, FirstImages):
        return _files(source.source)[: source.count]
    if isinstance(source, RecordSource):
        return [_size(record.path) for record in source.records]
    if isinstance(source, Selected):
        whole = _files(source.images)
        return [whole[index] for index in source.kept] if whole else []
    if isinstance(source, StoredImages):
        return [source.files.digest(path).hex() for path in source.paths]
    return _files(source.images) if isinstance(source, FaceSource) else []


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _digest(parts: Iterable[Any]) -> str:
    """A hash of tensors, bytes and plain Python; each part with kind and length, so that none runs into the next."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, Tensor):
            kind, body = f"{part.dtype} {tuple(part.shape)}", part.contiguous().numpy().tobytes()
        elif isinstance(part, bytes):
            kind, body = "bytes", part
        else:
            kind, body = "json", json.dumps(part, sort_keys=True, default=str).encode()
        found.update(f"{kind} {len(body)}\n".encode())
        found.update(body)
    return found.hexdigest()
