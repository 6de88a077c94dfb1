"""The composed configuration as a whole, checked against the constructors it names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from inspect import Parameter
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from cvexp.config.annotations import OPEN, describe, matches, signature
from cvexp.config.keys import all_keys
from cvexp.config.messages import Problem, close, listing, raise_problems, shown, suggest
from cvexp.config.origins import Origins, key_parts
from cvexp.config.sources import register_resolvers
from cvexp.config.targets import MAGIC, allowed, dangerous_argument
from cvexp.errors import UserError

Where = Callable[[str], str]
_REMOVED: Mapping[str, Set[str]] = {"model": {"size"}}  # it chooses among numbers (`pick`); no class takes it
_OPTIONAL = ("data", "metric", "scheduler", "instead")
_SEVERAL = ("callbacks", "logger")  # parts by name, each of which may be null
_CONVERT = ("none", "partial", "object", "all")


def check_config(
    cfg: DictConfig | Mapping[str, Any],
    origin: Where | None = None,
    supplied: Mapping[str, Set[str]] | None = None,
    extra: Iterable[str] = (),
    removed: Mapping[str, Set[str]] = _REMOVED,
) -> None:
    """Checks a composed configuration; imports what it names, builds nothing and touches no data or device.

    Args:
        cfg: the configuration, as Hydra gives it or as a checkpoint holds it.
        origin: tells where a key was set; by default that of the running Hydra program.
        supplied: the arguments that the program passes itself, by node: ``{"task": {"model"}}``.
        removed: the keys that the program takes out of a node before it builds it; others may interpolate them.
        extra: packages whose targets are allowed besides the listed ones; never taken from a checkpoint.

    Raises:
        UserError: one for all problems: a value left open (``???``), an interpolation that cannot be resolved, a target
            that is not allowed or not there, an unknown or missing argument, a value of the wrong type.
    """
    register_resolvers()
    where = origin or Origins.running()
    supplied = supplied or {}
    reader = _Reader(cfg, where, supplied)
    plain = reader.read()
    problems = reader.open + reader.problems + list(_part_problems(plain, where, supplied))
    for path, whole, deferred in _targets(plain):
        node = {name: value for name, value in whole.items() if name not in removed.get(path, ())}
        given = supplied.get(path, frozenset())
        problems += _node_problems(path, node, where, given, deferred, tuple(extra))
    raise_problems(problems)


def check_targets(cfg: DictConfig | Mapping[str, Any], origin: Where | None = None, extra: Iterable[str] = ()) -> None:
    """Checks only what a configuration would run: for a checkpoint's, of which a program builds a part by itself.

    Args:
        cfg: the configuration.
        origin: tells where a key was set.
        extra: packages whose targets are allowed besides the listed ones; never taken from a checkpoint.

    Raises:
        UserError: for targets that are not allowed or not there, and for interpolations that cannot be resolved (they
            could hide one). Values left open and arguments are not judged.
    """
    register_resolvers()
    where = origin or Origins.running()
    reader = _Reader(cfg, where, {})
    plain = reader.read()
    found = [_resolve(path, node, where, tuple(extra)) for path, node, _ in _targets(plain)]
    raise_problems([*reader.problems, *(problem for problem in found if isinstance(problem, Problem))])


def _part_problems(plain: Mapping[str, Any], where: Where, supplied: Mapping[str, Set[str]]) -> Iterator[Problem]:
    """The parts that the program builds are nodes with a ``_target_``; some may be null or left out."""
    parts = {name: plain[name] for name in plain if name in supplied or name in _OPTIONAL}
    for group in _SEVERAL:
        value = plain.get(group) or {}
        parts |= {f"{group}.{name}": v for name, v in value.items()} if isinstance(value, dict) else {group: value}
    for name, value in parts.items() if supplied else ():
        may_lack = name in _OPTIONAL or name.startswith(_SEVERAL)
        if value is OPEN or (not value and may_lack) or (isinstance(value, dict) and value.get("_target_")):
            continue
        what = f"'{name}' = {shown(value)} names nothing to be built (it has no _target_)"
        yield Problem(what, where(name), f"choose it as a group: {name.split('.')[0]}=NAME")


class _Reader:
    """Turns a config into plain dicts and lists, every interpolation resolved, and notes what cannot be."""

    def __init__(self, cfg: DictConfig | Mapping[str, Any], where: Where, supplied: Mapping[str, Set[str]]) -> None:
        self.open: list[Problem] = []  # values left open
        self.problems: list[Problem] = []  # values that cannot be resolved
        self._config = cfg if isinstance(cfg, DictConfig) else OmegaConf.create(dict(cfg))
        self._where, self._supplied = where, supplied
        self._reasons: set[str] = set()

    def read(self) -> dict[str, Any]:
        """The plain config without Hydra's own node; `OPEN` stands for what is unknown."""
        names = [str(name) for name in self._config if name != "hydra"]
        return {name: self._child(self._config, name, name) for name in names}

    def _child(self, node: Any, key: Any, path: str) -> Any:
        if OmegaConf.is_missing(node, key):
            self._open(path)
            return OPEN
        try:
            return self._plain(node[key], path)
        except InterpolationToMissingValueError:  # the open value itself is told
            return OPEN
        except OmegaConfBaseException as error:
            self._unresolved(path, str(OmegaConf.to_container(node)[key]), error)  # type: ignore[index]
            return OPEN
        except RecursionError:
            self.problems.append(Problem(f"'{path}' refers to itself", self._where(path), f"set it: {path}=VALUE"))
            return OPEN

    def _plain(self, value: Any, path: str) -> Any:
        if isinstance(value, dict | list | tuple):  # made by a resolver: it may hold interpolations in its turn
            value = OmegaConf.create(list(value) if isinstance(value, tuple) else value)
            value._set_parent(self._config)
        if isinstance(value, DictConfig):
            return {str(name): self._child(value, name, f"{path}.{name!s}") for name in value}
        if isinstance(value, ListConfig):
            return [self._child(value, i, f"{path}[{i}]") for i in range(len(value))]
        return value

    def _open(self, path: str) -> None:
        parent, _, name = path.rpartition(".")
        if name not in self._supplied.get(parent, ()):
            self.open.append(Problem(f"'{path}' has no value", self._where(path), f"set it: {path}=VALUE"))

    def _unresolved(self, path: str, text: str, error: OmegaConfBaseException) -> None:
        reason = re.sub(r"^\w+ raised while resolving interpolation: ", "", str(error).splitlines()[0])
        reason = reason.removeprefix(f"{path}: ")
        if reason in self._reasons:  # a wrong size is told once, not for every number that is picked by it
            return
        self._reasons.add(reason)
        missing = re.search(r"Interpolation key '([^']+)' not found", reason)
        fix = suggest(missing[1], all_keys(self._config)) if missing else ""
        places = [self._where(path), *self._referred(path, text)]
        self.problems.append(
            Problem(
                f"'{path}' = {shown(text)} cannot be resolved: {reason}",
                "; ".join(place for place in places if place),
                fix or "give the key it refers to a value, or set it directly: " + f"{path}=VALUE",
            )
        )

    def _referred(self, path: str, text: str) -> Iterator[str]:
        """The plain keys that an interpolation mentions, with value and origin."""
        for dots, name in re.findall(r"\$\{(\.*)([\w.\[\]]+)\}", text):
            parts = key_parts(path)
            key = ".".join([*parts[: len(parts) - len(dots)], name] if dots else [name])
            try:
                value = OmegaConf.select(self._config, key)
            except OmegaConfBaseException:
                continue
            if value is not None and not OmegaConf.is_config(value):
                yield f"{key} = {shown(value)} ({self._where(key) or 'unknown origin'})"


def _targets(value: Any, path: str = "", deferred: bool = False) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Every node with a ``_target_``, wherever it is, and whether an outer node builds it later by itself."""
    if isinstance(value, dict):
        if "_target_" in value:
            yield path, value, deferred
        deferred = deferred or value.get("_recursive_") is False
        for name, child in value.items():
            yield from _targets(child, f"{path}.{name}".lstrip("."), deferred)
    elif isinstance(value, list):
        for i, child in enumerate(value):
            yield from _targets(child, f"{path}[{i}]", deferred)


def _resolve(
    path: str, node: dict[str, Any], where: Where, extra: tuple[str, ...]
) -> Callable[..., Any] | Problem | None:
    """What a node's ``_target_`` names, or why it must not be called; None if the name is open."""
    if node["_target_"] is OPEN:
        return None  # told where it was read
    key = f"{path}._target_".lstrip(".")
    try:
        target = allowed(node["_target_"], extra)
    except UserError as error:
        what, _, fix = str(error).partition("\n   fix: ")
        return Problem(f"'{path}': {what}", where(key), fix)
    if danger := dangerous_argument(target, node):
        fix = "weights are given to cvexp, not to timm"
        return Problem(f"'{path}': {danger!r} would load a file of the configuration's choice", where(key), fix)
    return target


def _node_problems(
    path: str, node: dict[str, Any], where: Where, supplied: Set[str], deferred: bool, extra: tuple[str, ...]
) -> list[Problem]:
    target = _resolve(path, node, where, extra)
    if target is None or isinstance(target, Problem):
        return [target] if target else []
    parameters, hints = signature(target)
    later = supplied | (set(parameters) if node.get("_partial_") is True or deferred else set())
    return [
        *_magic_problems(path, node, where),
        *_unknown_arguments(path, node, where, parameters),
        *_missing_arguments(path, node, where, parameters, later),
        *_wrong_values(path, node, where, parameters, hints),
    ]


def _magic_problems(path: str, node: dict[str, Any], where: Where) -> Iterator[Problem]:
    """Hydra's own keys: ``_args_`` is a list, ``_partial_`` and ``_recursive_`` are bool, ``_convert_`` is a word."""
    checks: dict[str, tuple[bool, str]] = {
        "_args_": (isinstance(node.get("_args_", []), list), "a list"),
        "_partial_": (isinstance(node.get("_partial_", False), bool), "true or false"),
        "_recursive_": (isinstance(node.get("_recursive_", True), bool), "true or false"),
        "_convert_": (node.get("_convert_", "none") in _CONVERT, ", ".join(_CONVERT)),
    }
    for name, (right, expected) in checks.items():
        if not right:
            what = f"'{path}.{name}' = {shown(node[name])}: expects {expected}"
            yield Problem(what, where(f"{path}.{name}"), "leave it away")


def _arguments(node: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in node.items() if name not in MAGIC}


def _unknown_arguments(
    path: str, node: dict[str, Any], where: Where, parameters: Mapping[str, Parameter]
) -> Iterator[Problem]:
    named = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name, value in _arguments(node).items():
        if name in named or (takes_any and not close(name, named, cutoff=0.85)):
            continue
        what = f"'{path}.{name}' = {shown(value)}: {node['_target_']} has no argument '{name}'"
        fix = suggest(name, named) or f"its arguments: {listing(named) or 'none'}"
        yield Problem(what, where(f"{path}.{name}"), fix)


def _missing_arguments(
    path: str, node: dict[str, Any], where: Where, parameters: Mapping[str, Parameter], later: Set[str]
) -> Iterator[Problem]:
    positional = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    args = node.get("_args_")
    given = {*_arguments(node), *later, *positional[: len(args) if isinstance(args, list) else 0]}
    for name, parameter in parameters.items():
        if name in given or parameter.default is not parameter.empty:
            continue
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            what = f"'{path}': {node['_target_']} needs the argument '{name}'"
            yield Problem(what, where(f"{path}._target_"), f"set it: +{path}.{name}=VALUE")


def _wrong_values(
    path: str, node: dict[str, Any], where: Where, parameters: Mapping[str, Parameter], hints: Mapping[str, Any]
) -> Iterator[Problem]:
    for name, value in _arguments(node).items():
        hint = hints.get(name, Any)
        implicit = value is None and name in parameters and parameters[name].default is None
        if not implicit and not matches(value, hint):
            what = f"'{path}.{name}' = {shown(value)}: {node['_target_']} expects {describe(hint)}"
            yield Problem(what, where(f"{path}.{name}"), _value_fix(f"{path}.{name}", value, parameters.get(name)))


def _value_fix(key: str, value: Any, parameter: Parameter | None) -> str:
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d*\.?\d+(e[-+]?\d+)?", value, re.IGNORECASE):
        return f"remove the quotes: {value}"
    default = parameter.default if parameter else None
    if isinstance(default, bool | int | float | str):
        return f"for example {key}={str(default).lower() if isinstance(default, bool) else default}"
    return (
        f"a component is chosen as a group: {key.replace('.', '/')}=NAME"
        if isinstance(value, str)
        else "correct the type"
    )
