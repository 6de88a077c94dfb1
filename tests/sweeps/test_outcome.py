"""How a job ended: errors by their kind, exit codes, what the system did, files half written."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from cvexp.errors import NotFiniteError, Pruned, UserError
from cvexp.sweeps import outcome
from cvexp.sweeps.ledger import FAILED, FINISHED, INTERRUPTED, NOT_FINITE, OUT_OF_MEMORY, PRUNED
from cvexp.sweeps.outcome import JOB, classified, outcome_of, told


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "state"),
    [
        pytest.param(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), OUT_OF_MEMORY, id="GPU"),
        pytest.param(MemoryError(), OUT_OF_MEMORY, id="Python"),
        pytest.param(
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
            OUT_OF_MEMORY,
            id="CPU",
        ),
        pytest.param(caused(ValueError("while building"), MemoryError("x")), OUT_OF_MEMORY, id="behind another"),
        pytest.param(NotFiniteError("stopped at step 3: the loss is nan"), NOT_FINITE, id="NaN"),
        pytest.param(Pruned("pruned at step 3", 0.25), PRUNED, id="pruned"),
        pytest.param(UserError("out of memory is a word here"), FAILED, id="a message alone is no proof"),
        pytest.param(ZeroDivisionError("division by zero"), FAILED, id="a fault"),
    ],
)
def test_each_kind_of_error(error: BaseException, state: str) -> None:
    found, message, value = classified(error)
    assert found == state
    assert value == (0.25 if state == PRUNED else None)
    assert str(error).splitlines()[:1] == [] or str(error)[:10] in message or error.__cause__


def test_a_real_allocation_that_is_too_large() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**62, dtype=torch.uint8)
    assert classified(caught.value)[0] == OUT_OF_MEMORY


def test_errors_in_a_circle_end() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert classified(first)[0] == FAILED


def test_the_process_tells_and_the_error_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(JOB, str(tmp_path))
    with pytest.raises(NotFiniteError), told():
        raise NotFiniteError("stopped at step 7: the loss is nan")
    with pytest.raises(ZeroDivisionError), told():  # another process of the job, a moment later
        raise ZeroDivisionError
    found = outcome_of(tmp_path, 2)
    assert (found.state, found.message) == (NOT_FINITE, "stopped at step 7: the loss is nan")
    outcome.clear(tmp_path)
    assert outcome_of(tmp_path, 2).message == "exit code 2"
    with pytest.raises(RuntimeError), told():  # it only feels that another process has failed
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer")
    assert not (tmp_path / outcome.FILE).exists()


def test_outside_of_a_sweep_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(JOB, raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="x"), told():
        raise ValueError("x")
    assert list(tmp_path.iterdir()) == []


def test_a_long_message_is_cut_and_a_missing_folder_is_no_error(tmp_path: Path) -> None:
    outcome.write(tmp_path, FAILED, "x" * 10**6)
    assert len(outcome_of(tmp_path, 1).message) == outcome.LONGEST
    outcome.write(tmp_path / "gone", FAILED, "x")
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize(
    ("code", "kills", "said", "state", "message"),
    [
        (0, 0, None, FAILED, "without a result.json"),  # nothing was found
        (1, 0, None, FAILED, "exit code 1"),
        (143, 0, None, INTERRUPTED, "SIGTERM"),
        (130, 0, {"state": FAILED, "message": "x", "value": None}, INTERRUPTED, "SIGINT"),  # asked to stop
        (137, 0, None, FAILED, "killed by SIGKILL"),
        (137, 1, None, OUT_OF_MEMORY, "memory had run out"),  # the system has killed the process
        (1, 1, {"state": FAILED, "message": "DataLoader worker is killed", "value": None}, OUT_OF_MEMORY, "memory"),
        (2, 1, {"state": NOT_FINITE, "message": "nan", "value": None}, NOT_FINITE, "nan"),  # somebody else's was killed
        (2, 0, {"state": PRUNED, "message": "no hope", "value": 0.5}, PRUNED, "no hope"),
        (
            2,
            0,
            {"state": FINISHED, "message": "so I say", "value": None},
            FAILED,
            "exit code 2",
        ),  # only a result is one
        (2, 0, {"state": "?"}, FAILED, "exit code 2"),
        (2, 0, ["no mapping"], FAILED, "exit code 2"),
        (300, 0, None, FAILED, "exit code 300"),  # no signal
    ],
)
def test_codes_and_files(code: int, kills: int, said: object, state: str, message: str, tmp_path: Path) -> None:
    if said is not None:
        (tmp_path / outcome.FILE).write_text(json.dumps(said))
    found = outcome_of(tmp_path, code, kills)
    assert found.state == state
    assert message in found.message
    assert found.value == (0.5 if state == PRUNED else None)


def test_a_result_counts_where_the_process_ended_well(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text('{"val/best": 0.5}')
    os.utime(path, (1000, 1000))
    found = outcome_of(tmp_path, 0)
    assert (found.state, found.result, found.at) == (FINISHED, {"val/best": 0.5}, 1000)
    assert outcome_of(tmp_path, 128 + signal.SIGKILL).state == FAILED
    for broken in ('{"val/best": ', "[1]", "", "[" * 100_000):
        path.write_text(broken)
        assert outcome_of(tmp_path, 0).state == FAILED


def test_the_system_counts_its_kills() -> None:
    assert outcome.memory_kills() >= 0
