"""Writes, reads and compares manifests."""

from __future__ import annotations

import json
import os
import platform
import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from omegaconf import DictConfig, OmegaConf

import cvexp
from cvexp.manifest.hashes import config_hash, data_state
from cvexp.manifest.machine import device_state, environment, platform_state, versions
from cvexp.manifest.source_code import DIFF, git_state
from cvexp.results import write_text
from cvexp.types import UserError

if TYPE_CHECKING:
    from cvexp.resume import Change

NAME, ASIDE = "manifest.json", "manifest.broken.json"
FORMAT = 1


@rank_zero_only
def write_manifest(
    cfg: DictConfig,
    data: Any,
    *,
    overrides: Sequence[str],
    argv: Sequence[str],
    resumed: str | Path | None = None,
    changes: Iterable[Change] = (),
) -> None:
    """Writes ``manifest.json`` (and ``git.diff`` beside it, where the source code differs from its commit) whole or not at all.

    A resumed run keeps what it began with; an entry is added that says what differs from then on. Where its manifest is missing
    or broken, a new one begins without ``started``, and the broken one is kept as ``manifest.broken.json``.

    Args:
        cfg: the run's configuration; written into ``cfg.paths.output``.
        data: its data module, set up.
        overrides: the words of this job; see `typed_overrides`.
        argv: of the process, as ``sys.argv``.
        resumed: checkpoint that the run goes on from; None for a fresh one.
        changes: of the configuration since the run was last started.
    """
    folder = Path(cfg.paths.output)
    now, diff = _state(cfg, data, overrides, argv)
    if resumed is None:
        _write(folder, now, diff)
        return
    start = _started(folder)
    entry = {"time": now["started"], **position(resumed)}
    entry |= {name: now[name] for name in ("command", "overrides")}
    entry |= {"processes": now["device"]["processes"]}
    if start is None:
        entry["changes"] = {}
        _write(folder, now | {"started": None, "resumed": [entry]}, diff)
        return
    entry["changes"] = differing(start, now) | {f"config/{c.key}": [c.old, c.new] for c in changes}
    _write_json(folder, start | {"resumed": [*start["resumed"], entry]})


def _write(folder: Path, manifest: Mapping[str, Any], diff: str | None) -> None:
    if diff is None:
        (folder / DIFF).unlink(missing_ok=True)  # an older run's
    else:
        write_text(folder / DIFF, diff)
    _write_json(folder, manifest)


def _write_json(folder: Path, manifest: Mapping[str, Any]) -> None:
    write_text(folder / NAME, json.dumps(manifest, indent=2, default=str) + "\n")


def position(checkpoint: str | Path) -> dict[str, Any]:
    """``step`` and ``epoch`` of a checkpoint, None where it does not tell; its weights are not read."""
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        where = content.get("position", {"step": content.get("global_step"), "epoch": content.get("epoch")})
        return {"step": where["step"], "epoch": where["epoch"]}
    except Exception:  # whatever a broken file provokes
        return {"step": None, "epoch": None}  # it is Lightning that will tell why


def check_data(data: Any, folder: str | Path) -> None:
    """Whether a run that goes on finds the data that it began with.

    Raises:
        UserError: a split is another one now.
    """
    try:
        before = read_manifest(folder)["data"]
    except UserError:  # missing or broken: `write_manifest` tells it
        return
    for split, now in data_state(data).items():
        then = before.get(split, now)
        if then["hash"] != now["hash"]:
            counts = ", ".join(f"{then.get(name)} -> {now[name]} {name}" for name in now if name != "hash")
            raise UserError(
                f"resume={folder}: the data of '{split}' is not what the run began with ({counts}; {NAME} has a hash of names,"
                " sizes and annotations). Fix: give it the same data, or begin anew with init_from=<its checkpoint>"
            )


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a run's folder.

    Raises:
        UserError: there is none, or it is not one that this version of cvexp can read.
    """
    path = Path(folder).expanduser() / NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}). Fix: give a run's folder; runs of older versions have no manifest"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}). Fix: restore the file, or remove it and resume the run") from None
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise UserError(f"{path}: not a manifest (no format). Fix: restore the file, or remove it and resume the run")
    if content["format"] > FORMAT:
        raise UserError(
            f"{path}: format {content['format']}, known is up to {FORMAT}. Fix: read it with the newer cvexp that wrote it"
        )
    lacking = sorted(_PARTS.keys() - content.keys()) or [n for n, k in _PARTS.items() if not isinstance(content[n], k)]
    if lacking:
        raise UserError(
            f"{path}: {lacking[0]} is missing or broken. Fix: restore the file, or remove it and resume the run"
        )
    return content


_PARTS: dict[str, type] = {
    **dict.fromkeys(("versions", "platform", "device", "data", "environment"), dict),
    **dict.fromkeys(("overrides", "resumed"), list),
    **dict.fromkeys(("cvexp", "python", "command", "config", "precision"), str),
}
"""What every manifest has, and as what."""


def typed_overrides() -> list[str]:
    """The words of this job as typed (of a sweep: its own, not the sweep's); empty where Hydra did not start the run."""
    if not HydraConfig.initialized():
        return []
    words: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return words  # list[str]; an interpolation in a word would be resolved, and name this run's folder


def choices() -> dict[str, str]:
    """What this job chose from each group of the configuration, as ``{"model": "yolo", "model/backbone": "timm"}``.

    Empty where Hydra did not start the run, for it alone remembers them.
    """
    if not HydraConfig.initialized():
        return {}
    found = HydraConfig.get().runtime.choices
    return {str(group): str(name) for group, name in found.items() if name and not str(group).startswith("hydra")}


def command_line(argv: Sequence[str]) -> str:
    """A line that can be pasted into a shell: ``python -m cvexp.train model=yolo 'data.classes=[cat, dog]'``."""
    script = Path(argv[0]) if argv else Path()
    if script.suffix != ".py":
        return shlex.join(argv)
    if script.absolute().parent == Path(cvexp.__file__).absolute().parent:
        return shlex.join(["python", "-m", f"cvexp.{script.stem}", *argv[1:]])
    return shlex.join(["python", *argv])


def differing(start: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What is not as it was at the start: name to ``[then, now]``.

    Example: ``{"versions/torch": ["2.14.0", "2.15.0"]}``. Compared are versions, machine and device (not the number of
    processes, which an entry states anyway), precision, seed, source code, configuration and data.
    """
    then, current = dict(_flat("", _compared(start))), dict(_flat("", _compared(now)))
    names = [name for name in {**then, **current} if then.get(name) != current.get(name)]
    return {name: [then.get(name), current.get(name)] for name in names}


def _compared(manifest: Mapping[str, Any]) -> dict[str, Any]:
    names = ("cvexp", "python", "versions", "platform", "device", "precision", "seed", "config", "git", "data")
    kept = {name: manifest[name] for name in names if name in manifest}
    kept["device"] = {name: value for name, value in kept["device"].items() if name != "processes"}
    kept["platform"] = {name: value for name, value in kept["platform"].items() if name != "threads"}
    return kept


def _flat(prefix: str, value: Any) -> Iterable[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        yield prefix, value
        return
    for name, inner in value.items():
        yield from _flat(f"{prefix}/{name}" if prefix else str(name), inner)


def _started(folder: Path) -> dict[str, Any] | None:
    """The manifest that a resumed run began with, None without a usable one; a broken one is set aside."""
    try:
        return read_manifest(folder)
    except UserError as error:
        if (folder / NAME).exists():
            (folder / NAME).replace(folder / ASIDE)
            rank_zero_info(f"{error}\nThe run goes on with a new manifest; the broken one is kept as {ASIDE}.")
        return None


def _state(
    cfg: DictConfig, data: Any, overrides: Sequence[str], argv: Sequence[str]
) -> tuple[dict[str, Any], str | None]:
    """A manifest of now, and the text of ``git.diff`` if there shall be one."""
    found = git_state(Path(cvexp.__file__).parent)
    git, diff = found or (None, None)
    state = {
        "format": FORMAT,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line(argv),
        "overrides": list(overrides),
        "choices": choices(),
        "seed": cfg.seed,
        "precision": str(cfg.trainer.precision or "32-true"),
        "config": config_hash(cfg),
        "cvexp": cvexp.__version__,
        "python": platform.python_version(),
        "versions": versions(),
        "platform": platform_state(),
        "device": device_state(cfg.trainer),
        "environment": environment(os.environ),
        "git": git,
        "data": data_state(data),
        "resumed": [],
    }
    return {name: value for name, value in state.items() if value or name not in ("git", "choices")}, diff
