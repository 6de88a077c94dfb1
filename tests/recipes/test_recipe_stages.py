"""Artefacts of stages: made once, written whole, shared by the processes of a run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.pytorch import LightningModule

from cvexp.recipes import stages
from cvexp.recipes.end_to_end import learn, proposal_seconds
from cvexp.recipes.stages import Stages, gathered, in_order, keep, share
from cvexp.types import UserError


def test_a_stage_is_done_once(tmp_path: Path) -> None:
    calls = []

    def make() -> dict:
        calls.append(1)
        return {"weights": torch.arange(3.0), "rounds": 2, "said": "so"}

    before, after = Stages(tmp_path), Stages(tmp_path)
    first = before.artefact("svm", make)
    again = after.artefact("svm", make)
    assert calls == [1]
    assert first.keys() == again.keys() == {"weights", "rounds", "said"}
    assert after.seconds == before.seconds, "known although it was done by another"
    assert before.seconds["svm"] > 0
    assert torch.equal(first["weights"], again["weights"])
    assert (again["rounds"], again["said"]) == (2, "so")
    assert [path.name for path in (tmp_path / "stages").iterdir()] == ["svm.pt"]


def test_a_stage_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> dict:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError):
        Stages(tmp_path).artefact("svm", fail)
    assert not (tmp_path / "stages").exists()
    assert Stages(tmp_path).artefact("svm", lambda: {"x": 1}) == {"x": 1}


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    assert Stages(tmp_path, step=True).artefact("svm", lambda: {"x": 1}) == {"x": 1}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"not torch", None])
def test_a_broken_artefact_names_the_fix(tmp_path: Path, content: bytes | None) -> None:
    path = Stages(tmp_path).path("svm")
    path.parent.mkdir()
    if content is None:
        torch.save([1, 2], path)  # a list is no artefact
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"svm\.pt: .*Fix: remove it; its stage is then done again"):
        Stages(tmp_path).artefact("svm", dict)


def test_alone_everything_is_ones_own() -> None:
    assert list(share(4)) == [0, 1, 2, 3]
    assert gathered(["a"]) == ["a"]
    assert in_order({2: "c", 0: "a", 1: "b"}) == ["a", "b", "c"]


def _process(rank: int, world: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world)
    rows = in_order({i: i * i for i in share(5)})
    artefact = Stages(folder).artefact("squares", lambda: {"rows": torch.tensor(rows)})
    (Path(folder) / f"rank{rank}").write_text(f"{list(share(5))} {artefact['rows'].tolist()}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_bring_their_rows_together(tmp_path: Path) -> None:
    mp.spawn(_process, args=(2, str(tmp_path)), nprocs=2)
    assert (tmp_path / "rank0").read_text() == "[0, 2, 4] [0, 1, 4, 9, 16]"
    assert (tmp_path / "rank1").read_text() == "[1, 3] [0, 1, 4, 9, 16]"
    assert torch.load(tmp_path / "stages/squares.pt", weights_only=True)["rows"].tolist() == [0, 1, 4, 9, 16]


class Kept(LightningModule):
    """A task that says something of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["cvexp"] = {"classes": ["cat"]}


def trainer_of(folder: Path | None, dry: bool = False) -> SimpleNamespace:
    return SimpleNamespace(checkpoint_callback=SimpleNamespace(dirpath=folder), fast_dev_run=dry)


def test_weights_that_no_fit_made_are_kept(tmp_path: Path) -> None:
    path = keep(trainer_of(tmp_path / "checkpoints"), Kept())
    content = torch.load(path, weights_only=True)
    assert content["cvexp"] == {"classes": ["cat"]}
    assert content["state_dict"]["weight"].tolist() == [0, 0]


def test_what_a_fit_wrote_stays_beside_the_new_weights(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "position": {"step": 7}, "epoch": 3}, tmp_path / "best.ckpt")
    content = torch.load(keep(trainer_of(tmp_path), Kept()), weights_only=True)
    assert (content["position"], content["epoch"]) == ({"step": 7}, 3)
    assert "weight" in content["state_dict"]


@pytest.mark.parametrize("trainer", [trainer_of(None), trainer_of(Path("nowhere"), dry=True)])
def test_nothing_is_kept_where_nothing_may_be(trainer: SimpleNamespace) -> None:
    assert keep(trainer, Kept()) is None
    assert not Path("nowhere").exists()


def test_a_model_may_learn_from_the_data_first() -> None:
    seen: list[str] = []
    data = SimpleNamespace(setup=seen.append)
    learn(SimpleNamespace(model=SimpleNamespace(learn_from=lambda given: seen.append(given is data))), data)
    assert seen == ["fit", True]
    learn(SimpleNamespace(model=object()), data)  # most have nothing to learn
    assert len(seen) == 2


def test_seconds_of_proposals_stand_in_the_results_where_they_were_timed() -> None:
    assert proposal_seconds(SimpleNamespace(proposal_seconds=lambda: 1.5)) == {"test/proposals_seconds_per_image": 1.5}
    assert proposal_seconds(SimpleNamespace(proposal_seconds=lambda: None)) == {}
    assert proposal_seconds(SimpleNamespace()) == {}


def test_alone_nobody_is_waited_for() -> None:
    stages.meet()
    stages.join(SimpleNamespace(world_size=1))
    assert stages.processes() == (0, 1)
