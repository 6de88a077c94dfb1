"""Where a configuration comes from: the folders, the resolvers, Hydra's loader, the words typed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.defaults_list import DefaultsList
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.object_type import ObjectType
from hydra.core.utils import setup_globals
from hydra.errors import MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException

from cvexp.config.messages import Problem, listing, suggest
from cvexp.errors import UserError

_PACKAGE = Path(__file__).resolve().parents[1]
_BROKEN = (ValueError, OSError, RecursionError)  # what reading raises besides errors of its own: not text, too deep
_MAX_NODES = 100_000  # of a YAML file, with what its references stand for
_EXTRAS = {  # Hydra's launchers that others have written: cvexp's name, and what installs it
    "joblib": ("joblib", "joblib"),
    "submitit_slurm": ("slurm", "slurm"),
    "submitit_local": ("slurm_local", "slurm"),
    "ray": ("ray", "ray"),
}


def conf_dir() -> Path:
    """The folder of the YAML files, absolute: the package's (a wheel), else the repository's (an editable install)."""
    packaged = _PACKAGE / "conf"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "conf"


def register_resolvers() -> None:
    """Registers ``${pick:${.size},{tiny:96,base:448}}``, ``${cvexp_data:}`` and ``${cvexp_cache:}``; calling it again changes
    nothing."""
    OmegaConf.register_new_resolver("pick", _pick, replace=True)
    OmegaConf.register_new_resolver("cvexp_data", _data_dir, replace=True)
    OmegaConf.register_new_resolver("cvexp_cache", cache_dir, replace=True)


def _pick(name: object, choices: Mapping[str, Any], *, _node_: Any) -> Any:
    """The value of the chosen name. An error names the key, the value and the choices."""
    if name in choices:
        return choices[str(name)]
    names = [str(choice) for choice in choices]
    hint = suggest(str(name), names)
    raise ValueError(
        f"{_node_._get_full_key(None)}: {name!r} is not one of {', '.join(names)}" + (hint and f"; {hint}")
    )


def _data_dir() -> str:
    """``$CVEXP_DATA``, else ``../shared/data`` of the current folder or of the repository, else ``data``."""
    if folder := os.environ.get("CVEXP_DATA"):
        return folder
    beside = [Path("../shared/data"), _PACKAGE.parents[1] / "shared" / "data"]
    return str(next((folder for folder in beside if folder.is_dir()), Path("data")))


def cache_dir() -> str:
    """``$CVEXP_CACHE``, else ``runs/cache``."""
    return os.environ.get("CVEXP_CACHE") or str(Path("runs") / "cache")


@dataclass(frozen=True)
class CommandLine:
    """What was typed after the program's name.

    Attributes:
        words: the overrides.
        config_name: the primary config, without ``.yaml``.
        conf: its folder.
        extra_dirs: further folders (``--config-dir``).
        multirun: ``-m`` was given.
        passive: nothing is to be run or composed from overrides (``--help`` alone, ``--version`` ...).
    """

    words: tuple[str, ...]
    config_name: str
    conf: Path
    extra_dirs: tuple[Path, ...]
    multirun: bool
    passive: bool

    @classmethod
    def read(
        cls, argv: Sequence[str], config_name: str, conf: Path | None, extra_dirs: Iterable[Path | str]
    ) -> CommandLine:
        """Splits Hydra's flags from the overrides; flags that Hydra does not know are left for it to refuse."""
        flags, unknown = get_args_parser().parse_known_args([word for word in argv if word != "--version"])
        words = tuple(flags.overrides) + tuple(word for word in unknown if not word.startswith("-"))
        folders = [Path(folder) for folder in extra_dirs]
        if flags.config_dir:
            folders.append(Path(flags.config_dir).absolute())
        asks = (
            flags.hydra_help or flags.shell_completion or "--version" in argv or flags.info or flags.experimental_rerun
        )
        return cls(
            words=words,
            config_name=(flags.config_name or config_name).removesuffix(".yaml"),
            conf=_PACKAGE / flags.config_path if flags.config_path else conf or conf_dir(),
            extra_dirs=tuple(folders),
            multirun=flags.multirun,
            passive=bool(asks) or (flags.help and not words),
        )


class Composer:
    """Hydra's own loader over ``conf`` and further folders, with every error told as a `UserError`.

    Args:
        config_name: the primary config.
        conf: its folder; the packaged one by default.
        extra_dirs: folders searched after it, as ``--config-dir`` does.

    Raises:
        UserError: if a folder does not exist, or a file in it would fill the memory.
    """

    def __init__(
        self, config_name: str = "train", conf: Path | str | None = None, extra_dirs: Iterable[Path | str] = ()
    ) -> None:
        self.config_name = config_name
        self.conf = Path(conf or conf_dir()).absolute()
        self.folders = [self.conf, *(Path(folder).absolute() for folder in extra_dirs)]
        for folder in self.folders:
            if not folder.is_dir():
                raise UserError(str(Problem(f"there is no configuration folder {folder}", fix="check --config-dir")))
        _prepare_hydra()
        search = create_config_search_path(str(self.conf))
        for folder in self.folders[1:]:
            search.prepend("command-line", f"file://{folder}", anchor=SearchPathQuery(provider="schema"))
        self._loader = ConfigLoaderImpl(search)
        for path in (
            path for folder in self.folders if folder != conf_dir() for path in sorted(folder.rglob("*.yaml"))
        ):
            if path.is_file() and is_endless(path):
                what = "refers to itself by '*name' until it is longer than any configuration"
                raise UserError(str(Problem(what, self.name(path), "write out what the names stand for")))

    def repository(self, overrides: Sequence[str] = ()) -> CachingConfigRepository:
        """The YAML files; ``hydra.searchpath`` among the overrides is honoured.

        Raises:
            UserError: if the primary config cannot be read.
        """
        words = [word for word in overrides if word.startswith("hydra.searchpath=")]
        with self._explained():
            return self._loader._parse_overrides_and_create_caching_repo(self.config_name, words)[1]

    def groups(self, parent: str = "") -> list[str]:
        """Every group below ``parent`` (``model``, ``model/backbone`` ...), without Hydra's own."""
        found = []
        for name in self._loader.repository.get_group_options(parent, ObjectType.GROUP):
            path = f"{parent}/{name}".lstrip("/")
            if path.split("/")[0] != "hydra":
                found += [path, *self.groups(path)]
        return found

    def defaults(self, overrides: Sequence[str] = (), skip_missing: bool = False) -> DefaultsList:
        """The files that are merged, in order, and the choice of every slot.

        Raises:
            UserError: if a file is missing or a defaults list cannot be used.
        """
        mode = RunMode.MULTIRUN if skip_missing else RunMode.RUN
        with self._explained():
            return self._loader.compute_defaults_list(self.config_name, list(overrides), mode)

    def compose(self, overrides: Sequence[str] = ()) -> DictConfig:
        """The composed config, Hydra's own node included.

        Raises:
            UserError: naming the file, if it cannot be composed.
        """
        with self._explained():
            return self._loader.load_configuration(
                self.config_name, list(overrides), RunMode.RUN, validate_sweep_overrides=False
            )

    def file(self, config_path: str) -> Path | None:
        """The YAML file of ``model/yolo``, None if it is not on disk (Hydra's own)."""
        files = (folder / f"{config_path.removesuffix('.yaml')}.yaml" for folder in self.folders)
        return next((path for path in files if path.is_file()), None)

    def name(self, path: Path) -> str:
        """A file as messages show it: ``conf/model/yolo.yaml``."""
        for folder in self.folders:
            if path.is_relative_to(folder):
                return (folder.name / path.relative_to(folder)).as_posix()
        return path.name

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # Hydra also asserts, and stumbles over files that it did not expect
            raise UserError(str(self._explain(error))) from error

    def _explain(self, error: Exception) -> Problem:
        text = _text(error)
        if isinstance(error, MissingConfigException):
            return self._missing(error, text)
        if broken := self._broken_file(error) or self._broken_file(error.__cause__):
            return broken
        path = next((path for name in re.findall(r"[Ii]n '?([\w/.-]+)'?:", text) if (path := self.file(name))), None)
        where = f"{self.name(path)}{self._line(path, text)}" if path else ""
        return Problem(
            f"the configuration cannot be composed: {text}", where, _fix(text) or "correct the file or the word"
        )

    def _missing(self, error: MissingConfigException, text: str) -> Problem:
        group, _, option = str(error.missing_cfg_file or "").rpartition("/")
        parent = re.match(r"In '([^']+)'", text)
        options = error.options or ()
        where = self._mention(option, self.file(parent[1]) if parent else None)
        if group == "hydra/launcher" and option in _EXTRAS:
            launcher, extra = _EXTRAS[option]
            return Problem(f"launcher={launcher} needs the extra: pip install 'cvexp[{extra}]'", where)
        choices = f"choices: {listing(options)}" if options else ""
        what = f"there is no '{option}' in the group '{group}'" if group else text
        return Problem(what, where, f"{suggest(option, options)} {choices}".strip() or "name a file that is there")

    def _broken_file(self, error: BaseException | None) -> Problem | None:
        """The YAML file that cannot even be parsed, found by reading again: Hydra's error does not always name it."""
        if not isinstance(error, yaml.YAMLError | GrammarParseError | OSError | RecursionError | ValueError):
            return None
        for path in (path for folder in self.folders for path in sorted(folder.rglob("*.yaml"))):
            try:
                OmegaConf.load(path)
            except (OmegaConfBaseException, yaml.YAMLError, *_BROKEN) as again:
                if type(again) is type(error) and (_reason(again) == _reason(error) or type(error) is RecursionError):
                    mark = getattr(again, "problem_mark", None)
                    line = f":{mark.line + 1}" if mark else self._line(path, f"'{_interpolation(again)}'")
                    return Problem(f"not valid YAML: {_reason(again)}", f"{self.name(path)}{line}", "correct the file")
        return None

    def _mention(self, option: str, parent: Path | None) -> str:
        """The file and line that choose an option: the file Hydra names, or one that overrides its choice."""
        value = re.compile(rf"""[:\[,-]\s*["']?{re.escape(option)}["']?\s*($|[],#])""")
        others = [path for folder in self.folders for path in sorted(folder.rglob("*.yaml"))]
        for path in [parent, *others] if parent else others:
            for number, row in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
                if value.search(row):
                    return f"{self.name(path)}:{number}"
        return self.name(parent) if parent else ""

    def _line(self, path: Path, text: str) -> str:
        """``:12`` for the first line that holds a word quoted in an error text; empty if none does."""
        rows = path.read_text(encoding="utf-8", errors="replace").splitlines()
        for quoted in re.findall(r"'([^']+)'", text):
            word = re.split(r"[/.@]", quoted)[-1]
            for number, row in enumerate(rows, start=1):
                if re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", row.split(" #")[0]):
                    return f":{number}"
        return ""


def is_endless(path: Path) -> bool:
    """Whether the references of a YAML file (``*name``) multiply to more than `_MAX_NODES`."""
    try:
        text = path.read_text(encoding="utf-8")
        if not re.search(r"(^|[\s,\[{:-])\*\w", text):
            return False
        return _size(yaml.compose(text, Loader=yaml.SafeLoader), {}) > _MAX_NODES
    except (yaml.YAMLError, *_BROKEN):  # told when it is composed
        return False


def _size(node: yaml.Node | None, known: dict[int, float]) -> float:
    """The number of nodes, each as often as it is referred to; infinite for one that holds itself."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = float("inf")
        parts = [part for row in node.value for part in (row if isinstance(row, tuple) else [row])]
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def _prepare_hydra() -> None:
    """The process-wide state that `hydra.main` would set before composing."""
    if not isinstance(version.getbase(), version.Version):  # unset: Hydra would fall back to 1.1 with a warning
        version.setbase("1.3")
    setup_globals()
    register_resolvers()


def _text(error: BaseException) -> str:
    """The text of an error and of what caused it, without Hydra's list of search paths."""
    texts = [str(error), str(error.__cause__ or "")]
    text = "\n".join(dict.fromkeys(text.strip() for text in texts if text.strip())) or type(error).__name__
    kept = text.split("\nConfig search path:")[0].split("\nTo append to your")[0]
    return re.sub(r"\n\s*(full_key:.*|object_type=.*|See https?:.*)", "", kept).strip()


def _reason(error: BaseException) -> str:
    return getattr(error, "problem", None) or _text(error)


def _interpolation(error: Exception) -> str:
    found = re.search(r"\$\{.*", str(error))
    return found[0] if found else ""


def _fix(text: str) -> str:
    found = re.search(r"[Dd]id you mean to override ([^?]+)\?", text)
    return f"did you mean {found[1]}?" if found else ""
