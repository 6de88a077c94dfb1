"""Compare faces: two pictures (``against=``), or pictures with a gallery of people (``gallery=``); part of `cvexp.predict`.

The nearest picture of a person stands for that person. Everything is read and embedded before the first file is written, so
that a picture which cannot be read leaves nothing behind.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvexp.config.messages import one_line
from cvexp.errors import UserError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from cvexp.inference import Comparison, Embedder

SHOWN = 20
"""So many sources are named on the screen; the tables have them all."""


@dataclass(frozen=True)
class Entry:
    """A picture with its name in tables, and whom it shows (empty where nobody says)."""

    path: Path
    name: str
    person: str = ""


@dataclass(frozen=True)
class Found:
    """A source with its nearest people, the nearest first, and what that means in a word (None without a threshold)."""

    source: Entry
    matches: list[tuple[Entry, Comparison]]
    verdict: str | None


def predict_faces(options: dict[str, str]) -> dict[str, Any]:
    """Runs the command for a face model.

    Returns:
        ``images`` (number of sources), ``verdicts`` (one each: in a comparison ``same person`` or ``different``, in a gallery
        a name or ``unknown``; None without a threshold), ``output`` (folder), ``pictures`` (file or folder of the drawings),
        ``notes, said`` (lines for the screen) and ``files``.

    Raises:
        UserError: an option, the checkpoint or a picture cannot be used.
    """
    from cvexp.predict import find_images, load_checkpoint, number

    option = _asked(options)
    _check_packed(options, option)
    top, size, threshold = int(number(options, "top")), int(number(options, "batch_size")), _threshold(options)
    files, base = find_images(options["source"])
    sources = [Entry(path, path.relative_to(base).as_posix()) for path in files]
    others = _against(options, sources) if option == "against" else _gallery(options["gallery"])
    embedder = load_checkpoint(options)
    if not hasattr(embedder, "compare"):
        raise UserError(
            f"{option}={options[option]}: is for a face model; ckpt={options['ckpt']} is a detector."
            f" Fix: leave {option}= out, or give the checkpoint of a face model"
        )
    scores = embedder.scores(_embed(embedder, sources, size), _embed(embedder, others, size))
    if option == "against":
        found = [_compared(embedder, sources[0], others[0], float(scores[0, 0]), threshold)]
    else:
        found = _identified(embedder, sources, others, scores, top, threshold)
    notes = _notes(options, sources, others)
    people = len({entry.person for entry in others})
    if option == "gallery" and threshold is None and embedder.threshold is not None and people > 1:
        notes.append(
            f"the checkpoint's threshold was chosen on pairs; with {people:,} people in the gallery a stranger has {people:,}"
            " chances to come within it. Fewer false names: a stricter threshold="
        )
    given = {entry.path.resolve() for entry in (*sources, *others)}
    return _write(options, embedder, found, option, notes, given)


def _asked(options: dict[str, str]) -> str:
    """``against`` or ``gallery``."""
    given = [name for name in ("against", "gallery") if options[name]]
    if len(given) != 1:
        what = "both against= and gallery= are given" if given else "against= and gallery= are missing"
        raise UserError(
            f"{what}. Fix: against=<another face> asks whether two are one person, gallery=<folder> who it is"
        )
    return given[0]


def _check_packed(options: dict[str, str], other: str) -> None:
    """Refuses zip files, which training reads in place."""
    for name in ("source", other):
        if options[name].lower().endswith(".zip"):
            raise UserError(
                f"{name}={options[name]}: pictures are not read from zip files here. Fix: unpack it, {name}=<the folder>"
            )


def _threshold(options: dict[str, str]) -> float | None:
    """The number that was typed, in units of the measure; None where none was."""
    if options["threshold"] == "":
        return None
    try:
        value = float(options["threshold"])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(
            f"threshold={options['threshold']}: must be a number in units of the model's measure."
            " Fix: leave it out to take the checkpoint's own"
        )
    return value


def _against(options: dict[str, str], sources: Sequence[Entry]) -> list[Entry]:
    from cvexp.predict import find_images

    files, _ = find_images(options["against"], "against")
    for name, count in (("source", len(sources)), ("against", len(files))):
        if count != 1:
            raise UserError(
                f"{name}={options[name]}: {count} pictures; against= compares two."
                " Fix: one picture each, or gallery=<folder> to compare many"
            )
    return [Entry(files[0], files[0].name)]


def _gallery(folder: str) -> list[Entry]:
    """The pictures of a gallery; a person is a folder's name, or that of a picture which lies in none."""
    from cvexp.predict import find_images

    files, base = find_images(folder, "gallery")
    top = base
    while len(inner := {path.relative_to(top).parts[0] for path in files}) == 1 and all(
        len(path.relative_to(top).parts) > 2 for path in files
    ):  # a folder around the people's folders
        top = top / inner.pop()
    entries = []
    for path in files:
        inside = path.relative_to(top)
        person = inside.stem if len(inside.parts) == 1 else inside.parent.as_posix()
        entries.append(Entry(path, path.relative_to(base).as_posix(), person))
    return entries


def _embed(embedder: Embedder, entries: Sequence[Entry], size: int) -> Tensor:
    """``[N, D]``, with a bar where it takes more than a moment."""
    import torch
    from rich.progress import track

    starts = range(0, len(entries), size)
    chunks = [[entry.path for entry in entries[start : start + size]] for start in starts]
    bar = track(chunks, description="reading faces", disable=len(chunks) < 10)
    return torch.cat([embedder.embed(chunk, size) for chunk in bar])


def _compared(embedder: Embedder, source: Entry, other: Entry, score: float, threshold: float | None) -> Found:
    answer = embedder.judge(score, threshold)
    verdict = None if answer.same is None else "same person" if answer.same else "different"
    return Found(source, [(other, answer)], verdict)


def _identified(
    embedder: Embedder,
    sources: Sequence[Entry],
    gallery: Sequence[Entry],
    scores: Tensor,
    top: int,
    threshold: float | None,
) -> list[Found]:
    """The ``top`` nearest people of each source, each by the nearest picture; the source's own file is left out."""
    places = [entry.path.resolve() for entry in gallery]
    found = []
    for source, row in zip(sources, scores, strict=True):
        own = source.path.resolve()
        nearest: dict[str, tuple[Entry, Comparison]] = {}
        for i in row.argsort(descending=True, stable=True).tolist():
            if places[i] != own and gallery[i].person not in nearest:
                nearest[gallery[i].person] = (gallery[i], embedder.judge(float(row[i]), threshold))
                if len(nearest) == top:
                    break
        if not nearest:
            raise UserError(
                f"gallery: holds nothing but the source itself ({source.path}). Fix: gallery=<folder with other pictures>"
            )
        matches = list(nearest.values())
        best, answer = matches[0]
        found.append(Found(source, matches, None if answer.same is None else best.person if answer.same else "unknown"))
    return found


def _notes(options: dict[str, str], sources: Sequence[Entry], others: Sequence[Entry]) -> list[str]:
    """What a user should know of the pictures that were given."""
    there = {entry.path.resolve() for entry in others}
    twice = [source.name for source in sources if source.path.resolve() in there]
    if not twice:
        return []
    if options["against"]:
        return [f"source and against are the same file: {twice[0]}"]
    names = ", ".join(twice[:5]) + (f" and {len(twice) - 5:,} more" if len(twice) > 5 else "")
    return [f"left out of the gallery, each for itself, as it is the source: {names}"]


# --- what is said and written ----------------------------------------------------------------------------------------


def _write(
    options: dict[str, str], embedder: Embedder, found: list[Found], option: str, notes: list[str], given: set[Path]
) -> dict[str, Any]:
    """Draws, writes the tables, and says what came out; what was ``given`` is never written over."""
    output = Path(options["output"]).expanduser()
    pictures = output / ("pair.png" if option == "against" else "matches")
    targets = [pictures] if option == "against" else _drawn_names(found, pictures)
    for target in targets:
        if target.resolve() in given:
            raise UserError(f"output={output}: would write over {target}. Fix: output=<another folder>")
    draw = _draw_pair if option == "against" else _draw_matches
    for each, target in zip(found, targets, strict=True):
        _save(draw(each), target)
    files = [pictures, output / "matches.json", output / "matches.csv"]
    _write_text(files[1], _as_json(found))
    _write_text(files[2], _as_csv(found))
    said = _pair_lines(found[0]) if option == "against" else _match_lines(found)
    answer = found[0].matches[0][1]
    return {
        "images": len(found),
        "verdicts": [each.verdict for each in found],
        "output": output,
        "pictures": pictures,
        "notes": [*notes, _crops(embedder)],
        "said": [*said, _threshold_line(answer, embedder.threshold)],
        "files": files,
    }


def _crops(embedder: Embedder) -> str:
    how = {"letterbox": "keeping their aspect", "warp": "stretched to a square"}.get(embedder.fit.resize, "")
    return (
        "the model does not find faces: the pictures must be tight crops like those it was trained on;"
        f" they are brought to {embedder.fit.size}x{embedder.fit.size} pixels, {how}"
    )


def _threshold_line(answer: Comparison, own: float | None) -> str:
    """Where the threshold comes from; ``own`` is the checkpoint's."""
    if answer.threshold is None:
        return (
            "no threshold: the checkpoint has none (no validation on pairs), so there is no verdict."
            f" Fix: threshold=<a number, the same measure ({answer.measure})>"
        )
    origin = answer.chosen or "the checkpoint's"
    if answer.chosen == "as given":
        origin = "from the command line" + ("" if own is None else f", instead of the checkpoint's {own:.4g}")
    return f"threshold {answer.threshold:.4g}: {origin}"


def _sign(answer: Comparison) -> str:
    """How a value lies to the threshold."""
    assert answer.threshold is not None
    return "below" if answer.value < answer.threshold else "above" if answer.value > answer.threshold else "at"


def _pair_lines(found: Found) -> list[str]:
    other, answer = found.matches[0]
    value = f"{answer.measure} {answer.value:.4f} between {found.source.name} and {other.name}"
    if found.verdict is None:
        return [value]
    return [f"{found.verdict}: {value}, {_sign(answer)} the threshold {answer.threshold:.4g}"]


def _match_lines(found: list[Found]) -> list[str]:
    lines = []
    for each in found[:SHOWN]:
        best, answer = each.matches[0]
        nearest = f"nearest {best.person}, {answer.measure} {answer.value:.4f} ({best.name})"
        lines.append(f"{each.source.name}: {nearest if each.verdict is None else f'{each.verdict}; {nearest}'}")
        if len(each.matches) > 1:
            lines.append("    then " + ", ".join(f"{m.person} {a.value:.4f}" for m, a in each.matches[1:]))
    if len(found) > SHOWN:
        lines.append(f"... and {len(found) - SHOWN:,} more in matches.csv")
    return lines


def _as_json(found: list[Found]) -> str:
    answer = found[0].matches[0][1]
    rows = [
        {
            "file_name": each.source.name,
            "verdict": each.verdict,
            "matches": [
                {"person": m.person or None, "file_name": m.name, "value": round(a.value, 6), "within": a.same}
                for m, a in each.matches
            ],
        }
        for each in found
    ]
    limit = answer.threshold if answer.threshold is not None and math.isfinite(answer.threshold) else None
    head = {"measure": answer.measure, "threshold": limit, "chosen": answer.chosen or None}
    return json.dumps(head | {"sources": rows}, indent=1, ensure_ascii=False) + "\n"


def _as_csv(found: list[Found]) -> str:
    from cvexp.predict import cell

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["source", "verdict", "rank", "person", "image", "measure", "value", "within"])
    for each in found:
        for rank, (m, a) in enumerate(each.matches, start=1):
            within = "" if a.same is None else str(a.same).lower()
            verdict = each.verdict or ""
            names = [cell(each.source.name), cell(verdict), rank, cell(m.person), cell(m.name)]
            writer.writerow([*names, a.measure, round(a.value, 6), within])
    return text.getvalue()


def _write_text(path: Path, text: str) -> None:
    """A file whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(
            text, encoding="utf-8", errors="backslashreplace", newline=""
        )  # names of files need not be text
        part.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from None


def _save(drawing: Image.Image, path: Path) -> None:
    from cvexp.viz import save

    try:
        save(drawing, path)
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be written ({error.strerror}). Fix: output=<a folder you may write>")


def _drawn_names(found: list[Found], folder: Path) -> list[Path]:
    """``<name>.png`` for each source; the whole name before it where two differ in their ending only."""
    short = [Path(each.source.name).with_suffix(".png").as_posix() for each in found]
    long = [f"{each.source.name}.png" for each in found]
    twice = {name for name, count in Counter(short).items() if count > 1}
    names = [b if a in twice else a for a, b in zip(short, long, strict=True)]
    return [folder / name for name in (names if len({*names}) == len(names) else long)]


def _draw_pair(found: Found) -> Image.Image:
    from cvexp.inference import face_tensor
    from cvexp.viz.faces import BLACK, RIGHT, WRONG, column, strip, tile

    other, answer = found.matches[0]
    ink = None if answer.same is None else RIGHT if answer.same else WRONG
    faces = strip([tile(face_tensor(entry.path), [one_line(entry.name)], 240, ink) for entry in (found.source, other)])
    value = f"{answer.measure} {answer.value:.4f}"
    if answer.threshold is None:
        return column([faces], [(value, BLACK)])
    verdict = found.verdict or ""
    return column([faces], [(verdict, ink or BLACK), (f"{value}, threshold {answer.threshold:.4g}", BLACK)])


def _draw_matches(found: Found) -> Image.Image:
    from cvexp.inference import face_tensor
    from cvexp.viz.faces import BLACK, RIGHT, WRONG, column, strip, tile

    tiles = [tile(face_tensor(found.source.path), [one_line(Path(found.source.name).name), "source"])]
    for entry, answer in found.matches:
        ink = None if answer.same is None else RIGHT if answer.same else WRONG
        tiles.append(tile(face_tensor(entry.path), [one_line(entry.person), f"{answer.value:.4f}"], ink=ink))
    answer = found.matches[0][1]
    limit = "no threshold" if answer.threshold is None else f"threshold {answer.threshold:.4g}"
    ink = BLACK if answer.same is None else RIGHT if answer.same else WRONG
    heading = [(one_line(found.verdict or "nearest people"), ink), (f"{answer.measure}, {limit}", BLACK)]
    return column([strip(tiles)], heading)
