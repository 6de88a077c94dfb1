"""Feeds broken and hostile input to every command and tells what is not refused as it should be.

``python scripts/fuzz_inputs.py --count 500 --seed 0``. Small valid examples are drawn (with ``--data``, by default
``$CVEXP_DATA``, some are real), changed at random, mostly in their structure, and given to what reads them, each in a process
of its own. A finding is: an exception that is not `UserError`; a refusal that names no place or no fix; a process that dies or
uses too much time or memory; anything written, read or started that is not its own; a secret or a control character on the
screen. Case ``i`` of a seed is always the same: ``--only i`` repeats it alone.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

SECRET = "cvexp-fuzz-secret-8731"
"""Value of the environment variable ``SECRET`` and content of the files outside; neither may come to light."""
OWN = ("out", "tmp", "home")
"""Folders of a case that may be written to."""
FIX = re.compile(r"fix: |usage: |did you mean|choices: |choose from|groups: ", re.IGNORECASE)
MEMORY = re.compile(r"MemoryError|allocate|out of memory", re.IGNORECASE)
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x80-\x9f\u202a-\u202e\u2066-\u2069]")
STARTED = {
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "socket.connect",
    "socket.getaddrinfo",
}
SHOWS_SECRET, NO_MEMORY = "a secret is shown", "runs out of memory"
READERS = (
    *(f"data.{name}" for name in ("voc", "coco", "yolo_txt", "faces", "convert", "download")),
    *("config", "inference", "evaluate", "predict", "predict_faces", "transfer", "video", "results"),
)
CHANGED = {
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "os.chown",
}


# --- what is changed, and how ----------------------------------------------------------------------------------------


@dataclass
class Case:
    """An input that lies in ``folder/in``, and what a user does with it.

    Attributes:
        run: the command; everything it raises but `UserError` is a finding.
        keys: words of which a refusal may name one instead of a file.
        own: the input is the user's own, who may read environment variables by it and ask for too much memory.
    """

    run: Callable[[], Any]
    keys: list[str] = field(default_factory=list)
    own: bool = False


@dataclass
class Bases:
    """What all cases begin with.

    Attributes:
        detector, faces: contents of two untrained checkpoints.
        data: folder of real data sets, or None.
    """

    detector: dict[str, Any]
    faces: dict[str, Any]
    data: Path | None


def nested(depth: int) -> list[Any]:
    """A list in a list in a list ..."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def wild(rng: random.Random, folder: Path) -> Any:
    """A value that nobody expects."""
    numbers = [0, -1, 1, 255, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 2**200, 10**4000, 0.5, -0.0, 1e-320, 1e308]
    texts = [
        "",
        " ",
        "0",
        "nan",
        "\0",
        "\ud800",
        "x" * 300,
        "x" * 70_000,
        "a\nb\r\nc",
        "\x1b[2J\x1b]0;you\x07",
        "\u202egnp",
    ]
    places = [
        "../outside/secret.jpg",
        str(folder / "outside" / "secret.jpg"),
        "..\\..\\x",
        "C:\\x",
        ".",
        "a/b",
        "~",
        "=1+1",
    ]
    places += [f"{'../' * 3}trap", str(folder / "trap"), "CON", "-rf", "$x$^{", "%s%n{0}", "[red]x[/red]"]
    hidden = [
        "${oc.env:SECRET}",
        "${SECRET}",
        "${hydra:runtime.cwd}",
        "${oc.decode:${oc.env:SECRET}}",
        "???",
        "${a",
        "${.x}",
    ]
    nodes = [
        {"_target_": "os.system", "_args_": [f"touch {folder / 'trap'}"]},
        {"_target_": "os.mkdir", "path": str(folder / "trap")},
        {"_target_": "torch.hub.load", "_partial_": True},
        {"_target_": "cvexp.loggers.wandb", "folder": str(folder / "trap")},
        {"_target_": "builtins.eval", "_args_": ["1"], "_convert_": "all"},
    ]
    groups: list[list[Any]] = [numbers, [math.nan, math.inf, -math.inf], texts, places, hidden]
    groups += [[None, True, False, [], {}, [None], {"": 0}, [[]], nested(50), ["a"] * 300, list(range(1000))], nodes]
    return rng.choice(rng.choice(groups))


def places_of(tree: Any) -> list[tuple[Any, Any]]:
    """Every ``(container, key)`` of nested dicts and lists."""
    found: list[tuple[Any, Any]] = []
    rows = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in rows:
        found += [(tree, key), *places_of(value)]
    return found


def change_tree(tree: Any, rng: random.Random, folder: Path) -> Any:
    """Changes one to three places of nested dicts and lists, in place; returns the tree."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places = places_of(tree)
        if not places:
            return wild(rng, folder)
        holder, key = rng.choice(places)
        other_holder, other = rng.choice(places)
        change = rng.choice(["wild", "wild", "wild", "wild", "delete", "swap", "wrap", "text", "repeat", "grow"])
        if change == "wild":
            holder[key] = wild(rng, folder)
        elif change == "delete":
            del holder[key]
        elif change == "swap":
            holder[key], other_holder[other] = json_copy(other_holder[other]), json_copy(holder[key])
        elif change == "wrap":
            holder[key] = rng.choice([[holder[key]], {"a": holder[key]}])
        elif change == "text":
            holder[key] = str(holder[key])
        elif change == "grow" and isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
            holder[key] = holder[key] * rng.choice([-1, 0, 3, 1000, 10**9])
        elif isinstance(holder, list):
            holder.insert(key, json_copy(holder[key]))
        else:
            holder[f"{key}2"] = json_copy(holder[key])
    return tree


def json_copy(value: Any) -> Any:
    """A copy of nested dicts and lists; tensors stay themselves."""
    if isinstance(value, dict):
        return {key: json_copy(each) for key, each in value.items()}
    return [json_copy(each) for each in value] if isinstance(value, list) else value


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    """Noise: cut, bytes turned, a part doubled, removed or filled."""
    content = bytearray(data)
    size = max(len(content), 1)
    start = rng.randrange(size)
    end = min(start + rng.choice([1, 4, 64, 1024]), len(content))
    change = rng.choice(["cut", "flip", "flip", "double", "remove", "fill", "empty", "append"])
    if change == "cut":
        del content[start:]
    elif change == "flip":
        for _ in range(rng.choice([1, 3, 30])):
            if content:
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif change == "double":
        content[start:start] = content[start:end]
    elif change == "remove":
        del content[start:end]
    elif change == "fill":
        content[start:end] = bytes([rng.choice([0, 255, 65])]) * (end - start)
    elif change == "empty":
        content.clear()
    else:
        content += rng.randbytes(rng.choice([1, 100, 10_000]))
    return bytes(content)


def change_text(text: str, rng: random.Random, folder: Path) -> str:
    """A word of a text becomes another, a line goes, comes twice or moves; numbers become wild ones."""
    for _ in range(rng.choice([1, 1, 2, 4])):
        lines = text.split("\n")
        at = rng.randrange(len(lines))
        words = re.split(r"(\s+)", lines[at])
        word = rng.randrange(len(words))
        new = wild(rng, folder)
        change = rng.choice(["word", "word", "word", "drop", "line", "twice", "shuffle", "join"])
        if change == "word":
            words[word] = "9" * 5000 if isinstance(new, int) and abs(new) > 10**300 else str(new)
        elif change == "drop":
            del words[word]
        lines[at] = "".join(words)
        if change == "line":
            del lines[at]
        elif change == "twice":
            lines.insert(at, lines[at])
        elif change == "shuffle":
            rng.shuffle(lines)
        elif change == "join":
            lines[at : at + 2] = ["\t".join(lines[at : at + 2])]
        text = "\n".join(lines) or " "
    return text


def write(path: Path, content: str | bytes) -> Path:
    """A file with its folders; text that UTF-8 cannot hold is written as it would be read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return path


# --- pictures --------------------------------------------------------------------------------------------------------


def picture(
    rng: random.Random, size: tuple[int, int] = (48, 40), kind: str = "PNG", mode: str = "RGB", **more: Any
) -> bytes:
    """A small picture of noise as a file."""
    noise = Image.frombytes("RGB", size, rng.randbytes(size[0] * size[1] * 3))
    stream = io.BytesIO()
    noise.convert("L").convert(mode).save(stream, kind, **more) if mode in ("I;16", "I", "F") else noise.convert(
        mode
    ).save(stream, kind, **more)
    return stream.getvalue()


def png_chunks(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks with right checksums."""
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_of(width: int, height: int, data: bytes, bits: int = 1, colour: int = 0, *before: tuple[bytes, bytes]) -> bytes:
    """A PNG that says it is so large."""
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return png_chunks((b"IHDR", head), *before, (b"IDAT", zlib.compress(data, 9)), (b"IEND", b""))


def sized(data: bytes, width: int, height: int) -> bytes:
    """A JPEG, GIF, BMP or PNG whose header says another size."""
    if data[:2] == b"\xff\xd8":
        at = next(i for i in range(2, len(data)) if data[i] == 0xFF and data[i + 1] in (0xC0, 0xC2))
        return data[: at + 5] + struct.pack(">HH", height & 0xFFFF, width & 0xFFFF) + data[at + 9 :]
    if data[:3] == b"GIF":
        return data[:6] + struct.pack("<HH", width & 0xFFFF, height & 0xFFFF) + data[10:]
    if data[:2] == b"BM":
        return data[:18] + struct.pack("<ii", width, height) + data[26:]
    head = struct.pack(">II", width, height) + data[24:29]
    return data[:16] + head + struct.pack(">I", zlib.crc32(b"IHDR" + head)) + data[33:]


def odd_picture(rng: random.Random) -> tuple[str, bytes]:
    """Ending and content of a picture that is none, or an unusual one."""
    kinds = {".png": "PNG", ".jpg": "JPEG", ".gif": "GIF", ".bmp": "BMP", ".tif": "TIFF", ".webp": "WEBP"}
    ending = rng.choice(list(kinds))
    plain = picture(rng, kind=kinds[ending])
    huge = rng.choice([(100_000, 100_000), (65_535, 65_535), (0, 0), (1, 2**31 - 1), (30_000, 4_000), (-5, 7)])
    exif = Image.Exif()
    exif[0x0112] = rng.choice([0, 1, 3, 6, 8, 9, 255, 65535])
    frames = [Image.new("L", (200, 200), i % 256) for i in range(rng.choice([2, 400]))]
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    text = rng.choice(
        [b"no picture", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", b"<svg/>", b""]
    )
    modes = [("PNG", m) for m in ("1", "L", "LA", "P", "RGBA", "I;16")] + [
        ("TIFF", m) for m in ("F", "I", "CMYK", "LAB")
    ]
    kind, mode = rng.choice([*modes, ("JPEG", "CMYK"), ("JPEG", "L"), ("TIFF", "1")])
    bomb = zlib.compress(b"\0" * (40 << 20), 9)
    choices: list[Callable[[], tuple[str, bytes]]] = [
        lambda: (ending, change_bytes(plain, rng)),
        lambda: (ending, change_bytes(plain, rng)),
        lambda: (rng.choice([".png", ".jpg", ".gif", ".bmp"]), b""),
        lambda: (
            e := rng.choice([".png", ".jpg", ".gif", ".bmp"]),
            sized(picture(rng, kind=kinds[e]), *map(abs, huge)),
        ),
        lambda: (ending, text),
        lambda: (rng.choice(list(kinds)), plain),  # whatever the ending says
        lambda: (".gif", stream.getvalue()),
        lambda: (f".{kind.lower().replace('jpeg', 'jpg').replace('tiff', 'tif')}", picture(rng, kind=kind, mode=mode)),
        lambda: (".jpg", picture(rng, kind="JPEG", exif=exif)),
        lambda: (".png", png_of(20_000, 5_000, b"\0" * 2501 * 5_000)),  # whole: a hundred million pixels in 12 kB
        lambda: (".png", png_of(8, 8, b"\0" * 200, 8, 2, (b"zTXt", b"a\0\0" + bomb), (b"iCCP", b"a\0\0" + bomb))),
        lambda: (ending, b"P6 90000 90000 255\n" + plain),
    ]
    return rng.choice(choices)()


def real_pictures(rng: random.Random, bases: Bases, count: int) -> list[bytes]:
    """Photographs of a real set, where there is one."""
    files = sorted((bases.data or Path()).glob("voc/VOCdevkit/VOC2012/JPEGImages/2007_*.jpg")) if bases.data else []
    return [path.read_bytes() for path in rng.sample(files, min(count, len(files)))]


# --- kinds of input --------------------------------------------------------------------------------------------------

VOC_OBJECT = "<object><name>{name}</name><difficult>0</difficult><bndbox>{box}</bndbox></object>"
LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10 if i else "ha" * 50}">' for i in range(9))
DOCTYPES = (
    f"<!DOCTYPE a [{LAUGHS}]>",
    '<!DOCTYPE a [<!ENTITY l8 SYSTEM "file:///etc/hostname">]>',
    f'<!DOCTYPE a [<!ENTITY l8 "{"x" * 60_000}">]>',
    '<!DOCTYPE a SYSTEM "http://127.0.0.1:9/x.dtd" [<!ENTITY % p SYSTEM "http://127.0.0.1:9/p"> %p;]>',
)


def voc_xml(rng: random.Random, folder: Path) -> str:
    """One annotation, changed."""
    corners = [rng.randrange(1, 20), rng.randrange(1, 20), rng.randrange(21, 40), rng.randrange(21, 40)]
    values: list[Any] = [*corners, "cat", "a.jpg", "0"]
    if rng.random() < 0.7:
        values[rng.randrange(len(values))] = wild(rng, folder)
    box = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), values, strict=False))
    objects = VOC_OBJECT.format(name=values[4], box=box) * rng.choice([0, 1, 1, 3])
    text = f"<annotation><filename>{values[5]}</filename>{objects}</annotation>"
    kind = rng.choice(["plain"] * 6 + ["doctype", "doctype", "deep", "encoding", "text", "bytes", "wide"])
    if kind == "doctype":
        text = rng.choice(DOCTYPES) + text.replace("cat", "&l8;" * rng.choice([1, 3000]))
    elif kind == "deep":
        text = text.replace("<object>", "<a>" * 100_000 + "</a>" * 100_000 + "<object>")
    elif kind == "encoding":
        text = f'<?xml version="1.0" encoding="{rng.choice(["utf-7", "x", "utf-16", "cp037", "idna", "zlib"])}"?>{text}'
    elif kind == "text":
        text = change_text(text, rng, folder)
    elif kind == "bytes":
        text = change_bytes(text.encode("utf-8", "replace"), rng).decode("latin-1")
    elif kind == "wide":
        text = text.replace("<object>", "<object>" + "<a/>" * 50_000)
    return text


def settings(rng: random.Random, folder: Path) -> dict[str, Any]:
    """Of every data module: small and quick."""
    return {"image_size": 32, "batch_size": 2, "num_workers": 0, "on_bad": rng.choice(["error", "skip", "skip"])}


def use_data(make: Callable[[], Any], folder: Path, convert_to: str | None) -> None:
    """Reads a set as training does: everything that is checked, a batch of each split, the truth; then converts it."""
    from cvexp.data.convert import convert
    from cvexp.results import write_problems

    data = make()
    data.setup("fit")
    data.setup("test")
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        next(iter(loader), None)
    write_problems(data.problems, str(folder / "out"))
    if convert_to:
        data.source("train").ground_truth()
        convert(data, convert_to, folder / "out" / "set", progress=False)  # type: ignore[arg-type]


def voc(rng: random.Random, folder: Path, bases: Bases) -> Case:
    """A VOC folder."""
    from cvexp.data.voc import VOCData

    root = folder / "in" / "set"
    pictures = real_pictures(rng, bases, 2) if rng.random() < 0.3 else []
    pictures = pictures or [picture(rng, kind="JPEG") for _ in range(2)]
    for name, content in zip("ab", pictures, strict=True):
        write(root / "JPEGImages" / f"{name}.jpg", content)
    good = "<annotation>{}</annotation>".format(
        VOC_OBJECT.format(name="cat", box="<xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>")
    )
    write(root / "Annotations" / "b.xml", good)
    write(root / "Annotations" / "a.xml", good if (other := rng.random() < 0.25) else voc_xml(rng, folder))
    names = "a\nb\n"
    for split in ("train", "val", "test"):
        write(root / "ImageSets" / "Main" / f"{split}.txt", change_text(names, rng, folder) if other else names)
    if rng.random() < 0.2:
        ending, content = odd_picture(rng)
        (root / "JPEGImages" / "a.jpg").unlink()
        write(root / "JPEGImages" / f"a{ending}", content)
    more = settings(rng, folder) | ({} if rng.random() < 0.5 else {"classes": ["cat"], "other_classes": "ignore"})
    target = rng.choice([None, "coco", "yolo_txt"])
    return Case(partial(use_data, partial(VOCData, root=str(root), **more), folder, target), ["data."])


def coco_content(bases: Bases, rng: random.Random) -> dict[str, Any]:
    """A small annotation file: drawn."""
    size = {"width": 48, "height": 40}
    square = [2, 2, 20, 2, 20, 20, 2, 20]
    runs: list[Any] = [[square], {"size": [40, 48], "counts": [100, 10, 1810]}, {"size": [40, 48], "counts": "T3:fh1"}]
    objects = [
        {"id": i, "image_id": 1 + i % 2, "category_id": 3, "bbox": [2, 2, 18, 18], "area": 324.0, "iscrowd": 0}
        | {"segmentation": runs[i % 2]}
        for i in range(4)
    ]
    images = [{"id": i, "file_name": f"{i}.jpg", **size} for i in (1, 2)]
    return {
        "images": images,
        "annotations": objects,
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
    }


def coco(rng: random.Random, folder: Path, bases: Bases) -> Case:
    """A COCO annotation file."""
    from cvexp.data.coco import COCOData

    root = folder / "in" / "set"
    for number in (1, 2):
        write(root / f"{number}.jpg", picture(rng, kind="JPEG"))
    content = change_tree(coco_content(bases, rng), rng, folder)
    sys.set_int_max_str_digits(0)
    text = json.dumps(content)
    sys.set_int_max_str_digits(4300)
    kind = rng.choice(["plain"] * 9 + ["number", "deep", "twice", "bytes", "many"])
    if kind == "number":
        text = re.sub(r"(?<=: )\d+", lambda m: rng.choice([m[0], m[0], "1e400", "-1e999", "9" * 5000, "1E+2"]), text)
    elif kind == "deep":
        text = text.replace("324.0", "[" * 100_000 + "]" * 100_000, 1)
    elif kind == "twice":
        text = text.replace('"id":', '"id": "x", "id":').replace('"images":', '"images": [], "images":')
    elif kind == "bytes":
        text = change_bytes(text.encode(), rng).decode("latin-1")
    elif kind == "many":
        text = text.replace('"annotations": [', '"annotations": [' + "{}," * 1_000_000)
    write(root / "train.json", text)
    masks = rng.random() < 0.5
    make = partial(COCOData, root=str(root), train="train.json", val="train.json", masks=masks, **settings(rng, folder))
    target = None if masks and rng.random() < 0.5 else rng.choice([None, "voc", "coco", "yolo_txt"])
    return Case(partial(use_data, make, folder, target), ["data."])


YAMLS = (
    "names: !!python/object/apply:os.mkdir [{trap}]\n",
    "names: !!python/name:os.system\n",
    "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
    "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n"
    "g: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\nh: &h [*g,*g,*g,*g,*g,*g,*g,*g,*g]\nnames: [*h,*h]\n",
    "m0: &m0 {k: v}\n" + "".join(f"m{i}: &m{i} {{<<: [{f'*m{i - 1},' * 9}]}}\n" for i in range(1, 10)) + "names: [cat]\n",
    "names: &n [*n]\n",
    "names: {0: cat, .inf: dog}\n",
    "names: {0: cat, 1: 2001-99-99}\n",
    "names: [2001-01-01, 1:60:60]\nnc: .nan\n",
    "? [a, b]\n: c\n",
    "names: " + "[" * 5000 + "]" * 5000 + "\n",
    "names: " + "{a: " * 3000 + "}" * 3000 + "\n",
    "%YAML 1.9\n--- {names: [cat]}\n--- b\n",
)  # fmt: skip


def yolo(rng: random.Random, folder: Path, bases: Bases) -> Case:
    """A folder of YOLO's text files."""
    from cvexp.data.yolo_txt import YOLOTxtData

    root = folder / "in" / "set"
    for split, name in (("train", "a"), ("train", "b"), ("val", "c")):
        write(root / "images" / split / f"{name}.jpg", picture(rng, kind="JPEG"))
        write(root / "labels" / split / f"{name}.txt", "0 0.5 0.5 0.25 0.25\n1 0.2 0.2 0.1 0.1\n")
    about: dict[str, Any] = {"path": ".", "train": "images/train", "val": "images/val", "test": ["images/val"]}
    about |= {"nc": 2, "names": rng.choice([["cat", "dog"], {0: "cat", 1: "dog"}])}
    which = rng.choice(["labels", "about", "about", "raw", "list"])
    if which == "labels":
        label = root / "labels" / "train" / "a.txt"
        write(label, change_text(label.read_text(), rng, folder) * rng.choice([1, 1, 200]))
    elif which == "about":
        about = change_tree(about, rng, folder)
    elif which == "list":
        about["train"] = "train.txt"
        write(root / "train.txt", change_text("images/train/a.jpg\n./images/train/b.jpg\n", rng, folder))
    text = yaml.safe_dump(about, allow_unicode=True)
    if which == "raw":
        text = (
            rng.choice(YAMLS).replace("{trap}", str(folder / "trap"))
            if rng.random() < 0.7
            else change_text(text, rng, folder)
        )
    write(root / "data.yaml", text)
    target = rng.choice([None, "voc", "coco", "yolo_txt"])
    return Case(
        partial(use_data, partial(YOLOTxtData, root=str(root), **settings(rng, folder)), folder, target), ["data."]
    )


def face_files(rng: random.Random) -> dict[str, bytes]:
    """Seven people with three pictures each."""
    return {f"P{n}/P{n}_{i:04d}.png": picture(rng, (16, 16)) for n in range(7) for i in range(1, 4)}


def lists(rng: random.Random, folder: Path, bases: Bases) -> Case:
    """The lists of the LFW protocols."""
    from cvexp.data.faces import FacesData

    root = folder / "in" / "people"
    for name, content in face_files(rng).items():
        write(root / name, content)
    texts = {
        "identities.txt": "P0\t3\nP1\t3\nP2\n",
        "val.txt": "1\nP3\t1\t2\nP3\t1\tP4\t2\n",
        "test.txt": "2\t1\nP5\t1\t2\nP5\t1\tP6\t1\nP6\t1\t2\nP5\t2\tP6\t2\n",
    }
    chosen = rng.choice(list(texts))
    texts[chosen] = change_text(texts[chosen], rng, folder)
    paths = {name.removesuffix(".txt"): str(write(folder / "in" / name, text)) for name, text in texts.items()}
    named = {"identities": paths["identities"], "val_pairs": paths["val"], "test_pairs": paths["test"]}
    if rng.random() < 0.3:
        ending, content = odd_picture(rng)
        write(root / "P0" / f"P0_0001{ending}", content)
    return Case(
        partial(use_faces, partial(FacesData, root=str(root), **named, **face_settings(rng)), folder), ["data."]
    )


def face_settings(rng: random.Random) -> dict[str, Any]:
    """Of a module of faces: small and quick."""
    own = {"image_size": 16, "batch_size": 4, "images_per_identity": 2, "num_workers": 0, "pairs": 4}
    return own | {"on_bad": rng.choice(["error", "skip"])}


def use_faces(make: Callable[[], Any], folder: Path) -> None:
    """Reads a set of faces as training does."""
    from cvexp.results import write_problems

    data = make()
    data.setup("fit")
    data.setup("test")
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        next(iter(loader))
    write_problems(data.problems, str(folder / "out"))


def packed(rng: random.Random, folder: Path, bases: Bases) -> Case:
    """A zip file of faces."""
    from cvexp.data.faces import FacesData

    path = folder / "in" / "faces.zip"
    path.parent.mkdir(parents=True)
    files: list[tuple[str, bytes]] = list(face_files(rng).items())
    change = rng.choice(
        ["bytes", "bytes", "name", "name", "bomb", "picture", "twice", "nested", "link", "claim", "flag"]
    )
    names = ["../../trap.png", "/trap.png", "C:x.png", "a" * 300 + ".png", "x\x1b[2J.png", "..png", "a\nb.png"]
    name = f"P0/{rng.choice(names)}"
    extra: dict[str, Callable[[], tuple[str, bytes]]] = {
        "name": lambda: (rng.choice([name, name[3:]]), picture(rng, (16, 16))),
        "bomb": lambda: ("P0/bomb.png", b"\0" * (100 << 20)),
        "picture": lambda: (f"P0/x{(odd := odd_picture(rng))[0]}", odd[1]),
        "twice": lambda: files[0],
        "nested": lambda: ("P0/inner.zip", b"PK\x05\x06" + b"\0" * 18),
    }
    files += [extra[change]()] if change in extra else []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, content in files:
            archive.writestr(entry, content)
        if change == "link":
            info = zipfile.ZipInfo("P0/P0_0009.png")
            info.external_attr = 0o120777 << 16
            archive.writestr(info, "../../outside/secret.jpg")
    data = bytearray(path.read_bytes())
    directory = data.index(b"PK\x01\x02")
    if change == "claim":
        data[directory + 24 : directory + 28] = struct.pack("<I", rng.choice([0, 1, 2**20, 2**32 - 1]))
    elif change == "flag":
        data[directory + rng.choice([8, 10, 28, 30, 32, 42])] ^= 1 << rng.randrange(8)
    elif change == "bytes":
        data = bytearray(change_bytes(bytes(data), rng))
    path.write_bytes(bytes(data))
    own = {"val_identities": 2, "test_identities": 2}
    return Case(partial(use_faces, partial(FacesData, root=str(path), **own, **face_settings(rng)), folder), ["data."])


def download(rng: random.Random, folder: Path, bases: Bases) -> Case:
    """An archive that was fetched."""
    from cvexp.data.download import unpack

    path = folder / "in" / "set.tar"
    path.parent.mkdir(parents=True)
    odd = rng.choice(["../trap", str(folder / "trap"), "a/../../trap", "x" * 300, "a\nb", "\x1b[2J", "a", "."])
    kind = rng.choice(
        [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
    )
    with tarfile.open(path, rng.choice(["w", "w:gz"])) as archive:
        for name, type_ in (
            ("a/b.txt", tarfile.REGTYPE),
            (odd, kind),
            ("a/c", tarfile.SYMTYPE),
            ("a/c/d", tarfile.REGTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode = (
                type_,
                rng.choice(["../../outside", "/etc", ".", "c", "b.txt"]),
                0o6777,
            )
            info.size = 3 if type_ == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(b"abc"))
    if rng.random() < 0.4:
        path.write_bytes(change_bytes(path.read_bytes(), rng))
    elif rng.random() < 0.3:
        with zipfile.ZipFile(path, "w") as bundle:
            bundle.writestr(odd, b"abc")
    (folder / "out").mkdir(exist_ok=True)
    return Case(partial(unpack, path, folder / "out"))


def pictures(rng: random.Random, folder: Path, bases: Bases) -> Case:
    """Pictures for `cvexp.predict`."""
    from cvexp.predict import predict

    root = folder / "in" / "pictures"
    names = [
        "x",
        "-1",
        "=1+1",
        "a\nb",
        "\x1b[2Jx",
        "x" * 240,
        "[red]x[/red]",
        "\udcff",
        "%s{0}",
        "\u202egnp",
        "#",
        "a, b",
    ]
    for _ in range(rng.choice([1, 2])):
        ending, content = odd_picture(rng)
        write(root / f"{rng.choice(names) if rng.random() < 0.3 else 'x'}{ending}", content)
    if rng.random() < 0.2:
        (root / "folder.jpg").mkdir()
        (root / "loop.jpg").symlink_to(root / "loop.jpg")
        (root / "again").symlink_to(root)
    source = root
    if rng.random() < 0.2:
        names = "\n".join(f"pictures/{path.name}" for path in root.iterdir())
        source = write(folder / "in" / "list.txt", change_text(names, rng, folder))
    faces = rng.random() < 0.4
    ckpt = write_checkpoint(folder / "in" / "good.ckpt", bases.faces if faces else bases.detector)
    words = [f"ckpt={ckpt}", f"source={source}", f"output={folder / 'out'}", "device=cpu"]
    return Case(partial(predict, [*words, *([f"gallery={root}"] if faces else ["threshold=0"])]), ["source="])


def video(rng: random.Random, folder: Path, bases: Bases) -> Case:
    """A video for `cvexp.predict`."""
    import numpy as np

    from cvexp.predict import predict
    from cvexp.video import VideoWriter

    path = folder / "in" / "clip.mp4"
    path.parent.mkdir(parents=True)
    with VideoWriter(path, 10, (48, 64)) as writer:
        for grey in range(0, 200, 40):
            writer.write(np.full((48, 64, 3), grey, np.uint8), None)
    for _ in range(rng.choice([1, 1, 4])):
        path.write_bytes(change_bytes(path.read_bytes(), rng))
    ckpt = write_checkpoint(folder / "in" / "good.ckpt", bases.detector)
    return Case(
        partial(predict, [f"ckpt={ckpt}", f"source={path}", f"output={folder / 'out'}", "device=cpu"]), ["source="]
    )


def write_checkpoint(path: Path, content: Any) -> Path:
    """``torch.save``."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def odd_tensor(rng: random.Random) -> Any:
    """A tensor that no weight should be."""
    import torch

    makers: list[Callable[[], Any]] = [
        lambda: torch.zeros(1).expand(10**11),
        lambda: torch.zeros(()),
        lambda: torch.full((3, 3), math.nan),
        lambda: torch.zeros(0),
        lambda: torch.zeros(2, dtype=torch.complex64),
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.zeros(3, dtype=torch.int8),
        lambda: torch.zeros(5, device="meta"),
        lambda: torch.nn.Parameter(torch.zeros(3)),
    ]
    return rng.choice(makers)()


class Bomb:
    """A pickle that makes a folder when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def change_config(config: dict[str, Any], rng: random.Random, folder: Path) -> dict[str, Any]:
    """Changes the configuration in a checkpoint."""
    change = rng.choice(["tree"] * 8 + ["laughs", "hidden", "slot", "grow", "grow"])
    if change == "tree":
        return change_tree(config, rng, folder)
    if change == "laughs":
        value: Any = ["ha"]
        for _ in range(12):
            value = [value] * 9
        config["model"]["laughs"] = value
    elif change == "hidden":
        node = config[rng.choice(["model", "data", "paths", "metric", "task", "trainer"])]
        secret = ["${oc.env:SECRET}", "${oc.decode:${oc.env:SECRET}}", "${oc.env:HOME}"]
        node[rng.choice(list(node))] = rng.choice(secret)
        config["seed"] = rng.choice([0, "${oc.env:SECRET}"])
    elif change == "slot":
        trap = {"_target_": "cvexp.loggers.wandb", "folder": str(folder / "trap"), "mode": "offline"}
        profile = {"_target_": "lightning.pytorch.profilers.SimpleProfiler", "dirpath": str(folder), "filename": "trap"}
        fetch = {"_target_": "cvexp.data.download.download", "names": ["voc2012"], "root": str(folder / "trap")}
        key, node = rng.choice([("model", trap), ("callbacks", {"x": trap}), ("data", fetch), ("metric", trap)])
        config[key] = node
        config["trainer"]["profiler"] = profile
    else:
        holder, key = rng.choice([(h, k) for h, k in places_of(config) if type(h[k]) is int])
        holder[key] = rng.choice([10**5, 10**7, 10**9, 10**12])
    return config


def change_checkpoint(content: dict[str, Any], rng: random.Random, folder: Path) -> Any:
    """Changes what a checkpoint holds, mostly its configuration."""
    about = content["cvexp"]
    change = rng.choice(["config"] * 8 + ["about", "top", "state", "bomb"])
    if change == "config":
        about["config"] = change_config(about["config"], rng, folder)
    elif change == "about":
        config = about.pop("config")
        about = change_tree(about, rng, folder)
        content["cvexp"] = about | {"config": config} if isinstance(about, dict) else about
    elif change == "top":
        content[rng.choice([*content, "cvexp"])] = wild(rng, folder)
    elif change == "state":
        name = rng.choice([*content["state_dict"], "model.more", 7])
        content["state_dict"][name] = rng.choice([odd_tensor(rng), wild(rng, folder)])
    else:
        rng.choice([content, about, about["config"], about["config"]["model"]])["x"] = Bomb(folder / "trap")
    return content


def checkpoint(rng: random.Random, folder: Path, bases: Bases) -> Case:
    """A checkpoint for `evaluate`, `predict` or ``init_from``."""
    faces = rng.random() < 0.3
    content = json_copy(bases.faces if faces else bases.detector)
    path = folder / "in" / "run" / "checkpoints" / "best.ckpt"
    kind = rng.choice(["content"] * 7 + ["bytes", "bytes", "deflated", "legacy", "zip"])
    write_checkpoint(path, change_checkpoint(content, rng, folder) if kind in ("content", "legacy") else content)
    if kind == "bytes":
        path.write_bytes(change_bytes(path.read_bytes(), rng))
    elif kind == "legacy":
        import torch

        torch.save(content, path, _use_new_zipfile_serialization=False)
        path.write_bytes(change_bytes(path.read_bytes(), rng) if rng.random() < 0.5 else path.read_bytes())
    elif kind in ("deflated", "zip"):
        repack(path, rng, kind == "deflated")
    return rng.choice([use_predict, use_evaluate, use_evaluate, use_init_from])(path, rng, folder, faces)


def repack(path: Path, rng: random.Random, deflated: bool) -> None:
    """The zip file inside a checkpoint, compressed with a member that bursts, or with members changed."""
    with zipfile.ZipFile(path) as archive:
        files = {info.filename: archive.read(info) for info in archive.infolist()}
    name = rng.choice(list(files))
    files[name] = b"\0" * (500 << 20) if deflated else change_bytes(files[name], rng)
    with zipfile.ZipFile(
        path, "w", zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED, compresslevel=1
    ) as archive:
        for entry, content in files.items():
            archive.writestr(entry, content)


def use_predict(path: Path, rng: random.Random, folder: Path, faces: bool) -> Case:
    from cvexp.predict import predict

    image = write(folder / "in" / "x.png", picture(rng))
    words = [f"ckpt={path}", f"source={image}", f"output={folder / 'out'}", "device=cpu"]
    return Case(partial(predict, [*words, *([f"against={image}"] if faces else ["threshold=0"])]), ["ckpt="])


def use_evaluate(path: Path, rng: random.Random, folder: Path, faces: bool) -> Case:
    from cvexp.evaluate import evaluate

    return Case(partial(evaluate, [f"ckpt={path}", f"output={folder / 'out'}"]), ["ckpt="])


def use_init_from(path: Path, rng: random.Random, folder: Path, faces: bool) -> Case:
    return Case(partial(init_from, path, folder), ["init_from="])


def init_from(path: Path, folder: Path) -> None:
    """What ``init_from=`` does with a file."""
    from omegaconf import OmegaConf

    from cvexp.build import build_model
    from cvexp.transfer import read_weights, transfer

    config = OmegaConf.create(BASES[0].detector["cvexp"]["config"])
    transfer(build_model(config.model, 3), read_weights(path), ["ellipse", "rectangle", "triangle"], folder / "out")


BASES: list[Bases] = []


def configuration(rng: random.Random, folder: Path, bases: Bases) -> Case:
    """YAML files and the words of the command line."""
    from cvexp.config import conf_dir

    conf = folder / "in" / "conf"
    shutil.copytree(conf_dir(), conf)
    words = ["data=shapes", "model=yolo", "model.size=tiny"]
    keys = ["model", "data", "trainer", "metric", "optimizer", "callbacks", "task", "recipe", "scheduler", "logger"]
    if rng.random() < 0.5:
        keys += change_words(words, rng, folder, bases)
    else:
        used = ["train", "model/yolo", "data/shapes", "data/_base", "trainer/default", "optimizer/adamw", "metric/coco"]
        path = (
            conf
            / f"{rng.choice([*used, 'run/default', 'callbacks/default', 'task/detection', 'experiment/mine'])}.yaml"
        )
        change_yaml(path, rng, folder)
        words += ["experiment=mine"] if path.stem == "mine" else []
    return Case(
        partial(compose, words, conf, folder), [f"'{key}" for key in keys] + [f"{key}=" for key in keys], own=True
    )


def change_words(words: list[str], rng: random.Random, folder: Path, bases: Bases) -> list[str]:
    """Adds one to three overrides, of which the keys are returned."""
    known = [".".join(parts) for parts in dotted(bases.detector["cvexp"]["config"])]
    typed = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        key = rng.choice(
            [*known] * 6 + ["model/backbone", "hydra.run.dir", "allow_targets", "data", "nothing", "a b", ""]
        )
        value = wild(rng, folder)
        value = str(value) if rng.random() < 0.6 else json.dumps(value) if not isinstance(value, int) else "1e999"
        word = f"{rng.choice(['', '', '', '+', '++', '~'])}{key}={value[:20_000]}"
        typed.append(change_text(word, rng, folder).replace("\0", "") if rng.random() < 0.2 else word.replace("\0", ""))
    words += typed
    return [word.lstrip("+~").partition("=")[0].partition(".")[0] or "'" for word in typed] + ["'"]


def dotted(tree: Any, *before: str) -> list[tuple[str, ...]]:
    """The keys of nested dicts, the inner ones too."""
    found: list[tuple[str, ...]] = []
    for key, value in tree.items() if isinstance(tree, dict) else ():
        found += [(*before, str(key)), *dotted(value, *before, str(key))]
    return found


EXPERIMENTS = (
    "hydra: {callbacks: {x: {_target_: os.mkdir, path: TRAP}}}\n",
    "hydra: {launcher: {_target_: os.system}}\n",
    "hydra: {job_logging: {handlers: {x: {(): os.mkdir, path: TRAP}}}}\n",
    "allow_targets: [torch]\nmodel: {_target_: torch.hub.load}\n",
    "allow_targets: [hydra]\nmodel: {_target_: hydra.utils.call}\n",
    "model: {_target_: os.system, _args_: [TRAP]}\n",
    "seed: ${oc.env:SECRET}\n",
    "optimizer: {_target_: cvexp.data.download.download, _partial_: true}\n",
)


def change_yaml(path: Path, rng: random.Random, folder: Path) -> None:
    """Changes a configuration file; ``experiment/mine`` is made."""
    if path.stem == "mine":
        text = rng.choice(EXPERIMENTS).replace("TRAP", str(folder / "trap"))
        write(path, f"# @package _global_\n{text}")
        return
    text = path.read_text(encoding="utf-8")
    change = rng.choice(["tree", "tree", "tree", "text", "bytes", "raw"])
    if change == "tree":
        text = yaml.safe_dump(change_tree(yaml.safe_load(text), rng, folder), allow_unicode=True)
    elif change == "text":
        text = change_text(text, rng, folder)
    elif change == "raw":
        text += rng.choice(YAMLS).replace("{trap}", str(folder / "trap"))
    write(path, change_bytes(text.encode(), rng) if change == "bytes" else text)


def compose(words: list[str], conf: Path, folder: Path) -> None:
    """What `cvexp.train` does before it reads data."""
    from omegaconf import OmegaConf

    from cvexp.build import SUPPLIED, check_parts
    from cvexp.config import Composer, check_config, check_overrides

    check_overrides(words, conf=conf)
    config = Composer("train", conf).compose(words)
    OmegaConf.set_struct(config, False)
    config.paths.output = str(folder / "out")
    check_config(config, origin=lambda key: f"'{key}'", supplied=SUPPLIED, extra=config.get("allow_targets") or ())
    check_parts(config)


KINDS: dict[str, Callable[[random.Random, Path, Bases], Case]] = {
    "voc": voc,
    "coco": coco,
    "checkpoint": checkpoint,
    "yolo": yolo,
    "config": configuration,
    "pictures": pictures,
    "lists": lists,
    "zip": packed,
    "checkpoint2": checkpoint,
    "download": download,
    "video": video,
}


# --- one case in a process of its own --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """Of a case: seconds of processor time, and bytes beyond what the program itself needs."""

    seconds: int = 20
    memory: int = 3 << 30


@dataclass
class Outcome:
    """What became of a case.

    Attributes:
        kind: of the input.
        end: ``accepted``, ``refused``, or how else it ended.
        findings: what is wrong with that; empty if nothing is.
        said: what was printed, a traceback included.
    """

    kind: str
    end: str
    findings: list[str]
    said: str
    seconds: float
    memory: int


def snapshot(folder: Path) -> dict[str, list[int]]:
    """Size and time of everything in a case's folder that is not its own to change."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if name.parts[0] not in (*OWN, "said.txt"):
            about = path.lstat()
            found[str(name)] = [about.st_mode, about.st_size, 0 if path.is_dir() else about.st_mtime_ns]
    return found


def watch(folder: Path, found: list[str]) -> None:
    """Notes what this process opens, changes or starts outside of ``folder``; there is no way to end it."""
    mine = [str(folder / name) for name in OWN]

    def outside(path: Any) -> bool:
        if isinstance(path, int) or path is None:
            return False
        text = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 - links are judged by the snapshot
        return not text.startswith((*mine, "/dev/", "/proc/self"))

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = (*arguments, None, None)[:3]
            writes = bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) or bool(
                set(str(mode or "")) & set("wax+")
            )
            reads = not isinstance(path, int) and f"{folder}/outside" in os.path.abspath(os.fsdecode(path))  # noqa: PTH100
            if (writes and outside(path)) or reads:
                found.append(f"{'writes' if writes else 'reads'} outside: {path!r}")
        elif event in CHANGED:
            paths = arguments[1:] if event == "os.symlink" else arguments  # what a link names is not touched
            if any(isinstance(path, str | bytes | os.PathLike) and outside(path) for path in paths):
                found.append(f"{event} outside: {arguments!r}")
        elif event in STARTED:
            found.append(f"{event}: {arguments!r}"[:300])

    sys.addaudithook(note)


def inside(kind: str, seed: str, folder: Path, limits: Limits, report: int) -> None:
    """The process of a case: draws it, then runs it watched and limited; tells two lines of JSON to ``report``."""
    from cvexp.config import report_errors

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of zip files that are made with a name twice
        case = KINDS[kind](random.Random(seed), folder, BASES[0])
    parts = {part for path in (folder / "in").rglob("*") for part in (path.name, path.stem) if len(part) > 2}
    names = [*sorted(parts), str(folder / "in")]
    before = {"before": snapshot(folder), "names": [*names, *case.keys], "own": case.own}
    os.write(report, json.dumps(before).encode("utf-8") + b"\n")
    os.chdir(folder / "home")
    os.environ |= {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"), "SECRET": SECRET, "COLUMNS": "4000"}
    tempfile.tempdir = str(folder / "tmp")
    random.seed(0)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + limits.memory,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (limits.seconds, limits.seconds + 1))
    found: list[str] = []
    sys.stdout = sys.stderr = (folder / "said.txt").open("w", encoding="utf-8", errors="backslashreplace")
    for stream in (1, 2):  # loggers and libraries have the former ones
        os.dup2(sys.stdout.fileno(), stream)
    watch(folder, found)
    end = "accepted"
    try:
        report_errors(case.run)()
    except SystemExit as error:
        end = "refused" if error.code == 2 else f"ends with exit code {error.code}"
    except BaseException as error:
        end = f"raises {type(error).__name__}"
        traceback.print_exc()
    sys.stdout.flush()
    os.write(report, json.dumps({"end": end, "found": found}).encode("utf-8") + b"\n")


def run_case(seed: int, index: int, folder: Path, limits: Limits, kind: str | None = None) -> Outcome:
    """Draws and runs case ``index`` of a seed in ``folder``, which is made anew."""
    kind = kind or list(KINDS)[index % len(KINDS)]
    shutil.rmtree(folder, ignore_errors=True)
    for name in (*OWN, "outside"):
        (folder / name).mkdir(parents=True)
    write(folder / "outside" / "secret.jpg", SECRET)
    with tempfile.TemporaryFile() as report:
        start = time.monotonic()
        pid = os.fork()
        if pid == 0:
            child(kind, f"{seed}/{index}", folder, limits, report.fileno())
        status, killed, usage = wait_for(pid, 6 * limits.seconds)
        seconds = time.monotonic() - start
        report.seek(0)
        told: dict[str, Any] = {}
        for line in report.read().splitlines():
            told |= json.loads(line)
    memory = max(usage.ru_maxrss - resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0) * 1024
    return judged(kind, folder, told, killed or signal_name(status), Measured(seconds, memory, limits))


def child(kind: str, seed: str, folder: Path, limits: Limits, report: int) -> None:
    """Runs `inside` and ends this process, whatever happens."""
    try:
        os.setpgid(0, 0)
        inside(kind, seed, folder, limits, report)
    except BaseException:
        text = traceback.format_exc()
        os.write(report, json.dumps({"end": "the fuzzer itself fails", "trace": text}).encode() + b"\n")
    finally:
        os._exit(0)


def wait_for(pid: int, seconds: float) -> tuple[int, str, Any]:
    """A child's exit code, whether it was stopped after so many seconds (else empty), and what it used."""
    killed = ""

    def stop(*_: Any) -> None:
        nonlocal killed
        killed = f"hangs: stopped after {seconds:g} s"
        os.killpg(pid, signal.SIGKILL)

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        _, status, usage = os.wait4(pid, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    killed = killed and f"{killed} ({usage.ru_utime + usage.ru_stime:.1f} s of them at work)"
    return os.waitstatus_to_exitcode(status), killed, usage


def signal_name(status: int) -> str:
    """How a process died; empty if it ended by itself."""
    if status == -signal.SIGXCPU:
        return "hangs: used up its processor time"
    return f"dies by {signal.Signals(-status).name}" if status < 0 else ""


# --- judgement -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """What a case used: seconds, bytes; and what it was allowed to."""

    seconds: float
    memory: int
    limits: Limits


def judged(kind: str, folder: Path, told: dict[str, Any], died: str, used: Measured) -> Outcome:
    """What is wrong with how a case ended."""
    path = folder / "said.txt"
    said = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else told.get("trace", "")
    end = died or told.get("end", "ends without a word")
    findings = list(dict.fromkeys(told.get("found", [])))
    if end not in ("accepted", "refused"):
        findings.insert(0, end)
    if end == "refused":
        findings += refusal_problems(said, told["names"])
    shown = said_problems(said)
    findings += [text for text in shown if not told.get("own") or text not in (SHOWS_SECRET, NO_MEMORY)]
    if used.memory > used.limits.memory:
        findings.append(f"uses {used.memory >> 20} MB more than an idle process")
    findings += written_problems(folder, told)
    return Outcome(kind, end, findings, said, used.seconds, used.memory)


def refusal_problems(said: str, names: Sequence[str]) -> list[str]:
    """What a refusal lacks: a file or key, and a way out."""
    found = [] if any(name in said for name in names) else ["the refusal names no place"]
    if not FIX.search(said):
        found.append("the refusal names no fix")
    return found


def said_problems(said: str) -> list[str]:
    """What must not be on a screen."""
    found = []
    if "Traceback (most recent call last)" in said:
        found.append("a traceback is shown")
    if control := CONTROL.search(said.replace("\r\n", "\n")):
        found.append(f"the control character {control[0]!r} is shown")
    if SECRET in said:
        found.append(SHOWS_SECRET)
    if MEMORY.search(said):
        found.append(NO_MEMORY)
    if len(said) > 100_000:
        found.append(f"{len(said):,} characters are shown")
    return found


def written_problems(folder: Path, told: dict[str, Any]) -> list[str]:
    """What lies where it should not, or holds what it should not."""
    after = snapshot(folder)
    before = told.get("before", after)
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    found = [f"changed: {name}"[:300] for name in changed]
    for path in (folder / "out").rglob("*"):
        if path.is_file() and not path.is_symlink() and SECRET.encode() in path.read_bytes():
            found.append(f"a secret is in {path.relative_to(folder)}")
        if any(part.startswith(".") and part.endswith(".part") for part in path.relative_to(folder).parts):
            found.append(f"half-written: {path.relative_to(folder)}")
    return found


# --- the command -----------------------------------------------------------------------------------------------------


def drawn_checkpoint(words: Sequence[str], classes: list[str], **more: Any) -> dict[str, Any]:
    """What `cvexp.train` saves, untrained."""
    from omegaconf import OmegaConf

    from cvexp.build import build_model, describe
    from cvexp.config import Composer

    common = ["data.num_workers=0", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.enable_progress_bar=false"]
    config = Composer().compose([*words, *common])
    config.paths.output = "runs/fuzzed"
    config = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    model = build_model(config.model, len(classes))
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    return {"state_dict": state, "cvexp": describe(config, classes) | more, "epoch": 1}


def make_bases(data: Path | None) -> Bases:
    """What all cases begin with; imports everything once, so that a forked process need not."""
    import torch

    for name in READERS:
        importlib.import_module(f"cvexp.{name}")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    few = ["data.train_size=4", "data.val_size=2", "data.test_size=2", "data.batch_size=2"]
    detector = drawn_checkpoint(
        ["model=yolo", "model.size=tiny", "data=shapes", *few], ["ellipse", "rectangle", "triangle"]
    )
    people = [f"data.{split}_identities=3" for split in ("train", "val", "test")] + ["metric.resamples=10"]
    kept = {"threshold": -1.0, "shown": 1.0, "measure": "squared distance", "chosen": "best accuracy", "list": "x"}
    faces = drawn_checkpoint(["model=facenet", "model.size=tiny", *people], ["Ann", "Bob", "Cem"], verification=kept)
    return Bases(detector, faces, data if data and data.is_dir() else None)


def fuzz(seed: int, indices: Sequence[int], folder: Path, limits: Limits, console: Console) -> dict[int, Outcome]:
    """Runs cases; what had findings stays in ``folder``."""
    outcomes: dict[int, Outcome] = {}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, auto_refresh=False) as progress:  # no thread: it could not be forked
        task = progress.add_task("feeding", total=len(indices))
        for index in indices:
            place = folder / f"{index:05d}"
            outcome = outcomes[index] = run_case(seed, index, place, limits)
            if outcome.findings:
                text = [f"kind {outcome.kind}, seed {seed}, index {index}", *outcome.findings, "", outcome.said]
                write(place / "finding.txt", "\n".join(text))
                progress.console.print(
                    f"{index} {outcome.kind}: {outcome.findings[0]}"[:300], markup=False, highlight=False
                )
            else:
                shutil.rmtree(place, ignore_errors=True)
            progress.update(task, advance=1, refresh=True)
    return outcomes


def summary(outcomes: dict[int, Outcome]) -> Table:
    """Counts by kind."""
    table = Table(title=f"{len(outcomes)} inputs")
    for name in ("kind", "runs", "accepted", "refused", "findings", "slowest", "most memory"):
        table.add_column(name, justify="left" if name == "kind" else "right")
    for kind in dict.fromkeys(outcome.kind for outcome in outcomes.values()):
        own = [outcome for outcome in outcomes.values() if outcome.kind == kind]
        ends = Counter(outcome.end for outcome in own)
        wrong = sum(bool(outcome.findings) for outcome in own)
        slowest, most = max(outcome.seconds for outcome in own), max(outcome.memory for outcome in own)
        counts = [len(own), ends["accepted"], ends["refused"], wrong]
        table.add_row(kind, *map(str, counts), f"{slowest:.1f} s", f"{most >> 20} MB")
    return table


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of all cases (default: %(default)s)")
    parser.add_argument("--count", type=int, default=500, help="how many cases (default: %(default)s)")
    parser.add_argument("--only", type=int, metavar="INDEX", help="this case alone; its folder is kept")
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS), metavar="KIND", help=f"of: {', '.join(KINDS)}")
    parser.add_argument("--keep", type=Path, help="folder for inputs with findings (default: a new one)")
    parser.add_argument("--seconds", type=int, default=20, help="of processor time for a case (default: %(default)s)")
    parser.add_argument("--memory", type=float, default=3, help="GB for a case (default: %(default)s)")
    default = os.environ.get("CVEXP_DATA")
    parser.add_argument(
        "--data", type=Path, default=Path(default) if default else None, help="folder of real data sets"
    )
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """The command: 0 without findings, else 1."""
    asked = parse(words)
    console = Console(stderr=True)
    folder = (asked.keep or Path(tempfile.mkdtemp(prefix="cvexp-fuzz-"))).absolute()
    BASES[:] = [make_bases(asked.data)]
    indices = [asked.only] if asked.only is not None else list(range(asked.count))
    wanted = [i for i in indices if not asked.kinds or list(KINDS)[i % len(KINDS)] in asked.kinds]
    limits = Limits(asked.seconds, int(asked.memory * 2**30))
    start = time.monotonic()
    outcomes = fuzz(asked.seed, wanted, folder, limits, console)
    console.print(summary(outcomes))
    wrong = {index: outcome for index, outcome in outcomes.items() if outcome.findings}
    console.print(
        f"{len(outcomes)} inputs in {time.monotonic() - start:.0f} s, {len(wrong)} with findings", highlight=False
    )
    if wrong:
        console.print(f"kept in {folder}; again: --seed {asked.seed} --only {next(iter(wrong))}", highlight=False)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
