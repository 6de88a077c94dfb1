"""How a problem is told: what is wrong, where it was set, and the fix."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from cvexp.errors import UserError

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_LONGEST = 4000
_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a configuration.

    Attributes:
        what: the key, its value and what is wrong with it.
        where: the override as typed, or the YAML file and line; empty if unknown.
        fix: what to type or change instead; empty if there is no single answer.
    """

    what: str
    where: str = ""
    fix: str = ""

    def __str__(self) -> str:
        rows = [self.what, self.where and f"   where: {self.where}", self.fix and f"   fix: {self.fix}"]
        return "\n".join(row for row in rows if row)


def suggest(word: str, choices: Iterable[str]) -> str:
    """``did you mean 'x'?`` (or up to three of them) for a misspelled word; empty if nothing is close."""
    return either(close(word, choices))


def either(names: Sequence[str]) -> str:
    """``did you mean 'x', 'y' or 'z'?``; empty without any."""
    quoted = [f"'{name}'" for name in names]
    return f"did you mean {' or '.join(filter(None, [', '.join(quoted[:-1]), quoted[-1]]))}?" if quoted else ""


def close(word: str, choices: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """Up to three choices that look like ``word``, the most similar first, then those it abbreviates."""
    names = {name.lower(): name for name in choices}
    lower = word.lower()
    found = difflib.get_close_matches(lower, names, n=3, cutoff=cutoff)
    found += [name for name in sorted(names) if len(lower) > 2 and name.startswith(lower) and name not in found]
    return [names[name] for name in found[:3]]


def listing(choices: Iterable[str], limit: int = 30) -> str:
    """The choices in alphabetical order, cut after ``limit``."""
    names = sorted(choices)
    more = f", ... ({len(names) - limit} more)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def shown(value: object, limit: int = 80) -> str:
    """A value as a message shows it: ``repr``, cut in the middle if long."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit // 2]} ... {text[-limit // 4 :]}"


def plain(text: str) -> str:
    """A text as a screen may show it: names from files can hold commands for the terminal, which become ``\\x1b`` and so on."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def one_line(text: str) -> str:
    """As `plain`, on one line: for names in tables and pictures."""
    return plain(text).replace("\n", "\\n")


def typed(word: str) -> str:
    """The origin of a value that was typed."""
    return f"from the command line: {word if len(word) <= 200 else f'{word[:200]} ...'}"


def raise_problems(problems: Iterable[Problem]) -> None:
    """Raises one error for all problems, numbered where there are several; does nothing without any.

    Raises:
        UserError: if there is a problem.
    """
    texts = list(dict.fromkeys(str(problem) for problem in problems))
    if len(texts) == 1:
        raise UserError(texts[0])
    if texts:
        rows = [f"{i}. {text}" for i, text in enumerate(texts, start=1)]
        raise UserError(f"{len(texts)} problems in the configuration:\n" + "\n".join(rows))


def report_errors(main: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorates a command: a `UserError` becomes a short red block on stderr and exit code 2, without a traceback.

    Hydra catches what its task function raises, so a Hydra command needs it inside (under ``@hydra.main``) for errors
    of the run, and around the call of `check_overrides` for errors of the command line.

    Raises:
        SystemExit: with code 2 for a `UserError`; everything else passes through unchanged.
    """

    @functools.wraps(main)
    def reported(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return main(*args, **kwargs)
        except Exception as error:
            own = _own(error)
            if own is None:
                raise
            _print(str(own))
        raise SystemExit(2)

    return reported


def _own(error: BaseException | None) -> UserError | None:
    """The `UserError` that is, or caused, an error: Hydra wraps what a constructor raises. A key that nobody set is one, too."""
    from omegaconf.errors import OmegaConfBaseException

    first = error
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    if error is None and isinstance(first, OmegaConfBaseException):
        reason = str(first).split("\n    object_type")[0].replace("\n    full_key: ", ": ")
        return UserError(f"the configuration cannot be used: {reason}. Fix: set that key, or leave its file as it was")
    return error


def _print(message: str) -> None:
    from rich.console import Console
    from rich.text import Text

    text = plain(message)
    text = text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
    Console(stderr=True).print(Text("error: ", style="bold red") + Text(text, style="red"), soft_wrap=True)
