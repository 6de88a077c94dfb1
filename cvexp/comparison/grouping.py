"""Which runs are repetitions of one another, and what the groups are called.

Runs that differ in nothing but the seed, paths, loggers and the like form one group. Its label is the model's name and, where
several groups share that, the keys in which they differ: ``yolo``, ``faster_rcnn_fpn lr=0.003``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from cvexp.comparison.runs import Run, natural
from cvexp.config import suggest
from cvexp.config.messages import one_line
from cvexp.errors import UserError
from cvexp.resume import EXTENDS, MAY_CHANGE, MUST_STAY

DECIDES = (
    *(*EXTENDS, "metric.*", "trainer.precision", "trainer.min_epochs", "trainer.min_steps"),
    *(f"trainer.{name}" for name in ("limit_val_batches", "limit_test_batches")),
    *(f"trainer.{name}" for name in ("check_val_every_n_epoch", "val_check_interval")),
)
"""What may change when a run goes on, and yet makes another result."""
REPEATS = ("seed", "data.seed", *(pattern for pattern in MAY_CHANGE if pattern not in DECIDES))
"""Keys (patterns) in which repetitions of one run may differ."""
UNSAID = ("hydra", "hydra/*", "callbacks", "logger", "paths", "run", "debug", "model", "task", "recipe", "budget")
"""Folders of ``conf/`` that no label names: the keys they set are named instead, or the model is named already."""
LONGEST = 28
"""Letters of a value in a label."""
MOST = 4
"""Keys in a label; what else differs stands in the table of differences."""


@dataclass(frozen=True, eq=False)
class Group:
    """Runs taken together.

    Attributes:
        label: unique among those it is compared with.
        runs: at least one, by seed.
        settings: the configuration's leaves by dotted key, as far as they decide the result; of the first run.
    """

    label: str
    runs: tuple[Run, ...]
    settings: Mapping[str, Any]

    @property
    def seeds(self) -> list[int]:
        return [run.seed for run in self.runs if run.seed is not None]

    @property
    def repeated_seeds(self) -> list[int]:
        """Seeds of more than one run: such runs are no independent repetitions."""
        return sorted({seed for seed in self.seeds if self.seeds.count(seed) > 1})

    @property
    def model(self) -> str:
        return self.runs[0].model


def test_sets(runs: Iterable[Run]) -> list[list[Run]]:
    """The runs by what they were tested on; those that do not tell are kept apart by the name of their data."""
    found: dict[tuple[bool, str], list[Run]] = {}
    for run in runs:
        key = run.test_set
        found.setdefault((key is None, key or run.data), []).append(run)
    return list(found.values())


def group_runs(runs: Sequence[Run], by: Sequence[str] = ()) -> list[Group]:
    """The groups, in the order of their first runs.

    Args:
        runs: of one test set.
        by: choices (``model``) or keys (``optimizer.lr``) to group by instead.

    Raises:
        UserError: no run has such a choice or key.
    """
    settings = {run: decisive(run) for run in runs}
    if by:
        check_by(runs, by, settings)
    found: dict[str, list[Run]] = {}
    for run in runs:
        key = _choice(run, by, settings[run]) if by else _signature(run, settings[run])
        found.setdefault(key, []).append(run)
    groups = [tuple(sorted(group, key=_order)) for group in found.values()]
    names = [_name_by(group[0], by, settings[group[0]]) for group in groups] if by else _names(groups, settings)
    return [Group(name, group, settings[group[0]]) for name, group in zip(_unique(names), groups, strict=True)]


def decisive(run: Run) -> dict[str, Any]:
    """Leaves of the configuration that decide the result, the run's own folder written as ``<run>``."""
    own = str(_inner(run.config, "paths").get("output") or "")
    found = {}
    for key, value in leaves(run.config).items():
        if not _any(key, REPEATS) or _any(key, MUST_STAY):
            found[key] = value.replace(own, "<run>") if own and isinstance(value, str) else value
    return found


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys whose value is not the same everywhere, in the order of the files."""
    keys = dict.fromkeys(key for one in settings for key in one)
    return [key for key in keys if len({_text(one.get(key, _ABSENT)) for one in settings}) > 1]


def leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    """``{"optimizer.lr": 0.1}`` of ``{"optimizer": {"lr": 0.1}}``; lists are leaves."""
    if not isinstance(node, Mapping) or not node:
        return {prefix: node} if prefix else {}
    found: dict[str, Any] = {}
    for name, value in node.items():
        found |= leaves(value, f"{prefix}.{name}" if prefix else str(name))
    return found


def said(value: Any) -> str:
    """A value as labels show it: ``0.003``, ``[1, 2]``, a long text cut."""
    text = f"{value:g}" if isinstance(value, float) else one_line(str(value))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 10]}...{text[-7:]}"


def check_by(runs: Sequence[Run], by: Sequence[str], settings: Mapping[Run, Mapping[str, Any]] | None = None) -> None:
    """
    Raises:
        UserError: no run has such a choice or key, or it is the seed.
    """
    settings = settings or {run: decisive(run) for run in runs}
    for name in by:
        if _any(name, ("seed", "data.seed")):
            raise UserError(f"by={name}: runs of one group differ in it. Fix: by=model, or leave by= out")
        if all(_chosen(run, name, settings[run]) is None for run in runs):
            known = sorted({"model", "data"}.union(*(run.choices for run in runs), *settings.values()))
            raise UserError(
                f"by={name}: no run has such a choice or key; {suggest(name, known)} Fix: by=model, by=model,data or a key of"
                " config.yaml as by=optimizer.lr"
            )


def _chosen(run: Run, name: str, settings: Mapping[str, Any]) -> Any:
    if name in ("model", "data"):
        return getattr(run, name)
    return run.choices.get(name, settings.get(name))


def _choice(run: Run, by: Sequence[str], settings: Mapping[str, Any]) -> str:
    return _text([_chosen(run, name, settings) for name in by])


def _name_by(run: Run, by: Sequence[str], settings: Mapping[str, Any]) -> str:
    words = [(name, said(_chosen(run, name, settings))) for name in by]
    return " ".join(value if name == "model" else f"{name}={value}" for name, value in words)


def _signature(run: Run, settings: Mapping[str, Any]) -> str:
    if not settings:
        return f"folder {run.folder.resolve()}"  # nothing is known of it: a group of its own
    return f"{run.model}\n" + _text(dict(sorted(settings.items())))


def _names(groups: Sequence[tuple[Run, ...]], settings: Mapping[Run, Mapping[str, Any]]) -> list[str]:
    """The model's name; where several groups have the same, with the keys in which those differ."""
    names = []
    for group in groups:
        same = [other for other in groups if other[0].model == group[0].model]
        names.append(" ".join([group[0].model, *_words(group[0], [other[0] for other in same], settings)]))
    return names


def _words(run: Run, same: Sequence[Run], settings: Mapping[Run, Mapping[str, Any]]) -> list[str]:
    """``lr=0.003`` and so on: by what a run differs from others of the same model."""
    if len(same) == 1:
        return []
    if not settings[run]:
        return [one_line(run.folder.name)]
    table = {other: _options(other, same, settings) for other in same}
    keys = _telling(list(table.values()))
    short = {key: key.rpartition(".")[2] for key in keys}
    names = {key: name if list(short.values()).count(name) == 1 else key for key, name in short.items()}
    return [f"{names[key]}={said(table[run][key])}" for key in keys if table[run].get(key) is not None]


def _options(run: Run, same: Sequence[Run], settings: Mapping[Run, Mapping[str, Any]]) -> dict[str, Any]:
    """What a label could say of a run: differing choices, then differing keys that were typed, then all other ones."""
    choices = [name for name in run.choices if not _any(name, UNSAID) or name == "data"]
    found: dict[str, Any] = {n: run.choices[n] for n in choices if len({r.choices.get(n) for r in same}) > 1}
    parts = tuple(f"{name.replace('/', '.')}.*" for name in found)
    keys = differing([settings[other] for other in same])
    typed = [key for key in keys if any(key in other.words for other in same)]
    other = [key for key in keys if key not in typed and not _any(key, parts)]
    return found | {key: settings[run].get(key) for key in (*typed, *other)} | {_TYPED: len(found) + len(typed)}


def _telling(tables: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys that tell the rows apart: what was chosen or typed, and of the rest as little as it takes."""
    first = max(tables, key=lambda table: table[_TYPED])
    keys = [key for table in (first, *tables) for key in table if key != _TYPED]
    kept: list[str] = []
    for number, key in enumerate(dict.fromkeys(keys)):
        before, after = (_different(tables, names) for names in (kept, [*kept, key]))
        if len(kept) < MOST and (after > before or number < first[_TYPED]):
            kept.append(key)
    return kept


def _different(tables: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> int:
    return len({tuple(_text(table.get(key)) for key in keys) for table in tables})


def _unique(names: Sequence[str]) -> list[str]:
    """Equal names are numbered: ``yolo (2)``."""
    return [f"{name} ({names[: i + 1].count(name)})" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _order(run: Run) -> tuple[bool, int, list[tuple[int, int, str]]]:
    return run.seed is None, run.seed or 0, natural(str(run.folder))


def _text(value: Any) -> str:
    return json.dumps(value, default=str, sort_keys=True)


def _any(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _inner(node: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = node.get(name)
    return found if isinstance(found, Mapping) else {}


_ABSENT = "<absent>"
_TYPED = "\n"  # no key of a configuration
