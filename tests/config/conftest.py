"""Fixtures of the tests of the configuration."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from cases import CONF, TOYBOX, write


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("tree") / "conf", CONF)


@pytest.fixture(scope="module", autouse=True)
def toybox(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = write(tmp_path_factory.mktemp("packages"), {"toybox/__init__.py": TOYBOX, "toybox/part.py": "X = 1"})
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
