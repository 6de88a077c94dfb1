"""FaceNet: its numbers, its loss against a plain loop, one process against two."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from cvexp.build import build_model
from cvexp.comparators.squared_l2 import SquaredL2
from cvexp.losses.focal import BinaryFocal
from cvexp.losses.triplet import Triplet
from cvexp.models.facenet import FaceNet
from cvexp.ops.mining import Hardest, Miner, RandomNegative, SemiHard
from cvexp.types import UserError

MARGIN = 0.2


class Flat(nn.Module):
    """A backbone of one linear layer: its map is one place, its gradient easily the same everywhere."""

    out_channels = (6,)
    strides = (4,)

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 4 * 4, 6)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.layer(images.flatten(1).float() / 255 - 0.5)[:, :, None, None]]


def facenet(miner: type[Miner] = SemiHard, **options: object) -> FaceNet:
    torch.manual_seed(0)
    return FaceNet(Flat(), miner, Triplet(MARGIN), SquaredL2, num_classes=4, dim=3, **options)


def batch(count: int = 24, people: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Images of noise around one picture per person, so that distances are of all sizes; labels; ids."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, people, (count,), generator=generator)
    pictures = torch.randint(0, 256, (people, 3, 4, 4), generator=generator)[labels]
    noise = torch.randint(-80, 81, pictures.shape, generator=generator)
    return (pictures + noise).clamp(0, 255).to(torch.uint8), labels, torch.randperm(1000, generator=generator)[:count]


def test_features_are_the_mean_of_the_last_map() -> None:
    class Maps(nn.Module):
        out_channels = (9, 2)

        def forward(self, images: Tensor) -> list[Tensor]:
            fine = torch.zeros(len(images), 9, 4, 4)
            return [fine, torch.tensor([[[1.0, 3.0]], [[2.0, 6.0]]]).expand(len(images), 2, 1, 2)]

    model = FaceNet(Maps(), SemiHard, Triplet(), SquaredL2, num_classes=2, dim=2)
    with torch.no_grad():
        model.embedding.weight.copy_(torch.eye(2))
        model.embedding.bias.zero_()
    assert model.features(torch.zeros(1, 3, 4, 4)).tolist() == [[2.0, 4.0]]
    torch.testing.assert_close(model(torch.zeros(1, 3, 4, 4)), torch.tensor([[2.0, 4.0]]) / 20**0.5)


def test_mirror_averages_on_the_sphere() -> None:
    """(a + b) / |a + b|: the mean of two unit vectors is none until it is normalised again."""
    images, _, _ = batch()
    plain, mirrored = facenet().eval(), facenet(mirror=True).eval()
    with torch.no_grad():
        a, b, found = plain(images), plain(images.flip(-1)), mirrored.embed(images)
        torch.testing.assert_close(found, (a + b) / (a + b).norm(dim=1, keepdim=True))
        torch.testing.assert_close(found, mirrored.embed(images.flip(-1)))  # a face and its mirror image are one
        assert torch.equal(plain.embed(images), a)
        assert torch.equal(mirrored(images), a)  # training does not mirror
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(images)))


def plain_loss(embeddings: Tensor, labels: Tensor) -> tuple[float, int, int]:
    """Hardest negatives in loops over Eq. (2): the mean of the active ones, their number, number of pairs."""
    losses, pairs = [], 0
    points = embeddings.tolist()

    def squared(i: int, j: int) -> float:
        return sum((x - y) ** 2 for x, y in zip(points[i], points[j], strict=True))

    for a in range(len(points)):
        for p in range(len(points)):
            if a == p or labels[a] != labels[p]:
                continue
            pairs += 1
            negative = min(squared(a, n) for n in range(len(points)) if labels[n] != labels[a])
            losses.append(max(squared(a, p) - negative + MARGIN, 0.0))
    active = [loss for loss in losses if loss > 0]
    return sum(active) / max(len(active), 1), len(active), pairs


def test_the_loss_is_that_of_plain_loops() -> None:
    images, labels, ids = batch()
    model = facenet(Hardest)
    embeddings = model(images)
    expected, active, pairs = plain_loss(embeddings.detach(), labels)
    assert 0 < active < pairs
    assert model.losses(embeddings, labels, ids)["triplet"].item() == pytest.approx(expected, rel=1e-5)
    found = model.statistics(embeddings, labels, ids)
    assert found["triplets"].item() == pairs
    assert found["active"].item() == pytest.approx(active / pairs)


def test_statistics_are_those_of_plain_loops() -> None:
    images, labels, ids = batch()
    model = facenet()
    points = model(images).detach()
    same = [(a, b) for a in range(len(points)) for b in range(len(points)) if a != b and labels[a] == labels[b]]
    other = [(a, b) for a in range(len(points)) for b in range(len(points)) if labels[a] != labels[b]]
    squared = (points[:, None] - points[None]).square().sum(-1)
    semi_hard = [
        any(squared[a, p] < squared[a, n] < squared[a, p] + MARGIN for b, n in other if b == a) for a, p in same
    ]
    found = model.statistics(points, labels, ids)
    assert found["positive_distance"].item() == pytest.approx(
        sum(squared[p].item() for p in same) / len(same), rel=1e-4
    )
    assert found["negative_distance"].item() == pytest.approx(
        sum(squared[p].item() for p in other) / len(other), rel=1e-4
    )
    assert 0 < sum(semi_hard) < len(same)
    assert found["semi_hard"].item() == pytest.approx(sum(semi_hard) / len(same))
    assert found["triplets"].item() == sum(semi_hard)
    assert found["active"].item() == 1  # a semi-hard triplet always has a loss


@pytest.mark.parametrize(
    ("points", "spread"),
    [
        ([[1.0, 0.0, 0.0]] * 8, 0.0),  # collapsed to a point
        ([[1.0, 0.0, 0.0]] * 6 + [[-1.0, 0.0, 0.0]] * 2, 0.75**0.5),  # mean 0.5: variance 1 - 0.25, and its root
        ([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]] * 4, 1.0),  # two opposite points: mean 0, all the variance of a sphere
    ],
)
def test_spread(points: list[list[float]], spread: float) -> None:
    found = facenet().statistics(torch.tensor(points), torch.arange(8) % 4, torch.arange(8))
    assert found["spread"].item() == pytest.approx(spread, abs=1e-6)


def test_a_draw_is_used_once_and_saved() -> None:
    """Random negatives change from step to step, and go on where a checkpoint stopped."""
    images, labels, ids = batch()
    model = facenet(RandomNegative).train()
    embeddings = model(images).detach()
    first = model.mine(embeddings, labels, ids)
    assert torch.equal(model.mine(embeddings, labels, ids).negative, first.negative)  # looking costs nothing
    model.losses(embeddings, labels, ids)
    second = model.mine(embeddings, labels, ids)
    assert not torch.equal(second.negative[second.valid], first.negative[first.valid])
    resumed = facenet(RandomNegative)
    resumed.load_state_dict(model.state_dict())
    assert torch.equal(resumed.mine(embeddings, labels, ids).negative, second.negative)


def test_validation_uses_no_draw() -> None:
    images, labels, ids = batch()
    model = facenet().eval()
    model.losses(model(images), labels, ids)
    assert model.draw.item() == 0


def test_a_dropout_that_is_none() -> None:
    with pytest.raises(UserError, match=r"model\.dropout=1"):
        facenet(dropout=1.0)


def test_a_loss_of_something_else() -> None:
    with pytest.raises(UserError, match="model/loss=triplet"):
        FaceNet(Flat(), SemiHard, BinaryFocal(), SquaredL2, num_classes=2)


def test_the_margin_has_one_source() -> None:
    model = FaceNet(Flat(), SemiHard, Triplet(0.35), SquaredL2, num_classes=2)
    assert model.miner.margin == model.loss.margin == 0.35


def test_nn2_has_the_papers_parameters(compose) -> None:
    """7.5 M, as in table 2: convolutions with biases and the 128 outputs, no batch norm."""
    words = ["model=facenet", "model/backbone=inception_nn2", "model.image_size=224", "model.norm=false"]
    with torch.device("meta"):
        model = build_model(compose(*words, "model.backbone.batch_norm=false").model, 2)
    count = sum(p.numel() for p in model.parameters())
    assert count == pytest.approx(7.5e6, rel=0.01)
    assert model.embedding.weight.shape == (128, 1024)


def test_any_timm_model(compose) -> None:
    words = ["model=facenet", "model/backbone=timm", "model.backbone.name=mobilenetv3_small_100", "model.size=tiny"]
    model = build_model(compose(*words).model, 2).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape == (2, 32)


# --- two processes ---------------------------------------------------------------------------------------------------


def _gradients(model: FaceNet, images: Tensor, labels: Tensor, ids: Tensor) -> tuple[float, list[Tensor]]:
    model.zero_grad()
    loss = model.losses(model(images), labels, ids)["triplet"]
    loss.backward()
    return loss.item(), [p.grad for p in model.parameters()]


def _process(rank: int, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
    )
    images, labels, ids = batch()
    found = []
    for miner in (SemiHard, RandomNegative, Hardest):
        loss, gradients = _gradients(facenet(miner), images[rank::2], labels[rank::2], ids[rank::2])
        mean = torch.tensor(loss) / 2
        dist.all_reduce(mean)
        for gradient in gradients:  # what DistributedDataParallel does
            dist.all_reduce(gradient)
            gradient /= 2
        found.append((mean.item(), gradients))
    torch.save(found, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def test_two_processes_are_one_big_batch(tmp_path: Path) -> None:
    mp.start_processes(_process, args=(str(tmp_path),), nprocs=2, start_method="fork")
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for k, miner in enumerate((SemiHard, RandomNegative, Hardest)):
        loss, gradients = _gradients(facenet(miner), *batch())
        assert loss > 0
        assert any(g.abs().sum() > 0 for g in gradients)
        for found in ranks:
            assert found[k][0] == pytest.approx(loss, rel=1e-5)
            for one, two in zip(gradients, found[k][1], strict=True):
                torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6)
