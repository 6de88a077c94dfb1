"""What a run is computed by: versions, machine, device, and the few names of the environment that matter."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

PACKAGES = (
    *("torch", "torchvision", "lightning", "hydra-core", "omegaconf", "torchmetrics", "timm", "numpy"),
    "hotcoco",
)
ENVIRONMENT = ("WANDB_MODE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
"""Recorded where set, beside every name that begins with ``CVEXP_`` and does not sound like a secret."""
SECRETS = ("KEY", "TOKEN", "SECRET", "PASS", "AUTH", "CREDENTIAL")


def versions() -> dict[str, str]:
    """Of the packages that decide what a run computes; of those that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables of `ENVIRONMENT` that are set; of a path only its end, for it says where, not what."""

    def told(name: str) -> bool:
        mine = name.startswith("CVEXP_") and not any(word in name.upper() for word in SECRETS)
        return mine or name in ENVIRONMENT

    shown = {name: value for name, value in sorted(variables.items()) if told(name)}
    return {name: f".../{Path(value).name}" if Path(value).is_absolute() else value for name, value in shown.items()}


def platform_state() -> dict[str, Any]:
    """System, processor, its cores (those that the process may use), torch's threads, memory in GiB."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": platform.platform(),
        "cpu": _cpu(),
        "cores": usable,
        "threads": torch.get_num_threads(),
        "memory_gib": _memory(),
    }


def _cpu() -> str:
    try:
        rows = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        rows = []
    named = (row.partition(":")[2].strip() for row in rows if row.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return None


def device_state(trainer: DictConfig) -> dict[str, Any]:
    """What the trainer's configuration asks for and finds: accelerator, its name and memory, processes, nodes."""
    kind = str(trainer.accelerator)
    if kind in ("auto", "gpu"):
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    here = torch.cuda.device_count() if kind == "cuda" else 1
    nodes = int(trainer.num_nodes)
    count = int(os.environ.get("WORLD_SIZE", 1)) if "TORCHELASTIC_RUN_ID" in os.environ else None
    state: dict[str, Any] = {
        "accelerator": kind,
        "processes": count or nodes * device_count(trainer.devices, here),
        "nodes": nodes,
    }
    if kind == "cuda" and here:
        about = torch.cuda.get_device_properties(_first(trainer.devices))
        state |= {"name": about.name, "memory_gib": round(about.total_memory / 2**30, 1)}
        state |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return state


def device_count(devices: Any, here: int) -> int:
    """How many of the devices that are ``here`` the trainer's ``devices`` means; what it cannot mean, Lightning tells.

    Example: ``auto`` and -1 are all, ``2`` is 2, ``[0, 3]`` and ``"0,3"`` are 2.
    """
    if OmegaConf.is_list(devices) or isinstance(devices, list | tuple):
        return len(devices)
    words = [word for word in str(devices).split(",") if word.strip()]
    if len(words) > 1 or str(devices).strip().endswith(","):
        return len(words)
    return int(words[0]) if words and words[0].strip().isdecimal() else here


def _first(devices: Any) -> int:
    """The number of the first device that is used."""
    if OmegaConf.is_list(devices) or isinstance(devices, list | tuple):
        chosen = [int(device) for device in devices]
    else:
        chosen = (
            [int(word) for word in str(devices).split(",") if word.strip().isdecimal()] if "," in str(devices) else []
        )
    return next((number for number in chosen if number < torch.cuda.device_count()), 0)
