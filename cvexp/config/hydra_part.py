"""Hydra's own part of a configuration. Hydra builds callbacks, launcher, sweeper and logging by it before cvexp has a say.

What is typed is the user's own wish; what a chosen file brings in (an experiment of somebody else) may name only what these
parts are made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cvexp.config.messages import Problem, shown
from cvexp.config.origins import Origins
from cvexp.config.sources import Composer
from cvexp.errors import UserError

_BUILT = ("hydra._internal.core_plugins.", "hydra.experimental.callbacks.", "hydra_plugins.")
_LOGGING = (
    *(f"logging.{name}" for name in ("StreamHandler", "FileHandler", "NullHandler", "Formatter")),
    *("logging.handlers.RotatingFileHandler", "rich.logging.RichHandler", "colorlog.ColoredFormatter"),
)
_STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
_LOADERS = ("LD_", "DYLD_", "PYTHON", "PATH")  # environment variables by which a process runs other code


def hydra_problems(config: DictConfig, composer: Composer, choices: Sequence[str]) -> Iterator[Problem]:
    """What files must not say in ``hydra`` and ``allow_targets``; ``config`` is composed by ``composer`` of ``choices`` alone."""
    origins = Origins(choices, composer)
    node = config.get("hydra")
    plain = OmegaConf.to_container(node, resolve=False) if isinstance(node, DictConfig) else {}
    for key, value in _leaves(plain, "hydra"):
        if reason := _reason(key, value):
            fix = "take it out of the file; what you type yourself is not judged"
            yield Problem(f"'{key}' = {shown(value)} is refused: {reason}", _where(origins, key), fix)
    allowed = _plain(config.get("allow_targets"))
    if allowed and allowed != _plain(composer.compose([]).get("allow_targets")):  # the program's own files may say so
        what = f"'allow_targets' = {shown(allowed)} stands in a file, which would allow itself to run them"
        fix = "take it out of the file; type allow_targets=[...] if these packages are yours"
        yield Problem(what, _where(origins, "allow_targets"), fix)


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    rows = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if rows is None:
        yield key, value
        return
    for name, child in rows:
        yield from _leaves(child, f"{key}.{name}")


def _reason(key: str, value: Any) -> str:
    """Why a value may not stand in a file; empty if it may."""
    name = key.rpartition(".")[2]
    text = str(value)
    if name == "_target_" and not text.startswith(_BUILT):
        return "Hydra would run it"
    if key.startswith(("hydra.job_logging.", "hydra.hydra_logging.")):
        if name in ("class", "()", "factory") and text not in _LOGGING:
            return "logging would run it"
        if text.startswith(("ext://", "cfg://")) and text not in _STREAMS:
            return "logging would import it"
    if key.startswith("hydra.job.env_set.") and name.startswith(_LOADERS):
        return "other programs would run other code"
    return ""


def _where(origins: Origins, key: str) -> str:
    try:
        return origins(key)
    except (UserError, HydraException, OmegaConfBaseException):
        return ""
