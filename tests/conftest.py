"""What every test may count on: one thread per process, no network, the real configuration, quick settings."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from omegaconf import DictConfig

REPOSITORY = Path(__file__).resolve().parents[1]

# Set before torch is imported, and inherited by every process that a test starts.
os.environ |= {
    "OMP_NUM_THREADS": "1",  # one per test process: several of them share the cores
    "MPLBACKEND": "Agg",  # no display
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "HF_HUB_OFFLINE": "1",
    "COLUMNS": "160",  # width of rich's tables, so that messages are not cut where a terminal is narrow
}
os.environ.setdefault("CVEXP_CACHE", tempfile.mkdtemp(prefix="cvexp-cache-"))  # proposals, kept for the whole session
for _name in ("WANDB_API_KEY", "WANDB_BASE_URL", "HYDRA_FULL_ERROR", "FORCE_COLOR"):
    os.environ.pop(_name, None)

# Two steps of training, a validation and a test in about a second.
TINY = (
    "model=yolo",
    "model.size=tiny",
    "data=shapes",
    "data.train_size=16",
    "data.val_size=4",
    "data.test_size=4",
    "data.batch_size=8",
    "trainer.max_epochs=1",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.enable_progress_bar=false",
    "callbacks.report=null",  # its figures take longer than the training
)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The folder of pyproject.toml."""
    return REPOSITORY


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of the downloaded data sets: ``CVEXP_DATA``, else ``shared/data`` beside the repository."""
    folder = Path(os.environ.get("CVEXP_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no data sets: {folder} does not exist; set CVEXP_DATA to the folder that holds them")
    return folder


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Overrides for a run of seconds."""
    return list(TINY)


@pytest.fixture
def compose(tmp_path: Path) -> Iterator[Callable[..., DictConfig]]:
    """``compose("model=yolo", ...)``: the real configuration with these overrides, its output in ``tmp_path``."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    from cvexp.config import conf_dir, register_resolvers

    register_resolvers()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):

        def composed(*overrides: str, **options: bool) -> DictConfig:
            return hydra.compose("train", [*overrides, f"paths.output={tmp_path}"], **options)

        yield composed
