"""Writes a data set in another format: ``python scripts/convert_dataset.py data=voc to=coco out=<new folder>``.

The input is whatever ``data=`` and ``data.*`` describe, read and checked as for training.
"""

from __future__ import annotations

import sys

from cvexp.config import Composer, check_config, check_overrides, report_errors
from cvexp.errors import UserError
from cvexp.evaluate import split_words

USAGE = """usage: python scripts/convert_dataset.py to=voc|coco|yolo_txt out=<new folder>
           [images=copy|link|none] [splits=train,val,test] data=<data set> [data.root=...] [key=value ...]

Reads a data set as training does and writes it in another format: annotations, class names and images (copied, hard-linked
or not at all). The folder must be new or empty; it appears when everything is written. What the format cannot hold is listed.
For instance: data=voc to=coco out=voc_as_coco, data=bccd to=yolo_txt out=bccd_yolo images=link data.on_bad=skip"""


def convert_dataset(words: list[str]) -> str:
    """Runs the command with ``words``.

    Returns:
        The report.

    Raises:
        UserError: a word, the data or the folder cannot be used.
    """
    from hydra.utils import instantiate

    from cvexp.build import SUPPLIED, quiet
    from cvexp.data.convert import convert

    own, rest = split_words(words, {"to", "out", "images", "splits"})
    for name in ("to", "out"):
        if not own.get(name):
            raise UserError(f"{name}= is missing.\n{USAGE}")
    if any(word.startswith("-") for word in rest):
        raise UserError(f"{next(word for word in rest if word.startswith('-'))}: there is no such option.\n{USAGE}")
    check_overrides(rest)
    config = Composer().compose(rest)
    config.paths.output = own["out"]  # of a run; nothing is written there by its name
    check_config(config, supplied=SUPPLIED, extra=config.allow_targets)
    quiet()
    splits = own.get("splits", "train,val,test").strip("[]").split(",")
    data = instantiate(config.data)
    return str(convert(data, own["to"], own["out"], own.get("images", "copy"), splits))  # type: ignore[arg-type]


@report_errors
def main() -> None:
    """The command."""
    words = sys.argv[1:]
    if not words or {"-h", "--help"} & set(words):
        print(USAGE)
        return
    print(convert_dataset(words))


if __name__ == "__main__":
    main()
