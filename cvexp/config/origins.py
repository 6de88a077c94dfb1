"""Who set a key of the composed configuration: the command line, or a YAML file and its line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from cvexp.config.messages import typed
from cvexp.config.sources import Composer


def origin(
    key: str,
    overrides: Sequence[str] = (),
    config_name: str = "train",
    conf: Path | str | None = None,
    extra_dirs: Iterable[Path | str] = (),
) -> str:
    """Where ``trainer.max_epochs`` or ``data.sizes[0]`` was set.

    Returns:
        ``from the command line: trainer.max_epochs=3``, or ``conf/trainer/default.yaml:4`` (of the file that wins), or
        the same for the nearest enclosing key; empty if nobody set it.

    Raises:
        UserError: if the configuration cannot be composed.
    """
    return Origins(overrides, Composer(config_name, conf, extra_dirs))(key)


class Origins:
    """`origin` for many keys: the defaults list is computed once, at the first question.

    Args:
        overrides: the words typed, group choices included.
        composer: the loader; without one every key that was not typed has no origin.
    """

    def __init__(self, overrides: Sequence[str] = (), composer: Composer | None = None) -> None:
        self._overrides = list(overrides)
        self._composer = composer
        self._files: list[tuple[list[str], Path]] | None = None

    @classmethod
    def running(cls) -> Origins:
        """The origins of the configuration that ``hydra.main`` is running; empty ones outside of it."""
        if not HydraConfig.initialized():
            return cls()
        hydra = HydraConfig.get()
        folders = [source.path for source in hydra.runtime.config_sources if source.schema == "file"]
        main = [source.path for source in hydra.runtime.config_sources if source.provider == "main"]
        composer = Composer(str(hydra.job.config_name), main[0], [f for f in folders if f != main[0]]) if main else None
        return cls([*hydra.overrides.hydra, *hydra.overrides.task], composer)

    def __call__(self, key: str) -> str:
        """Where ``key`` was set; empty if unknown.

        Raises:
            UserError: if the configuration cannot be composed.
        """
        parts = key_parts(key)
        for length in range(len(parts), 0, -1):
            if found := self._typed(parts[:length], exact=length < len(parts)) or self._written(parts[:length]):
                return found
        return ""

    def _typed(self, parts: list[str], exact: bool) -> str:
        for word in reversed(self._overrides):
            name = key_parts(word.lstrip("+~").split("=", 1)[0])
            if name == parts or (not exact and name == parts[: len(name)] and _sets(word, parts[len(name) :])):
                return typed(word)
        return ""

    def _written(self, parts: list[str]) -> str:
        for package, path in reversed(self._files_in_order()):
            if parts[: len(package)] == package and len(parts) > len(package):
                line = line_of(path, parts[len(package) :])
                if line and self._composer:
                    return f"{self._composer.name(path)}:{line}"
        return ""

    def _files_in_order(self) -> list[tuple[list[str], Path]]:
        """The package and the path of every merged file; a later one wins."""
        if self._files is None:
            merged = self._composer.defaults(self._overrides).defaults if self._composer else []
            paths = [(d.package or "", self._composer and self._composer.file(d.config_path or "")) for d in merged]
            self._files = [(key_parts(package), path) for package, path in paths if path]
        return self._files


def key_parts(key: str) -> list[str]:
    """``data.sizes[0]`` -> ``["data", "sizes", "0"]``."""
    return re.findall(r"[^.\[\]]+", key)


def line_of(path: Path, parts: Sequence[str]) -> int:
    """The line (from 1) of ``path`` where a nested key is written, 0 if it is not."""
    return _line(_tree(path, path.stat().st_mtime_ns), list(parts))


@lru_cache(maxsize=256)
def _tree(path: Path, _changed: int) -> yaml.Node | None:
    with path.open(encoding="utf-8") as file:
        return yaml.compose(file, Loader=yaml.SafeLoader)


def _line(node: yaml.Node | None, parts: list[str]) -> int:
    for name, start, child in _children(node):
        if name == "<<" and (line := _line(child, parts)):
            return line
        if name == parts[0]:
            return start if len(parts) == 1 else _line(child, parts[1:])
    return 0


def _children(node: yaml.Node | None) -> list[tuple[str, int, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        return [(str(key.value), key.start_mark.line + 1, value) for key, value in node.value]
    if isinstance(node, yaml.SequenceNode):
        return [(str(i), value.start_mark.line + 1, value) for i, value in enumerate(node.value)]
    return []


def _sets(word: str, rest: list[str]) -> bool:
    """Whether ``word``, whose key encloses the one asked for, gives a value that holds the rest of the key."""
    try:
        value = OverridesParser.create().parse_override(word).value()
    except HydraException:
        return False
    for part in rest:
        if isinstance(value, list) and part.isdigit():
            value = dict(enumerate(value)).get(int(part))
        elif isinstance(value, dict):
            value = value.get(part)
        else:
            return False
    return value is not None
