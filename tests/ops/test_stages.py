"""Stages of a pass: nested ones are not counted twice, and nothing is left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from cvexp.ops import stages
from cvexp.ops.stages import clock, stage


def ticking(*times: float) -> Callable[[], float]:
    """A clock that shows these times one after the other."""
    shown = iter(times)
    return lambda: next(shown)


def test_without_a_clock_nothing_is_made() -> None:
    assert stage("network") is stage("proposals")
    with stage("network"), stage("network"):
        pass


def test_worked_example() -> None:
    """Clock 0..10; network 1..9, inside it proposals 2..5: the network keeps 8 - 3."""
    with clock(now=ticking(0, 1, 2, 5, 9, 10)) as times, stage("network"), stage("proposals"):
        assert times.total == 0
    assert times.seconds == {"proposals": 3, "network": 5}
    assert times.total == 10


def test_stages_add_up() -> None:
    """Twice the same name, one after the other, and three levels: 0..20, a: 1..11 with b 2..8 with a 3..5, then a: 12..14."""
    with clock(now=ticking(0, 1, 2, 3, 5, 8, 11, 12, 14, 20)) as times:
        with stage("a"), stage("b"), stage("a"):
            pass
        with stage("a"):
            pass
    assert times.seconds == {"a": 2 + (10 - 6) + 2, "b": 6 - 2}
    assert sum(times.seconds.values()) == 12 <= times.total == 20


def test_no_stage_at_all() -> None:
    with clock(now=ticking(3, 4)) as times:
        pass
    assert times.seconds == {}
    assert times.total == 1


def test_an_error_leaves_no_clock_behind() -> None:
    with (
        pytest.raises(ZeroDivisionError),
        clock(now=ticking(0, 1, 3, 4)) as times,
        stage("network"),
    ):
        _ = 1 / 0
    assert times.seconds == {"network": 2}
    assert times.total == 4
    assert stages._RUNNING.get() is None


def test_the_inner_clock_takes_over() -> None:
    with clock(now=ticking(0, 1, 2, 9)) as outer:
        with clock(now=ticking(0, 1, 5, 6)) as inner, stage("network"):
            pass
        with stage("network"):
            pass
    assert inner.seconds == {"network": 4}
    assert outer.seconds == {"network": 1}


def test_another_thread_is_not_timed() -> None:
    with clock(now=ticking(0, 1)) as times:
        thread = threading.Thread(target=lambda: stage("network").__enter__())
        thread.start()
        thread.join()
    assert times.seconds == {}


def test_real_time_goes_on() -> None:
    with clock() as times, stage("network"):
        sum(range(1000))
    assert 0 < times.seconds["network"] <= times.total
