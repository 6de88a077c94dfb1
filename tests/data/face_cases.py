"""Small sets of faces, for tests."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cvexp.data.faces import FacesData


def picture(seed: object, side: int = 12, kind: str = "PNG") -> bytes:
    """A small image of noise, as a file."""
    pixels = np.random.default_rng(zlib.crc32(str(seed).encode())).integers(0, 256, (side, side, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


PEOPLE = {f"P{n:02d}": 2 + n % 4 for n in range(12)} | {"Single_A": 1, "Single_B": 1}


def files_of(people: dict[str, int] = PEOPLE) -> dict[str, bytes]:
    return {f"{name}/{name}_{i:04d}.png": picture((name, i)) for name, n in people.items() for i in range(1, n + 1)}


def folder(root: Path, files: dict[str, bytes] | None = None) -> str:
    for name, content in (files_of() if files is None else files).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return str(root)


def archive(path: Path, files: dict[str, bytes] | None = None, top: str = "", **options: int) -> str:
    with zipfile.ZipFile(path, "w", **options) as packed:
        for name, content in (files_of() if files is None else files).items():
            packed.writestr(top + name, content)
    return str(path)


OWN = {"val_identities": 2, "test_identities": 3, "pairs": 6}
SMALL = {"image_size": 16, "batch_size": 8, "images_per_identity": 2, "num_workers": 0, "augment": None}


def data(root: str, **settings: object) -> FacesData:
    return FacesData(**(SMALL | OWN | {"root": root} | settings))


def listed(root: str, tmp_path: Path, **settings: object) -> FacesData:
    """Trained on P00 to P05, tested by a list on P06 to P11."""
    people, pairs = tmp_path / "people.txt", tmp_path / "pairs.txt"
    people.write_text("".join(f"P{n:02d}\t{PEOPLE[f'P{n:02d}']}\n" for n in range(6)))
    pairs.write_text("2\nP06\t1\t2\nP07\t1\t2\nP08\t1\tP09\t2\nP10\t1\tP11\t2\n")
    own = {"val_identities": 2, "test_identities": 0, "identities": str(people), "test_pairs": str(pairs)}
    return data(root, **(own | settings))


def same_sources(a: FacesData, b: FacesData) -> None:
    for split in ("train", "val", "test"):
        one, other = a.source(split), b.source(split)
        assert (one.people, one.labels, one.names) == (other.people, other.labels, other.names)
        assert one.distractors == other.distractors
        assert torch.equal(one.pairs.first, other.pairs.first)
        for index in range(len(one)):
            assert torch.equal(one.read(index)[0], other.read(index)[0])
