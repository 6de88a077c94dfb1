"""One key set to one value: does the composed configuration have it, will somebody read it, is the type right?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cvexp.config.annotations import describe, matches, signature
from cvexp.config.messages import Problem, close, either, listing, shown, typed
from cvexp.config.origins import key_parts
from cvexp.config.targets import MAGIC, allowed
from cvexp.errors import UserError


@dataclass(frozen=True)
class Change:
    """A key set to a value."""

    text: str
    key: str
    value: Any
    add: bool = False
    force: bool = False
    delete: bool = False

    @classmethod
    def of(cls, text: str, override: Override) -> Change:
        force = override.type is OverrideType.FORCE_ADD
        add = force or override.type is OverrideType.ADD
        return cls(text, override.key_or_group, override.value(), add, force, override.is_delete())


def key_problem(change: Change, config: DictConfig, groups: Sequence[str]) -> Problem | None:
    """What is wrong with one change of ``config``; ``groups`` are those that could be chosen instead."""
    parts = key_parts(change.key)
    found = _descend(config, parts)
    if len(found) <= len(parts):
        if change.add and (parts[0] == "hydra" or _may_add(found, parts, change.value, config)):
            return None
        return _unknown(change, parts, found, config, groups)
    if change.delete or parts[0] == "hydra":
        return None
    if change.add and not change.force and found[-1] is not None and not isinstance(change.value, list | dict):
        plain = change.text.lstrip("+")
        return Problem(f"'{change.key}' is there already", typed(change.text), f"leave the + away: {plain}")
    return _value_problem(change, parts, found, config, groups)


def _descend(config: DictConfig, parts: Sequence[str]) -> list[Any]:
    """The values on the way along ``parts``, the root first, as far as they exist."""
    found: list[Any] = [config]
    for part in parts:
        node = found[-1]
        if isinstance(node, DictConfig) and part in node.keys():  # noqa: SIM118 - an open value is no member of `node`
            found.append(_value(node, part))
        elif isinstance(node, ListConfig) and part.isdigit() and int(part) < len(node):
            found.append(_value(node, int(part)))
        else:
            break
    return found


def _value(node: Any, key: Any) -> Any:
    """A value, None where it is open (``???``) or its interpolation cannot be resolved yet."""
    try:
        return node[key]
    except OmegaConfBaseException:
        return None


def _may_add(found: list[Any], parts: list[str], value: Any, config: DictConfig) -> bool:
    """Whether somebody will read a new key: the constructor of its node, or whoever takes a dict that it belongs to."""
    parent, name = found[-1], parts[len(found) - 1]
    if parent is None and len(found) > 1:
        return True
    if _target(parent):
        names = _accepted(parent, config)
        return names is None or name in names or name in MAGIC
    if len(found) < 2 or not isinstance(parent, DictConfig):
        return False
    inside = any(_target(node) for node in found)
    return inside or not parent or parts[-1] == "_target_" or (isinstance(value, dict) and "_target_" in value)


def _target(node: Any) -> str:
    return str(node.get("_target_") or "") if isinstance(node, DictConfig) and "_target_" in node else ""


def _accepted(node: DictConfig, config: DictConfig) -> dict[str, Any] | None:
    """The argument names of a node's constructor with their hints; None if it takes any, or is refused or broken."""
    try:
        parameters, hints = signature(allowed(_target(node), config.get("allow_targets") or ()))
    except (UserError, OmegaConfBaseException):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return None
    return {name: hints.get(name, Any) for name in parameters}


def _unknown(change: Change, parts: list[str], found: list[Any], config: DictConfig, groups: Sequence[str]) -> Problem:
    parent, name, before = found[-1], parts[len(found) - 1], parts[: len(found) - 1]
    arguments = (_accepted(parent, config) if _target(parent) else None) or {}
    if name in arguments and not change.add:
        what = f"'{change.key}' is not set in any file, but it is an argument of {_target(parent)}"
        return Problem(what, typed(change.text), f"add it: +{change.text.lstrip('~')}")
    siblings = [*map(str, parent), *([] if before else groups)] if isinstance(parent, DictConfig) else []
    near = [".".join([*before, word]) for word in close(name, {*siblings, *arguments})]
    fix = either(_alike(change.key, near, config)) or f"known {'.'.join(before) or 'keys'}: {listing(siblings, 20)}"
    return Problem(f"unknown key '{change.key}'", typed(change.text), fix)


def _alike(key: str, siblings: Sequence[str], config: DictConfig) -> list[str]:
    """Up to three keys that may be meant: of the same last name elsewhere, misspelled here, misspelled elsewhere."""
    keys = [other for other in all_keys(config) if not key.startswith(f"{other}.")]
    same = [other for other in keys if other.split(".")[-1] == key.split(".")[-1]]
    return list(dict.fromkeys([*same, *siblings, *close(key, keys, cutoff=0.8)]))[:3]


def all_keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Every key of a config, dotted, without Hydra's own and without those inside lists."""
    if not isinstance(node, DictConfig) or node._is_none() or node._is_missing() or node._is_interpolation():
        return
    for name, child in node.items_ex(resolve=False):
        if (key := f"{prefix}{name!s}") != "hydra":
            yield key
            yield from all_keys(child, f"{key}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _value_problem(
    change: Change, parts: list[str], found: list[Any], config: DictConfig, groups: Sequence[str]
) -> Problem | None:
    """A value of another type than the default, unless the constructor that receives it takes that type too."""
    default, value, parent = found[-1], change.value, found[-2]
    if isinstance(value, str) and (_target(default) or (default is None and "/".join(parts) in groups)):
        return _component_problem(change, parts, groups)
    if default is None or _same_type(value, default) or (isinstance(value, str) and ("${" in value or value == "???")):
        return None
    hint = ((_accepted(parent, config) if _target(parent) else None) or {}).get(parts[-1], Any)
    if hint is not Any:
        if matches(value, hint):
            return None
        expected = describe(hint)
    elif (
        value is None
        or (isinstance(default, str) and isinstance(value, bool | int | float))
        or (_is_number(value) and _is_number(default))
    ):
        return None
    else:
        expected = f"{_type_name(default)} (as its default {shown(_plain(default))})"
    return Problem(
        f"'{change.key}' expects {expected}, not {shown(value)}", typed(change.text), _value_fix(change, default)
    )


def _component_problem(change: Change, parts: list[str], groups: Sequence[str]) -> Problem:
    group = "/".join(parts)
    fix = f"choose it as a group: {group}={change.value}" if group in groups else "set its keys one by one"
    return Problem(f"'{change.key}' is a component, not a text", typed(change.text), fix)


def _same_type(value: Any, default: Any) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    pairs = ((int, int), (float, int | float), (str, str), (DictConfig, dict), (ListConfig, list))
    return any(isinstance(default, of) and isinstance(value, takes) for of, takes in pairs)


def _type_name(default: Any) -> str:
    names = {DictConfig: "a dict {key: value}", ListConfig: "a list [a, b]", int: "an integer", float: "a number"}
    return {**names, bool: "true or false", str: "a text"}.get(type(default), type(default).__name__)


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _value_fix(change: Change, default: Any) -> str:
    if isinstance(default, ListConfig):
        return f"{change.key}=[{change.value}]"
    if isinstance(default, DictConfig):
        return f"set one of its keys: {listing(f'{change.key}.{name!s}' for name in default)}"
    return f"for example {change.key}={str(default).lower() if isinstance(default, bool) else default}"
