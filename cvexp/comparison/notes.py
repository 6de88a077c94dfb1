"""The sentences without which the numbers of a ranking would be misread."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cvexp.comparison.grouping import differing, leaves
from cvexp.comparison.ranking import BUDGET, PAIRS_OF_ALL, TOLERANCE, Entry, Ranking
from cvexp.comparison.runs import Run
from cvexp.config.messages import one_line


def notes(ranking: Ranking) -> list[str]:
    """What has to be said, the gravest first."""
    found = [*_incomparable(ranking), *_budget(ranking), *_seeds(ranking), *_mixed(ranking), *_pairs(ranking)]
    return [one_line(sentence) for sentence in found]


def of_all(rankings: Sequence[Ranking]) -> list[str]:
    """What has to be said where there are several test sets."""
    if len(rankings) < 2:
        return []
    titles = _few([ranking.title for ranking in rankings], "; ")
    found = [f"{len(rankings)} test sets: {titles}. Scores on different images are not ranked together."]
    for name in dict.fromkeys(ranking.data for ranking in rankings):
        alike = [ranking for ranking in rankings if ranking.data == name]
        data = [_inner(r.entries[0].group.runs[0].config, "data") for r in alike]
        keys = [key for key in differing([leaves(one) for one in data]) if key not in ("seed", "batch_size")]
        if len(alike) > 1 and keys:
            told = [f"data.{key}={' | '.join(str(leaves(one).get(key)) for one in data)}" for key in keys]
            found.append(
                f"{len(alike)} of them are called {name}; their runs differ in {_few(told, '; ')}. Fix: give all the same."
            )
    return [one_line(sentence) for sentence in found]


def _incomparable(ranking: Ranking) -> Iterator[str]:
    runs = [run for entry in ranking.entries for run in entry.group.runs]
    if ranking.test_set is None:
        yield "No run tells what it was tested on (no manifest.json, no evidence.npz): that it is the same is only supposed."
    settings = {str(run.results["metric/settings"]) for run in runs if "metric/settings" in run.results}
    if len(settings) > 1:
        yield f"Not measured alike: {' | '.join(sorted(settings))}."
    trained = [(entry.label, _part(run, "train")) for entry in ranking.entries for run in entry.group.runs]
    known = {key: label for label, key in trained if key is not None}
    if len(known) > 1:
        yield f"Not all trained on the same images: {_few(_by_set(trained))}."
    for entry in ranking.entries:
        lacking = sum(value is None for value in entry.values)
        if lacking:
            yield f"{entry.label}: {lacking} of {len(entry.values)} runs have no {ranking.measure}."
    without = [e.label for e in ranking.entries if e.estimate is not None and e.estimate.low is None]
    if without:
        yield (
            f"No interval for {_few(without)}: there is no evidence.npz in (all of) their folders, or none for {ranking.measure}."
            " Differences to them are judged by seeds alone."
        )


def _by_set(trained: Sequence[tuple[str, str | None]]) -> list[str]:
    """Labels that share a training set, joined: ``["yolo, faster_rcnn_fpn", "yolo data=voc_mini"]``."""
    sets: dict[str, dict[str, None]] = {}
    for label, key in trained:
        sets.setdefault(str(key), {})[label] = None
    return [", ".join(labels) for labels in sets.values()]


def _budget(ranking: Ranking) -> Iterator[str]:
    for name in ("minutes", "images"):
        if same_budget(ranking.entries, name):
            yield f"Same budget: {BUDGET[name].label} within {100 * (TOLERANCE - 1):.0f} %."
            break
    else:
        if len(ranking.entries) > 1:
            yield from _unequal(ranking.entries)
    machines = {_machine(run) for entry in ranking.entries for run in entry.group.runs} - {""}
    if len(machines) > 1:
        yield f"Minutes and memory are of different machines: {_few(sorted(machines))}."


def same_budget(entries: Sequence[Entry], name: str) -> bool:
    """Whether all groups spent the same, within `TOLERANCE`; False where one does not tell."""
    means = [entry.budget[name].mean for entry in entries if name in entry.budget]
    return 1 < len(means) == len(entries) and max(means) <= TOLERANCE * min(means)


def _unequal(entries: Sequence[Entry]) -> Iterator[str]:
    spent = []
    for entry in entries:
        minutes, images = entry.budget.get("minutes"), entry.budget.get("images")
        words = [f"{minutes.mean:.3g} min"] if minutes else []
        words += [f"{images.mean:,.0f} images"] if images else []
        spent += [f"{entry.label} {', '.join(words)}"] if words else []
    if spent:
        yield f"Not the same budget: {_few(spent, '; ')}. budget.minutes= (or budget.images=) makes them equal."


def _seeds(ranking: Ranking) -> Iterator[str]:
    for entry in ranking.entries:
        if entry.group.repeated_seeds:
            seeds = ", ".join(map(str, entry.group.repeated_seeds))
            yield (
                f"{entry.label}: seed {seeds} stands there more than once; such runs are no independent repetitions, and the"
                " spread over seeds is too small."
            )
    single = [entry for entry in ranking.entries if len(set(entry.group.seeds)) < 2 and entry.estimate is not None]
    if single:
        yield (
            f"One seed only: {_few([entry.label for entry in single])}. What another seed would give is not known."
            f" Fix: give a second, {another(single[0].group.runs[0])}"
        )


def another(run: Run) -> str:
    """The command of a repetition with another seed: ``python -m cvexp.train model=yolo seed=2``."""
    words = [f"{key}={value}" for key, value in run.words.items() if key != "seed" and not key.startswith("hydra")]
    words = words or [f"model={run.model}", f"data={run.data}"]
    return "python -m cvexp.train " + shlex.join([*words, f"seed={(run.seed or 0) + 1}"])


def _mixed(ranking: Ranking) -> Iterator[str]:
    """Groups that were made with ``by=`` and hold runs of several configurations."""
    from cvexp.comparison.grouping import decisive

    for entry in ranking.entries:
        keys = differing([decisive(run) for run in entry.group.runs])
        if keys:
            yield (
                f"{entry.label}: runs that also differ in {_few(keys)} are taken together; the spread is not over seeds alone."
            )


def _pairs(ranking: Ranking) -> Iterator[str]:
    measured = [entry for entry in ranking.entries if entry.estimate is not None]
    if len(measured) > PAIRS_OF_ALL and ranking.pairs:
        centre = ranking.pairs[0].second
        yield f"{len(measured)} groups: each is compared with {centre} only. Fix: baseline=<group>, or fewer groups."


def _part(run: Run, split: str) -> str | None:
    data = run.manifest.get("data")
    part = data.get(split) if isinstance(data, Mapping) else None
    found = part.get("hash") if isinstance(part, Mapping) else None
    return found if isinstance(found, str) else None


def _machine(run: Run) -> str:
    """The graphics card, else the processor; empty where it is not known."""
    device, platform = _inner(run.manifest, "device"), _inner(run.manifest, "platform")
    gpu: Any = device.get("name")
    cores = f", {platform['cores']} cores" if "cores" in platform else ""
    return str(gpu) if gpu else f"{platform['cpu']}{cores}" if "cpu" in platform else ""


def _inner(node: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = node.get(name)
    return found if isinstance(found, Mapping) else {}


def _few(names: Sequence[str], joint: str = ", ", most: int = 6) -> str:
    more = f"{joint}and {len(names) - most} more" if len(names) > most else ""
    return joint.join(names[:most]) + more
