"""Every option of every group composes and passes the checks; what a file chooses can still be chosen otherwise."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.utils import get_class
from kinds import models_of
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader

from cvexp.build import SUPPLIED
from cvexp.config import Composer, check_config, check_overrides, conf_dir
from cvexp.errors import UserError

CONF = conf_dir()
Compose = Callable[..., DictConfig]


def files(group: str = "") -> list[Path]:
    """The YAML files of a group and of those below it, without bases (``_base.yaml``)."""
    return sorted(path for path in (CONF / group).rglob("*.yaml") if not path.name.startswith("_"))


def option(path: Path) -> tuple[str, str]:
    """``("model/backbone", "extraction")``."""
    group, _, name = path.relative_to(CONF).with_suffix("").as_posix().rpartition("/")
    return group, name


def models() -> list[str]:
    return [path.stem for path in files("model") if option(path)[0] == "model"]


def read(path: Path) -> dict[str, Any]:
    """A file's content with OmegaConf's idea of numbers (``1e-3`` is one)."""
    return yaml.load(path.read_text(encoding="utf-8"), Loader=get_yaml_loader()) or {}


@cache
def slots(*words: str) -> dict[str, str | None]:
    """The choice of every slot that a configuration has: ``{"model/backbone": "extraction", ...}``."""
    return dict(Composer().defaults(list(words)).overrides.known_choices)


def words_for(group: str, name: str) -> list[str]:
    """The words that choose an option, with a model that has a slot for it."""
    for model in [None, *models()]:
        chosen = [f"model={model}"] if model else []
        found = [slot for slot in slots(*chosen) if slot.partition("@")[0] == group and fits(slot, name)]
        if found:
            return [*chosen, f"{found[0]}={name}"]
    return [f"+{group}={name}"]  # a group that other files use, not one of the defaults list


def fits(slot: str, name: str) -> bool:
    """A loss of distances has a slot of its own kind, the losses of boxes and classes are mounted by name."""
    if not slot.startswith("model/loss"):
        return True
    content = read(CONF / "model" / "loss" / f"{name}.yaml")
    while "_target_" not in content:  # it begins with another one
        content = read(CONF / "model" / "loss" / f"{content['defaults'][0]}.yaml")
    return (get_class(content["_target_"]).space == "distance") == ("@" not in slot)


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a nested dict with its dotted key."""
    for name, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


NO_RAY = [CONF / "launcher" / "ray.yaml"] if find_spec("ray") is None else []  # too large for the extra `test`
OPTIONS = [
    p for p in files() if p not in (CONF / "train.yaml", *NO_RAY) and p.parent != CONF / "ablation"
]  # of evaluate


def name_of(path: Path) -> str:
    return "=".join(option(path))


# --- every option ----------------------------------------------------------------------------------------------------


def test_the_primary_configuration_is_accepted(compose: Compose) -> None:
    check_overrides([])
    check_overrides([f"{slot}={name}" for slot, name in slots().items() if name and not slot.startswith("hydra")])
    check_config(compose(), supplied=SUPPLIED)


def test_the_primary_file_is_the_defaults_list_and_nothing_else() -> None:
    assert set(read(CONF / "train.yaml")) == {"defaults"}


@pytest.mark.parametrize("path", OPTIONS, ids=name_of)
def test_option_is_accepted(path: Path, compose: Compose) -> None:
    group, name = option(path)
    words = words_for(group, name)
    if "/" in group or group == "experiment":  # slots inside a model, and files that choose for others
        check_overrides(words)
    cfg = compose(*words, return_hydra_config=True)
    slot = words[-1].removeprefix("+").partition("=")[0]
    assert cfg.hydra.runtime.choices[slot] == name
    check_config(cfg, supplied=SUPPLIED)


def test_every_group_has_a_slot() -> None:
    """A group that no defaults list mentions would be ignored in silence by whoever expects it to be chosen."""
    used = {slot.partition("@")[0] for model in models() for slot in slots(f"model={model}")}
    mentioned = " ".join(str(read(path).get("defaults", "")) for path in CONF.rglob("*.yaml"))
    groups = {option(path)[0] for path in OPTIONS}
    assert [group for group in groups - used if f"/{group}@" not in mentioned and f"/{group}'" not in mentioned] == []


OF_EACH_KIND = ("yolo", "mask_rcnn", "facenet")  # boxes, masks, faces


@pytest.mark.parametrize(
    "model", [m if m in OF_EACH_KIND else pytest.param(m, marks=pytest.mark.slow) for m in models()]
)
def test_model_is_accepted_with_every_data_set(model: str, compose: Compose) -> None:
    for data in files("data"):
        check_config(compose(f"model={model}", f"data={data.stem}"), supplied=SUPPLIED)


@pytest.mark.parametrize("model", models())
def test_model_has_a_tiny_size(model: str, compose: Compose) -> None:
    base, tiny = (compose(f"model={model}", f"model.size={size}") for size in ("base", "tiny"))
    check_config(tiny, supplied=SUPPLIED)
    read_out = [OmegaConf.to_container(cfg.model, resolve=True) for cfg in (base, tiny)]
    changed = {key for (key, a), (_, b) in zip(*map(leaves, read_out), strict=True) if a != b}
    assert changed > {"size"}, "some number depends on the size"


def test_the_tiny_overrides_are_accepted(compose: Compose, tiny: list[str]) -> None:
    check_overrides(tiny)
    check_config(compose(*tiny), supplied=SUPPLIED)


@pytest.mark.parametrize("path", [*OPTIONS, *CONF.rglob("_*.yaml")], ids=name_of)
def test_yaml_holds_no_interpolated_class_and_no_machine(path: Path) -> None:
    """The dotted path is the registry, so it can be searched for; folders come from ``paths``."""
    for key, value in leaves(read(path)):
        if key.endswith("_target_"):
            assert re.fullmatch(r"[a-z]\w*(\.\w+)+", value), key
        assert not (isinstance(value, str) and value.startswith(("/", "~"))), key


# --- the trainer -----------------------------------------------------------------------------------------------------


def test_trainer_lists_every_argument() -> None:
    from lightning.pytorch import Trainer

    arguments = set(inspect.signature(Trainer.__init__).parameters) - {"self", "callbacks", "logger"}
    listed = set(read(CONF / "trainer" / "default.yaml")) - {"_target_"}
    assert listed == arguments


# --- experiments -----------------------------------------------------------------------------------------------------


def header(path: Path) -> str:
    """The comments that a file opens with."""
    rows = path.read_text(encoding="utf-8").splitlines()
    first = next(i for i, row in enumerate([*rows, "end"]) if not row.startswith("#"))
    return "\n".join(row.removeprefix("#").strip() for row in rows[:first])


@pytest.mark.parametrize("path", files("experiment"), ids=name_of)
@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("package", r"^@package _global_$"),  # else its keys would land below `experiment`
        ("paper", r"arXiv[: ]\d{4}\.\d{4,5}|\b(19|20)\d\d\b"),
        ("command", r"python -m cvexp\.train .*experiment=\w+"),
        ("minutes", r"\d+ (minutes?|min|hours?|h)\b"),
        ("device", r"\b(CPU|GPU|cores?|H\d00|A\d00)\b"),
        ("score", r"\b(AP\d*|accuracy)\b.*\d\.\d+"),
    ],
)
def test_experiment_opens_with(what: str, pattern: str, path: Path) -> None:
    assert re.search(pattern, header(path), flags=re.MULTILINE), f"the header lacks the {what}"


@pytest.mark.parametrize("path", files("experiment"), ids=name_of)
def test_command_of_an_experiment_is_accepted(path: Path) -> None:
    commands = re.findall(r"python -m cvexp\.train (.*)", header(path))
    assert commands
    for command in commands:
        words = shlex.split(command.rstrip("`"))
        assert f"experiment={path.stem}" in words
        check_overrides(words)


# --- the command line wins -------------------------------------------------------------------------------------------


def chosen_by(path: Path) -> Iterator[tuple[str, str | None]]:
    """The slots that a file's defaults list fills, with their options."""
    for entry in read(path).get("defaults", []):
        if isinstance(entry, dict):
            (key, name), *_ = entry.items()
            slot = key.removeprefix("override ").strip()
            if slot.startswith("/"):
                yield slot.removeprefix("/"), name
            else:  # relative to the file's own group, as its package is
                group = option(path)[0]
                yield f"{group}/{slot.replace('@', f'@{group}.')}", name


CHOSEN = [(path, *row) for path in OPTIONS for row in chosen_by(path)]


@pytest.mark.parametrize(("path", "slot", "name"), CHOSEN, ids=[f"{name_of(p)}-{s}={n}" for p, s, n in CHOSEN])
def test_command_line_wins_over_a_chosen_option(path: Path, slot: str, name: str | None) -> None:
    """What a model, a data set or an experiment chooses for others is a default, not a decision."""
    own = words_for(*option(path))
    group, _, package = slot.partition("@")
    slot = group if package == f"_global_.{group}" else slot
    assert slots(*own)[slot] == name
    others = {p.stem for p in files(group) if option(p)[0] == group} - {name}
    if group == "model":  # one of the same kind: an experiment's parts are for that
        others &= next(set(known) for known in map(models_of, ("detection", "embedding")) if name in known)
        parts = {part for part, _ in chosen_by(path) if part.startswith("model/")} | {"model/backbone"}
        others = {
            other for other in others if parts <= set(slots(f"model={other}"))
        }  # with the parts that it chooses too
    for other in sorted(others)[:1]:
        assert slots(*own, f"{slot}={other}")[slot] == other


@pytest.mark.parametrize("path", files("experiment"), ids=name_of)
def test_command_line_wins_over_an_experiments_numbers(path: Path, compose: Compose) -> None:
    own = f"experiment={path.stem}"
    content = {key: value for key, value in read(path).items() if key != "defaults"}
    numbers = {k: v for k, v in leaves(content) if isinstance(v, int | float) and not isinstance(v, bool)}
    assert content, "an experiment sets something"
    before = compose(own)
    after = compose(own, *(f"{key}={value + 1}" for key, value in numbers.items()))
    assert {key: OmegaConf.select(before, key) for key in numbers} == numbers
    assert {key: OmegaConf.select(after, key) for key in numbers} == {key: value + 1 for key, value in numbers.items()}


def test_command_line_wins_over_a_models_numbers(compose: Compose) -> None:
    for model in models():
        assert compose(f"model={model}", "model.image_size=224").model.image_size == 224


def test_command_line_wins_over_a_data_sets_budget(compose: Compose) -> None:
    """`shapes` comes with a budget of minutes; whoever wants another says so."""
    assert compose("data=shapes").budget.minutes == 4
    assert compose("data=shapes", "budget.minutes=1").budget.minutes == 1
    assert compose("data=shapes", "budget.minutes=null").budget.minutes is None
    assert compose("data=voc").budget.minutes is None, "the budget belongs to shapes alone"


# --- one source ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", files("data"), ids=name_of)
def test_image_size_comes_from_the_model(path: Path, compose: Compose) -> None:
    words = [f"data={path.stem}", "model.image_size=160"]
    assert compose(*words).data.image_size == 160


def test_image_size_and_number_of_classes_have_one_source() -> None:
    """The number stands in the model; elsewhere it is interpolated. The number of classes comes from the data alone."""
    set_at: dict[str, list[str]] = {"image_size": [], "num_classes": []}
    for path in CONF.rglob("*.yaml"):
        for key, value in leaves(read(path)):
            name = key.rpartition(".")[2]
            if name in set_at and not (isinstance(value, str) and value.startswith("${")):
                set_at[name].append(f"{option(path)[0]}:{key}")
    assert set(set_at["image_size"]) <= {"model:image_size", "experiment:model.image_size"}
    assert set_at["num_classes"] == []


def test_a_fraction_where_the_receiver_wants_a_whole_number(compose: Compose) -> None:
    """`seed` has no constructor of its own; the data set that receives it has, and refuses."""
    with pytest.raises(UserError, match=r"'data\.seed' = 0\.5"):
        check_config(compose("seed=0.5"), origin=str, supplied=SUPPLIED)
