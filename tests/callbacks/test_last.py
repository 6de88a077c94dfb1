"""The checkpoint to go on from: its arguments, and what it makes of Lightning's counters. tests/test_resume.py runs it."""

from __future__ import annotations

from typing import Any

import pytest

from cvexp.callbacks.last import Last, write_loops
from cvexp.types import UserError


@pytest.mark.parametrize(("name", "value"), [("minutes", 0), ("minutes", -1.5), ("steps", 0)])
def test_intervals_are_above_zero(name: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"callbacks\.last\.{name}={value} must be above 0\. Fix: "):
        Last("folder", **{name: value})  # type: ignore[arg-type]


def loops() -> dict[str, Any]:
    """What Lightning would save in the middle of a step: the counters disagree."""
    counted = {"ready": 11, "started": 11, "processed": 10, "completed": 10}
    return {
        "epoch_progress": {"total": {}, "current": {}},
        "epoch_loop.batch_progress": {"total": dict(counted), "current": {}, "is_last_batch": True},
        "epoch_loop.val_loop.batch_progress": {},
        "epoch_loop.state_dict": {"_batches_that_stepped": 9},
        "epoch_loop.automatic_optimization.optim_progress": {"kept": "as it is"},
    }


# Position -> epochs and batches that are done, the validation's counters, steps that the loggers have seen.
@pytest.mark.parametrize(
    ("position", "batch", "begun", "stepped"),
    [
        pytest.param({"epoch": 2, "batch": 2, "validating": False, "step": 10}, 2, 0, 10, id="between batches"),
        pytest.param({"epoch": 3, "batch": 0, "validating": False, "step": 12}, 0, 0, 12, id="between epochs"),
        pytest.param({"epoch": 2, "batch": 4, "validating": True, "step": 12}, 4, 1, 11, id="a validation is due"),
    ],
)
def test_the_counters_say_the_position(position: dict[str, Any], batch: int, begun: int, stepped: int) -> None:
    found = loops()
    write_loops(found, position, batches=4)
    names = ("ready", "started", "processed", "completed")
    for part in ("total", "current"):
        assert found["epoch_progress"][part] == dict.fromkeys(names, position["epoch"])
    progress = found["epoch_loop.batch_progress"]
    assert progress["current"] == dict.fromkeys(names, batch)
    assert progress["total"] == dict.fromkeys(names, 10)
    assert progress["is_last_batch"] is (batch == 4)
    validation = found["epoch_loop.val_loop.batch_progress"]["total"]
    assert validation == {"ready": begun, "started": begun, "processed": 0, "completed": 0}
    assert found["epoch_loop.state_dict"] == {"_batches_that_stepped": stepped}
    assert found["epoch_loop.automatic_optimization.optim_progress"] == {"kept": "as it is"}
