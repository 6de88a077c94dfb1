"""The words of the command line, checked before Hydra runs."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException

from cvexp.config.hydra_part import hydra_problems
from cvexp.config.keys import Change, key_problem
from cvexp.config.messages import Problem, listing, raise_problems, shown, suggest, typed
from cvexp.config.origins import Origins, key_parts
from cvexp.config.sources import CommandLine, Composer

_USAGE = "an override is key=value, as in trainer.max_epochs=3; quote a text with special signs: 'key=\"a=b, c\"'"
_Slots = Mapping[str, str | None]  # the choice of every slot
_MAX_COMBINATIONS = 64  # of group choices in a sweep; beyond that each job is checked when it starts
_MAX_CHOICES = 200  # of one sweep


def check_overrides(
    argv: Sequence[str],
    config_name: str = "train",
    conf: Path | str | None = None,
    extra_dirs: Iterable[Path | str] = (),
) -> None:
    """Checks the words after the program's name against the YAML files; every choice of a sweep is checked.

    Args:
        argv: ``sys.argv[1:]``; Hydra's flags are understood or ignored.
        config_name: the primary config, without ``.yaml``.
        conf: the folder of the YAML files; the packaged one by default.
        extra_dirs: further folders, searched after it.

    Raises:
        UserError: for a word that is no override, an unknown group, option, slot or key (also after ``+``), a value of
            the wrong type, a sweep without ``-m``, or YAML files that cannot be composed with these choices.
    """
    line = CommandLine.read(argv, config_name, Path(conf) if conf else None, extra_dirs)
    if line.passive:
        return
    composer = Composer(line.config_name, line.conf, line.extra_dirs)
    repository = composer.repository(line.words)
    words = _read(line.words, repository)
    raise_problems(problem for word in words if word.group for problem in _option_problems(word, repository))
    search = [word for word in line.words if word.startswith("hydra.searchpath=")]
    slots = composer.defaults(search, skip_missing=True).overrides.known_choices
    problems: list[Problem] = []
    for groups in _combinations([word for word in words if word.group]):
        accepted = _accept(groups, search, slots, composer)
        config = composer.compose(accepted)
        problems += hydra_problems(config, composer, accepted)
        problems += _stray_keys(config, groups, slots, accepted, composer)
        problems += _key_problems([word for word in words if not word.group], config, composer)
        problems += _sweep_problems(words, line.multirun or config.hydra.mode == RunMode.MULTIRUN)
    raise_problems(problems)


# --- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Word:
    """One override: as typed, whether its key is a group, and what it stands for (one `Override` for each choice)."""

    text: str
    group: bool
    sweep: bool
    choices: tuple[Override, ...]

    @property
    def first(self) -> Override:
        return self.choices[0]


def _read(texts: Iterable[str], repository: CachingConfigRepository) -> list[_Word]:
    words, problems = [], []
    for text in texts:
        try:
            words.append(_word(text, repository))
        except HydraException as error:
            reason = str(error).split("\nSee http")[0].replace("\n", ": ")
            problems.append(Problem(f"'{text}' cannot be read: {reason}", typed(text), _USAGE))
    raise_problems(problems)
    return words


def _word(text: str, repository: CachingConfigRepository) -> _Word:
    override = OverridesParser.create().parse_override(text)
    sweep = override.is_sweep_override()
    group = (
        "/" in override.key_or_group or bool(override.package) or repository.group_exists(override.key_or_group)
    ) and not isinstance(override.value(), dict)
    values = itertools.islice(_values(override, repository), _MAX_CHOICES) if sweep else ()
    parser = OverridesParser.create()
    choices = [parser.parse_override(f"{override.get_key_element()}={value}") for value in values]
    if sweep and not choices:
        raise HydraException("no choice is left by this sweep")
    return _Word(text, group, sweep, tuple(choices) or (override,))


def _values(override: Override, repository: CachingConfigRepository) -> Iterator[str]:
    """The choices of a sweep, as they would be typed; an interval gives its two ends."""
    value: Any = override._value
    if isinstance(value, Glob):
        if not repository.group_exists(override.key_or_group):
            raise HydraException("glob(...) chooses among the options of a group, and this is not one")
        return iter(value.filter(repository.get_group_options(override.key_or_group)))
    if isinstance(value, IntervalSweep):
        return iter([str(value.start), str(value.end)])
    return override.sweep_string_iterator()


# --- groups ----------------------------------------------------------------------------------------------------------


def _option_problems(word: _Word, repository: CachingConfigRepository) -> Iterator[Problem]:
    """Options that no file defines. Unknown groups are told later, when the chosen model's slots are known."""
    group = word.first.key_or_group
    if not repository.group_exists(group):
        return
    options = [name for name in repository.get_group_options(group) if not name.startswith("_")]  # _base: not a choice
    for choice in word.choices:
        value = choice.value()
        if choice.is_delete() and value is None:
            continue
        for name in value if isinstance(value, list) else [value]:
            if not isinstance(name, str):
                what = f"'{group}' is a group: it takes the name of an option, not {shown(name)}"
                yield Problem(what, typed(word.text), f"choices: {listing(options)}; without any: ~{group}")
            elif not repository.config_exists(f"{group}/{name}"):
                fix = " ".join([suggest(name, options), f"choices: {listing(options) or 'none'}"]).strip()
                yield Problem(f"the group '{group}' has no option '{name}'", typed(word.text), fix)


def _combinations(groups: list[_Word]) -> Iterator[list[_Word]]:
    """Every combination of the options that a sweep chooses, each as words of a single choice."""
    single = [[replace(word, choices=(choice,)) for choice in word.choices] for word in groups]
    return (list(words) for words in itertools.islice(itertools.product(*single), _MAX_COMBINATIONS))


def _accept(groups: list[_Word], search: Sequence[str], slots: _Slots, composer: Composer) -> list[str]:
    """The group overrides in an order in which each finds its slot, outer choices (the model) first.

    Raises:
        UserError: for those that find none.
    """
    accepted = list(search)
    waiting = list(groups)
    while ready := [word for word in waiting if _has_slot(word.first, slots)]:
        ready = [word for word in ready if "/" not in word.first.key_or_group] or ready
        accepted += [str(word.first.input_line) for word in ready]
        waiting = [word for word in waiting if word not in ready]
        slots = composer.defaults(accepted, skip_missing=True).overrides.known_choices
    raise_problems(_slot_problem(word, slots, composer) for word in waiting)
    return accepted


def _has_slot(override: Override, slots: _Slots) -> bool:
    key = override.get_key_element().lstrip("+~")
    if override.is_force_add():  # Hydra has none for groups
        return False
    return key not in slots if override.is_add() else key in slots


def _slot_problem(word: _Word, slots: _Slots, composer: Composer) -> Problem:
    key = word.first.get_key_element().lstrip("+~")
    group = word.first.key_or_group
    value = word.text.partition("=")[2]
    if key in slots:
        what = f"'{key}' has a choice already: {slots[key]}"
        return Problem(what, typed(word.text), f"leave the + away: {key}={value}")
    if word.first.is_force_add():
        return Problem(f"'{key}' is a group, which takes no ++", typed(word.text), f"add it: +{key}={value}")
    groups = composer.groups() if not group.startswith("hydra/") else []
    own = [slot for slot in slots if not slot.startswith("hydra/")]
    parent = group.split("/")[0]
    if "/" in group and parent in slots:
        below = [slot for slot in own if slot.startswith(f"{parent}/")]
        fix = " ".join([suggest(key, below), f"its slots: {listing(below) or 'none'}"]).strip()
        return Problem(f"{parent}={slots[parent]} has no component slot '{key}'", typed(word.text), fix)
    if group in groups:
        what = f"the group '{group}' is not in the defaults list of {composer.config_name}.yaml"
        return Problem(what, typed(word.text), f"add it: +{key}={value}")
    fix = " ".join([suggest(group, groups), f"groups: {listing(groups)}"]).strip()
    return Problem(f"there is no group '{group}'", typed(word.text), fix)


def _stray_keys(
    config: DictConfig, groups: list[_Word], slots: _Slots, accepted: list[str], composer: Composer
) -> Iterator[Problem]:
    """Top-level keys that a file laid over the rest brings in (``traner:`` in an experiment) and that nobody reads."""
    outer = [word.first for word in groups if "/" not in word.first.key_or_group]
    below = [str(choice.input_line) for choice in outer if slots.get(choice.key_or_group) is not None]
    if len(below) == len(outer):  # only groups that the defaults list fills: what they bring in is theirs
        return
    known = {str(key) for key in composer.compose(below)}.union(group.split("/")[0] for group in composer.groups())
    text = OmegaConf.to_yaml(config)
    for key in map(str, config):
        if key not in known and f"${{{key}" not in text:
            fix = suggest(key, known) or f"known: {listing(known - {'hydra'})}"
            yield Problem(f"unknown key '{key}'", Origins(accepted, composer)(key), fix)


def _key_problems(words: list[_Word], config: DictConfig, composer: Composer) -> Iterator[Problem]:
    """Problems of the keys, in the order typed: an earlier word may add the node that a later one fills."""
    groups = composer.groups()
    OmegaConf.set_struct(config, True)
    for word in words:
        found = [key_problem(Change.of(word.text, choice), config, groups) for choice in word.choices]
        if problem := next(filter(None, found), None):
            yield problem
            continue
        try:
            ConfigLoaderImpl._apply_overrides_to_config([word.first], config)
        except (HydraException, OmegaConfBaseException) as error:
            reason = str(error.__cause__ or error).split("\n")[0]
            what = f"'{word.first.key_or_group}' cannot be set: {reason}"
            yield Problem(what, typed(word.text), "leave it away, or set a key that is there")


def _sweep_problems(words: Iterable[_Word], multirun: bool) -> Iterator[Problem]:
    for word in words:
        if word.sweep and not multirun:
            key, _, values = word.text.partition("=")
            fix = f"one run for each: add -m; one list: {key}=[{values}]; one text: '{key}=\"{values}\"'"
            yield Problem(f"'{key}' has several values", typed(word.text), fix)


# --- commands without Hydra ------------------------------------------------------------------------------------------


def parse_overrides(args: Iterable[str], config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a checkpoint with ``key=value`` words applied; values are YAML.

    Args:
        args: the words, without those that the program reads itself.
        config: a plain nested dict; it is not changed.

    Returns:
        A changed deep copy.

    Raises:
        UserError: for a word that is not ``key=value``, an unknown key, or a value of another type than it has.
    """
    result = copy.deepcopy(dict(config))
    view = OmegaConf.create(result)
    changes, problems = [], []
    for text in args:
        try:
            changes.append(_change(text))
        except (ValueError, yaml.YAMLError) as error:
            problems.append(Problem(f"'{text}' cannot be read: {str(error).splitlines()[0]}", typed(text), _USAGE))
    raise_problems([*problems, *filter(None, (key_problem(change, view, ()) for change in changes))])
    for change in changes:
        _set(result, key_parts(change.key), change.value)
    return result


def _change(text: str) -> Change:
    key, equals, value = text.partition("=")
    if not equals or not key_parts(key) or not key.isprintable() or " " in key:
        raise ValueError("it is not key=value")
    return Change(text, key, yaml.load(value, Loader=get_yaml_loader()))


def _set(config: Any, parts: list[str], value: Any) -> None:
    for part in parts[:-1]:
        config = config[int(part) if isinstance(config, list) else part]
    config[int(parts[-1]) if isinstance(config, list) else parts[-1]] = value
