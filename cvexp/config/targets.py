"""Which classes and functions a configuration may name in ``_target_``.

A configuration may come from somebody else's checkpoint, and Hydra calls whatever a ``_target_`` names. Three gates:
the dotted text must lie in a listed package (else nothing is imported), it must name something that a module holds
itself (no walking through a module's imports or into a class), and what is found must be a class or function defined
in a listed package and not in `_REFUSED`.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cvexp.config.messages import Problem, listing, suggest
from cvexp.errors import UserError

# `cvexp` itself is not listed: its commands (train, evaluate ...) run things.
_CVEXP = ("data", "backbones", "necks", "models", "comparators", "losses", "ops", "tasks", "metrics", "callbacks")
_NAMED = (
    *(f"cvexp.{name}" for name in (*_CVEXP, "recipes", "loggers", "schedules")),
    *(
        f"lightning.pytorch.{name}"
        for name in ("Trainer", "loggers", "callbacks", "profilers", "strategies", "plugins")
    ),
    *("torch.optim", "torch.nn", "torchmetrics", "torchvision.ops", "torchvision.models", "timm"),
)
# Where those names are defined: Lightning re-exports some of its plugins and its Trainer.
_DEFINED = (*_NAMED, "lightning.pytorch.trainer", "lightning.fabric.plugins")
# Inside the listed packages, but they read pickles, fetch from any address, upload, or start processes.
_REFUSED = (
    *("timm.data", "timm.utils"),
    *(f"timm.models.{name}" for name in ("_hub", "_helpers", "_builder", "_pretrained")),
    *(f"torchmetrics.{part}{kind}" for part in ("", "functional.") for kind in ("text", "audio", "multimodal")),
    *("torchmetrics.utilities", "lightning.pytorch.strategies.launchers"),
    *("cvexp.data.download", "cvexp.data.convert"),
)
MAGIC = ("_target_", "_partial_", "_args_", "_convert_", "_recursive_")  # Hydra's own keys of such a node
_TIMM_SOURCES = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


def allowed(target: object, extra: Iterable[str] = ()) -> Callable[..., Any]:
    """The class or function that ``target`` names, imported only after its text has passed.

    Args:
        target: a dotted path.
        extra: further packages; they must come from the command line, never from a checkpoint. Python's own library
            is never among them.

    Raises:
        UserError: if the path is not in a listed package, does not exist, or names anything but a class or function
            that is defined at the top level of a module of a listed package.
    """
    extra = tuple(name for name in extra if name and name.split(".")[0] not in sys.stdlib_module_names)
    if not isinstance(target, str) or not re.fullmatch(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+", target):
        raise _refusal(target, "it is not the dotted path of a public class or function")
    if not _inside(target, (*_NAMED, *extra)) or _inside(target, _REFUSED):
        raise _refusal(target, f"only these packages may be named: {listing({*_NAMED, *extra}, 40)}", target)
    found = _find(target)
    if not (inspect.isclass(found) or inspect.isfunction(found)):
        raise _refusal(target, f"it is a {type(found).__name__}, not a class or function")
    home = str(found.__module__)
    if not _inside(home, (*_DEFINED, *extra)) or _inside(home, _REFUSED):
        raise _refusal(target, f"it is defined in '{home}', which is not a listed package", home)
    return found


def dangerous_argument(target: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
    """The argument by which an allowed target would load or fetch a file that the configuration names, or empty."""
    if not _inside(str(target.__module__), ("timm",)):
        return ""
    words = [*arguments.get("_args_", ()), *arguments.values()]
    named = next((key for key in _TIMM_SOURCES if arguments.get(key) is not None), "")
    return named or next((word for word in words if isinstance(word, str) and ":" in word), "")


def _inside(name: str, packages: Iterable[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _find(target: str) -> object:
    module_name, _, name = target.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not _inside(module_name, (error.name or "",)):
            raise _refusal(target, f"'{module_name}' needs the missing package '{error.name}'") from error
        raise _refusal(target, f"there is no module '{module_name}'") from error
    except ImportError as error:
        raise _refusal(target, f"'{module_name}' cannot be imported: {error}") from error
    if name not in vars(module) and not hasattr(module, name):
        own = [word for word, value in vars(module).items() if callable(value) and not word.startswith("_")]
        raise _refusal(target, f"'{module_name}' has no '{name}'; {suggest(name, own)}".rstrip("; "))
    return getattr(module, name)


def _refusal(target: object, reason: str, package: str = "") -> Exception:
    own = package.split(".")[0]
    known = own in sys.stdlib_module_names or own in {"hydra", "omegaconf", *(name.split(".")[0] for name in _NAMED)}
    fix = "a component is chosen as a group, as in model=yolo; of a checkpoint: do not use it, it is not as cvexp wrote it"
    if own and not known:
        fix = f"if '{own}' is your own package: allow_targets=[{own}] on the command line"
    return UserError(str(Problem(f"_target_ {target!r} is refused: {reason}", fix=fix)))
