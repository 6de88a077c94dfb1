"""``evidence.npz``: what the test's figures rest on, unit by unit, so that runs can be compared on the same images.

A figure alone does not tell how much of it is the choice of the test images. The evidence does: it gives the figure of any
other draw of them, and of two runs on the *same* draw. `cvexp.metrics.significance` makes intervals and comparisons of it.

The file is a plain NumPy archive without pickled objects: ``kind``, ``version`` and the arrays of the evidence's class.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cvexp.metrics.detection_evidence import DetectionEvidence
from cvexp.metrics.findings import Floats, Ints
from cvexp.metrics.pair_evidence import PairEvidence
from cvexp.types import UserError

NAME = "evidence.npz"
VERSION = 1
LARGEST = 2**31
"""Bytes that a file may unpack to: several times what COCO's training set needs."""

KINDS: dict[str, type[DetectionEvidence] | type[PairEvidence]] = {
    "detection": DetectionEvidence,
    "verification": PairEvidence,
}


class Evidence(Protocol):
    """What a figure rests on; see `DetectionEvidence` and `PairEvidence`. Compared by identity.

    Attributes:
        kind: ``detection`` or ``verification``.
        unit: what is drawn, plural: ``images``, ``pairs``.
        measures: names as behind ``test/`` in result.json; the first is the headline.
        ids: int64 ``[U]``, of the units, ascending.
        strata: int64 ``[U]``, units of different numbers are drawn apart; None: all together.
        fingerprint: of truth, ids and settings: two may be paired only if it is equal.
    """

    @property
    def kind(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def measures(self) -> tuple[str, ...]: ...
    @property
    def ids(self) -> Ints: ...
    @property
    def strata(self) -> Ints | None: ...
    @property
    def fingerprint(self) -> str: ...

    def values(self, weights: ArrayLike, measure: str) -> Floats:
        """The figure ``[B]`` of each draw; ``weights`` ``[B, U]`` say how often each unit is drawn."""
        ...


Written: TypeAlias = DetectionEvidence | PairEvidence


def write_evidence(path: str | Path, evidence: Written) -> None:
    """Writes the file whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"kind": np.array(evidence.kind), "version": np.array(VERSION), **evidence.arrays()}
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            np.savez_compressed(file, **content)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def read_evidence(path: str | Path) -> Written:
    """The evidence that `write_evidence` wrote.

    Raises:
        UserError: no such file, or one that is damaged, of another program, or of a later version.
    """
    try:
        arrays = _arrays(Path(path))
        kind, version = str(arrays["kind"]), int(arrays["version"])
        if version > VERSION:
            raise ValueError(f"version {version} of a later cvexp; this one reads up to {VERSION}")
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r}; known are {', '.join(KINDS)}")
        return KINDS[kind].from_arrays(arrays)
    except KeyError as error:
        raise _unusable(path, f"{error} is missing") from None
    except (OSError, ValueError, TypeError, IndexError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error,
            MemoryError, OverflowError, NotImplementedError, RuntimeError, SyntaxError) as error:  # fmt: skip
        raise _unusable(path, str(error) or type(error).__name__) from None


def belongs_to(evidence: Evidence, results: Mapping[str, Any], tolerance: float = 1e-4) -> bool:
    """Whether the evidence gives one of the results' figures: not so where a training was measured but never tested.

    Args:
        evidence: of a metric.
        results: as in result.json, ``test/AP`` ....
        tolerance: between two implementations of a measure.
    """
    headline = evidence.measures[0]
    value = float(evidence.values(np.ones((1, len(evidence.ids))), headline)[0])
    told = (results.get(f"{split}/{headline}", math.nan) for split in ("test", "val", "train"))
    return any(abs(value - float(figure)) <= tolerance for figure in told)


def _arrays(path: Path) -> dict[str, NDArray]:
    """Every array of the archive; nothing is unpickled, and nothing larger than `LARGEST` is unpacked."""
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > LARGEST:
        raise ValueError(f"it would unpack to {size:,} bytes")
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _unusable(path: str | Path, reason: str) -> UserError:
    return UserError(
        f"{path}: no usable evidence: {reason}. Fix: write it anew with python -m cvexp.evaluate ckpt=<the run's"
        " checkpoint> output=<folder>, or delete it to compare without intervals"
    )
