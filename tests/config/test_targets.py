"""What `_target_` may name."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from cases import told

from cvexp.config import (
    allowed,
    check_targets,
)
from cvexp.types import UserError

# --- the allow-list --------------------------------------------------------------------------------------------------

HOSTILE = [
    "os.system",  # outside the list
    "builtins.eval",
    "subprocess.Popen",
    "posix.system",
    "hydra.utils.get_method",  # Hydra's own ways to any object
    "hydra.utils.get_class",
    "hydra.utils.call",
    "hydra._internal.utils._locate",
    "torch.hub.load",  # fetches and runs code
    "torch.load",  # pickle
    "torch.utils.cpp_extension.load",
    "torchvision.datasets.VOCDetection",
    "lightning.pytorch.cli.LightningCLI",
    "cvexp.train.main",  # a command, not a component
    "cvexp.config.report_errors",
    "cvexp.config.os.system",  # a module's imports
    "cvexp.config.Path",
    "cvexp.models.os.system",
    "torch.nn.modules.module.warnings.warn",
    "torch.nn.modules.module.functools.partial",
    "torch.nn.init.torch.load",
    "torch.nn.modules.torch.hub.load",
    "torch.optim.optimizer.torch.load",
    "torch.nn.functional.importlib.import_module",
    "torch.nn.modules.module.OrderedDict",  # a class of another package
    "torchvision.models.resnet.partial",
    "torch.nn.Module.load_state_dict",  # inside a class
    "lightning.pytorch.loggers.WandbLogger.download_artifact",
    "lightning.pytorch.Trainer.fit",
    "torch.nn.modules",  # a module
    "torch.nn.Module.__init__.__globals__",  # not public
    "torch.nn.__loader__.load_module",
    "torch.nn._reduction.get_enum",
    "torchvision.models._api.get_model",
    "torchvision.models.resnet.load_state_dict_from_url",
    "timm.models.load_checkpoint",  # inside the listed packages, but unpickles, fetches or uploads
    "timm.models.push_to_hf_hub",
    "timm.models.load_model_config_from_hf",
    "timm.models.build_model_with_cfg",
    "timm.data.create_dataset",
    "timm.utils.CheckpointSaver",
    "torchmetrics.text.BERTScore",
    "torchmetrics.multimodal.CLIPScore",
    "torchmetrics.functional.multimodal.clip_score",
    "lightning.pytorch.strategies.launchers.multiprocessing.Popen",
    "lightning.pytorch.loggers.csv_logs.get_filesystem",
    "torch.nnx.Module",  # a prefix of letters, not of packages
    "timmy.create_model",
    "cvexp.modelsx.A",
    "torch.nn",  # no name in it
    "Net",
    "",
    "torch.nn.Linear; import os",
    "torch.nn.Linear\n",
    " torch.nn.Linear",
    "torch..nn.Linear",
    "../evil.Linear",
]


@pytest.mark.parametrize("target", HOSTILE)
def test_hostile_target_is_refused(target: str) -> None:
    with pytest.raises(UserError, match="is refused"):
        allowed(target)
    assert "is refused" in told({"a": [{"b": {"_target_": target, "_partial_": True}}]}, origin=lambda key: key)


@pytest.mark.parametrize("target", [None, 3, ["os.system"], {"a": 1}, os.system])
def test_target_that_is_no_text_is_refused(target: object) -> None:
    with pytest.raises(UserError, match="is refused"):
        allowed(target)


def test_refused_package_is_not_imported(toybox: Path) -> None:
    (toybox / "evil.py").write_text("raise SystemExit('imported')")
    with pytest.raises(UserError, match=r"(?s)'evil.Net' is refused.*allow_targets=\[evil\]"):
        allowed("evil.Net")
    assert "evil" not in sys.modules


def test_hostile_target_made_by_an_interpolation_is_refused() -> None:
    hidden = {
        "a": "${oc.create:{_target_: os.system, _args_: [ls]}}",  # a node that a resolver makes
        "b": {"_target_": "${c}"},  # a name that an interpolation gives
        "c": "os.popen",
        "d": "${oc.decode:'{_target_: os.remove}'}",  # a plain dict that a resolver makes
        "e": "${pick:a,{a:[{_target_:os.kill}]}}",  # inside a list that a resolver makes
    }
    message = told(hidden, origin=lambda key: key)
    for name in ("os.system", "os.popen", "os.remove", "os.kill"):
        assert f"'{name}' is refused" in message


def test_checkpoint_is_judged_by_its_targets_alone() -> None:
    part = {"model": {"_target_": "torch.nn.Linear"}, "paths": {"output": "???"}, "x": "${paths.output}"}
    check_targets(part)  # missing arguments and open values are the program's business
    for bad in ({"_target_": "os.system"}, {"_target_": "timm.create_model", "checkpoint_path": "x"}, "${nowhere}"):
        with pytest.raises(UserError, match=r"'more\[0\]'"):
            check_targets({**part, "more": [bad]})
    with pytest.raises(UserError, match=r"'toybox\.Net' is refused"):
        check_targets({"a": {"_target_": "toybox.Net"}, "allow_targets": ["toybox"]})  # a config cannot allow itself
    check_targets({"a": {"_target_": "toybox.Net"}}, extra=["toybox"])


def test_users_package_is_allowed_by_name_only() -> None:
    with pytest.raises(UserError, match=r"allow_targets=\[toybox\]"):
        allowed("toybox.Net")
    assert allowed("toybox.Net", ["toybox"]).__name__ == "Net"
    for target in (
        "toybox.os.system",
        "toybox.Path",
        "toybox.Net.build",
        "toybox.table",
        "toybox.shortcut",
        "toybox.partial",
    ):
        with pytest.raises(UserError, match="is refused"):
            allowed(target, ["toybox"])
    for package in ("os", "subprocess", "posix", "builtins", "shutil"):  # Python's own library is nobody's package
        with pytest.raises(UserError, match="is refused"):
            allowed(f"{package}.system", [package])
    with pytest.raises(UserError) as caught:
        allowed("shutil.rmtree")
    assert "allow_targets=[" not in str(caught.value)


@pytest.mark.parametrize(
    "target",
    [
        "torch.optim.SGD",
        "torch.optim.lr_scheduler.CosineAnnealingLR",
        "torch.nn.functional.relu",
        "lightning.pytorch.Trainer",
        "lightning.pytorch.callbacks.ModelCheckpoint",
        "lightning.pytorch.loggers.CSVLogger",
        "lightning.pytorch.strategies.DDPStrategy",
        "lightning.pytorch.plugins.environments.SLURMEnvironment",
        "lightning.pytorch.profilers.SimpleProfiler",
        "torchmetrics.detection.MeanAveragePrecision",
        "torchvision.ops.FrozenBatchNorm2d",
        "torchvision.models.resnet50",
        "timm.create_model",
    ],
)
def test_listed_target_is_found(target: str) -> None:
    assert allowed(target).__name__ == target.rsplit(".", 1)[1]


@pytest.mark.parametrize(
    "arguments",
    [
        {"model_name": "hf-hub:somebody/model"},  # fetched from anybody's account
        {"_args_": ["local-dir:/any/x"]},
        {"model_name": "resnet18", "checkpoint_path": "evil.pth"},  # unpickled by older releases
        {"model_name": "resnet18", "pretrained_cfg_overlay": {"url": "http://evil"}},
    ],
)
def test_timm_takes_no_file_from_a_config(arguments: dict[str, Any]) -> None:
    assert "would load a file" in told({"a": {"_target_": "timm.create_model", **arguments}}, origin=lambda key: key)
