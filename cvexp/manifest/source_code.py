"""The source code that a run is computed by, as git knows it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from pathlib import Path
from typing import Any

DIFF = "git.diff"
GIT_SECONDS = 5.0
"""All questions to git together may take so long; a slow or hanging one costs its answer, never the run."""
DIFF_BYTES = 1_000_000
"""A longer diff is told by its hash alone."""
SOURCES = (".py", ".yaml", ".yml")


def git_state(package: Path) -> tuple[dict[str, Any], str | None] | None:
    """Commit, branch and changes of the repository that ``package`` lies in, and the text of the changes.

    Changes are those of all tracked files (of binary ones their hashes) and the new source files in the package and in
    ``conf`` beside it. They have a hash; their text is given up to `DIFF_BYTES`. Nothing is written and nothing waits for a
    lock.

    Returns:
        None where there is nothing to say: no git, no repository, no commit, a package that git does not track (installed
        from a wheel below somebody's repository), or no answer within `GIT_SECONDS`.
    """
    deadline = time.monotonic() + GIT_SECONDS
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*words: str) -> bytes:
        return subprocess.run(
            ["git", "-c", "core.fsmonitor=false", "-c", "core.quotePath=false", *words],
            cwd=package,
            env=inherited | {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=max(deadline - time.monotonic(), 0.01),
            check=True,
        ).stdout

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        commit = git("rev-parse", "--verify", "HEAD").decode().strip()
        branch = git("rev-parse", "--abbrev-ref", "HEAD").decode().strip()
        plain = ("--no-ext-diff", "--no-textconv", "--no-color", "--no-relative", "--src-prefix=a/", "--dst-prefix=b/")
        diff = git("diff", "--full-index", *plain, "HEAD")
        conf = ["../conf"] if (package.parent / "conf" / "train.yaml").is_file() else []
        names = git("ls-files", "--others", "--exclude-standard", "--full-name", "-z", "--", ".", *conf)
        top = package / git("rev-parse", "--show-cdup").decode().strip()
    except (OSError, subprocess.SubprocessError):
        return None
    diff += b"".join(new_file(top, name) for name in sorted(os.fsdecode(names).split("\0")) if name)
    state: dict[str, Any] = {"commit": commit, "branch": None if branch == "HEAD" else branch, "dirty": bool(diff)}
    if not diff:
        return state, None
    short = len(diff) <= DIFF_BYTES
    state |= {
        "diff": hashlib.blake2b(diff, digest_size=16).hexdigest(),
        "diff_bytes": len(diff),
        "diff_file": DIFF if short else None,
    }
    return state, diff.decode("utf-8", "replace") if short else None


def new_file(top: Path, name: str) -> bytes:
    """A file that git does not know, as a piece of a diff; empty where it is no source file or cannot be read."""
    path = top / name
    try:
        if path.suffix not in SOURCES or path.is_symlink() or path.stat().st_size > DIFF_BYTES:
            return b""
        content = path.read_bytes()
    except OSError:
        return b""
    shown = os.fsencode(name)
    head = b"diff --git a/%b b/%b\nnew file mode 100644\n" % (shown, shown)
    if not content:
        return head
    lines = content.split(b"\n")
    cut = [] if lines[-1] else [lines.pop()]  # it ends with a line's end
    body = b"".join(b"+" + line + b"\n" for line in lines) + (b"" if cut else b"\\ No newline at end of file\n")
    return head + b"--- /dev/null\n+++ b/%b\n@@ -0,0 +1,%d @@\n" % (shown, len(lines)) + body
