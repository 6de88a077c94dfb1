"""Group choices (``model/nms=soft_gaussian``) for a configuration that is composed already: that of a checkpoint."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException

from cvexp.config.messages import Problem, listing, raise_problems, suggest, typed
from cvexp.config.sources import conf_dir, register_resolvers
from cvexp.errors import UserError

_GROUP = re.compile(r"[A-Za-z]\w*(/[A-Za-z]\w*)+")
_OPTION = re.compile(r"[A-Za-z0-9]\w*")


def apply_groups(
    words: Iterable[str], config: Mapping[str, Any], conf: Path | None = None
) -> tuple[list[str], dict[str, Any]]:
    """Replaces the node of every word ``group/slot=option`` by the content of that option's file.

    A group of one word (``data=voc``) is no such choice: `cvexp.config.parse_overrides` refuses it. ``=null`` empties the slot.

    Args:
        words: as typed; those of keys are left alone, and are applied afterwards.
        config: plain nested dicts without interpolations; not changed.
        conf: the folder of the YAML files; the packaged one by default.

    Returns:
        The other words, and a changed deep copy.

    Raises:
        UserError: there is no such group or option, the configuration has nothing that it could be a part of, or the file
            cannot be used by itself.
    """
    result: dict[str, Any] = copy.deepcopy(dict(config))
    others = []
    for word in words:
        key, equals, option = word.partition("=")
        if not equals or not _GROUP.fullmatch(key):
            others.append(word)
            continue
        raise_problems(_problems(word, conf or conf_dir(), result))
        _put(result, key.split("/"), None if option == "null" else _content(word, conf or conf_dir()), word)
    return others, result


def _problems(word: str, conf: Path, config: Mapping[str, Any]) -> Iterator[Problem]:
    """What keeps a word from being applied."""
    group, _, option = word.partition("=")
    if not (conf / group).is_dir():
        known = _groups(conf, group.split("/")[0])
        fix = f"{suggest(group, known)} groups: {listing(known) or 'none'}".strip()
        yield Problem(f"there is no group '{group}'", typed(word), fix)
    elif option != "null" and option not in (known := _options(conf / group)):
        fix = f"{suggest(option, known)} choices: {listing(known)}".strip()
        yield Problem(f"the group '{group}' has no option '{option}'", typed(word), fix)
    elif not isinstance(_parent(config, group.split("/")), dict):
        yield Problem(f"the checkpoint's configuration has no part for '{group}'", typed(word), "leave it away")


def _groups(conf: Path, first: str) -> list[str]:
    """The groups below a first one: ``model/nms``, ``model/loss`` ..."""
    return [path.relative_to(conf).as_posix() for path in sorted((conf / first).rglob("*")) if path.is_dir()]


def _options(folder: Path) -> list[str]:
    return [path.stem for path in sorted(folder.glob("*.yaml")) if _OPTION.fullmatch(path.stem)]


def _parent(config: Any, parts: list[str]) -> Any:
    """The node that a group's node is in, or None."""
    for part in parts[:-1]:
        config = config.get(part) if isinstance(config, dict) else None
    return config


def _content(word: str, conf: Path) -> dict[str, Any]:
    """An option's file, with those of its own group that it begins with; interpolations as they are."""
    group, _, option = word.partition("=")
    try:
        text = (conf / group / f"{option}.yaml").read_text(encoding="utf-8")
        content = yaml.load(text, Loader=get_yaml_loader()) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{group}/{option}.yaml cannot be read: {error}. Fix: correct that file") from None
    own = content.pop("defaults", ["_self_"])
    if not all(isinstance(name, str) and (name == "_self_" or name in _options(conf / group)) for name in own):
        what = f"{group}={option} chooses parts of its own, which only training composes"
        raise UserError(str(Problem(what, typed(word), f"choose among {listing(_options(conf / group))}")))
    whole: Any = OmegaConf.create({})
    for name in own if "_self_" in own else [*own, "_self_"]:
        whole = OmegaConf.merge(whole, content if name == "_self_" else _content(f"{group}={name}", conf))
    return dict(OmegaConf.to_container(whole))  # type: ignore[arg-type]


def _put(config: dict[str, Any], parts: list[str], content: dict[str, Any] | None, word: str) -> None:
    """Sets a node, what it refers to read from the rest of the configuration."""
    parent = _parent(config, parts)
    parent[parts[-1]] = content
    if content is None:
        return
    register_resolvers()
    try:
        node = OmegaConf.select(OmegaConf.create(config), ".".join(parts))
        parent[parts[-1]] = OmegaConf.to_container(node, resolve=True)
    except (OmegaConfBaseException, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            str(Problem(f"'{word}' does not fit: {reason}", typed(word), "choose another option"))
        ) from None
