"""Fills the lecture's tables from run folders: ``python scripts/lecture_tables.py runs/... [output=runs/lecture]``.

The logic is in `cvexp.comparison.lecture`; see docs/lecture.md.
"""

from __future__ import annotations

import sys

from cvexp.config import report_errors


@report_errors
def main() -> None:
    """The command."""
    from cvexp.comparison.lecture import USAGE, lecture

    words = sys.argv[1:]
    if {"-h", "--help"} & set(words):
        print(USAGE)
        return
    filled, files = lecture(words)
    for line in filled.left_out:
        print(line)
    print("\n".join(map(str, files)))


if __name__ == "__main__":
    main()
