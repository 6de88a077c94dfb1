"""The lecture's first table and its two charts from runs of one's own: ``python scripts/lecture_regions.py [folder] [words]``.

Trains R-CNN, SPPnet, Fast R-CNN and Faster R-CNN (``conf/experiment/lecture_*.yaml``) one after the other and fills the tables.
Stopped or killed, the same command goes on where it was; what has ended is not repeated. Further words are overrides for all
four (``limit_test`` and the like under ``data.``). See docs/lecture.md.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cvexp.config import report_errors
from cvexp.sweeps.ledger import FILE

SYSTEMS = ("lecture_rcnn", "lecture_sppnet", "lecture_fast_rcnn", "lecture_faster_rcnn")


def training(folder: Path, words: list[str]) -> list[str]:
    """The command that trains all four, or goes on with it."""
    place = f"sweep={folder}" if (folder / FILE).is_file() else f"hydra.sweep.dir={folder}"
    return [sys.executable, "-m", "cvexp.train", "-m", f"experiment={','.join(SYSTEMS)}", place, *words]


@report_errors
def main() -> None:
    """The command."""
    from cvexp.comparison.lecture import lecture

    words = sys.argv[1:]
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return
    places = [word for word in words if "=" not in word]
    folder = Path(places[0] if places else "runs/lecture_regions")
    code = subprocess.call(training(folder, [word for word in words if "=" in word]))
    if not any(folder.glob("*/result.json")):
        sys.exit(code or 1)
    filled, files = lecture([str(folder), f"output={folder / 'lecture'}"])
    for line in filled.left_out:
        print(line)
    print("\n".join(map(str, files)))
    sys.exit(code)


if __name__ == "__main__":
    main()
