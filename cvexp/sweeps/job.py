"""One job of a sweep: in processes of its own, so that nothing it does ends the sweep, and what came of it in the ledger.

It runs wherever the launcher has put it: in the sweep's own process, in a worker on this machine, on a node of a cluster. A job
that is started again, by ``sweep=resume`` or because a cluster has put it back into its queue, finds its folder and goes on
from the checkpoint there.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from cvexp import launch
from cvexp.resume import last_checkpoint, locked
from cvexp.sweeps.ledger import FILE, FINISHED, Job, Ledger
from cvexp.sweeps.outcome import JOB, Outcome, clear, memory_kills, outcome_of, result_of

OUTPUT = "output.txt"
"""What a job prints, where several run at once."""


def ledger_of(cfg: DictConfig) -> tuple[Ledger, Job] | None:
    """The ledger that this job stands in; None where this is no job of a sweep, or one of a sweeper without a ledger."""
    hydra = HydraConfig.get()
    folder = Path(str(hydra.runtime.output_dir))
    if hydra.mode != RunMode.MULTIRUN or not folder.name.isdecimal() or not (folder.parent / FILE).is_file():
        return None
    ledger = Ledger(folder.parent)
    try:
        return ledger, ledger.job(int(folder.name))
    except KeyError:
        return None


def run(cfg: DictConfig, ledger: Ledger, job: Job) -> float | None:
    """Runs a job and writes down what came of it, whatever that is.

    Returns:
        Its value: the best validation score; None where it has none.

    Raises:
        SystemExit: the sweep was asked to stop; the job has saved and is `INTERRUPTED`.
    """
    folder = Path(str(HydraConfig.get().runtime.output_dir))
    if job.has_ended or locked(folder):  # in a queue it waited for long, and another conductor was faster
        return job.value
    result, at = result_of(folder)
    if result and job.attempts:  # its process was killed when all was done
        ledger.end(job.number, FINISHED, result=result, at=at)
        return ledger.job(job.number).value
    clear(folder)
    ledger.begin(job.number)
    killed = memory_kills()
    ended = _in_processes(cfg, folder)
    outcome = outcome_of(folder, ended.code, memory_kills() - killed)
    _write(ledger, job.number, outcome, ended)
    if ended.signal:
        raise SystemExit(128 + ended.signal)
    return ledger.job(job.number).value


def _in_processes(cfg: DictConfig, folder: Path) -> launch.Ended:
    words = [f"resume={launch.quoted(str(last_checkpoint(folder)))}"] if last_checkpoint(folder).is_file() else []
    with ExitStack() as stack:
        output = None if _alone() else stack.enter_context((folder / OUTPUT).open("ab"))
        return launch.together(
            launch.command(cfg, *words, *_of_the_sweep(cfg, folder)),
            launch.processes(cfg.trainer),
            cfg.trainer.num_nodes,
            HydraConfig.get().runtime.cwd,
            output,
            {JOB: str(folder.absolute())},
        )


def _alone() -> bool:
    """Whether jobs run one after the other here, so that the screen is theirs."""
    return str(HydraConfig.get().launcher._target_).endswith("BasicLauncher")


def _of_the_sweep(cfg: DictConfig, folder: Path) -> list[str]:
    """Words by which the runs of a sweep belong together for loggers."""
    wandb: Any = cfg.logger.get("wandb")
    return [] if wandb is None or wandb.get("group") else [f"logger.wandb.group={launch.quoted(folder.parent.name)}"]


def _write(ledger: Ledger, number: int, outcome: Outcome, ended: launch.Ended) -> None:
    own = (outcome.result or {}).get("peak/memory_bytes")  # the system's figure may hold what this process has, too
    ledger.end(
        number,
        outcome.state,
        message=outcome.message,
        result=outcome.result,
        value=outcome.value,
        peak_memory=own or ended.peak_memory or None,
    )
