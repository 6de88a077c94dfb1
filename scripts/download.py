"""Fetches public data sets: ``python scripts/download.py voc2012 --root data``. Broken off, the same command goes on."""

from __future__ import annotations

import argparse
import os

from cvexp.config import report_errors
from cvexp.data.download import SETS, download, listing


@report_errors
def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one or several of: {', '.join(SETS)}")
    default = os.environ.get("CVEXP_DATA") or "data"
    parser.add_argument("--root", default=default, help="folder of the data sets (default: %(default)s)")
    parser.add_argument("--remove-archives", action="store_true", help="delete each archive when it is unpacked")
    parser.add_argument("--list", action="store_true", help="show files, sizes, hashes, mirrors and terms")
    words = parser.parse_args()
    if words.list:
        print(listing(words.names or tuple(SETS)))
        return
    download(words.names, words.root, words.remove_archives)


if __name__ == "__main__":
    main()
