"""Loaders of faces: batches, processes, epochs, and the pairs that are drawn."""

from __future__ import annotations

import io
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from face_cases import data, folder
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import nn

from cvexp.data.face_pairs import drawn_pairs
from cvexp.data.transforms import Augment
from cvexp.types import FaceBatch, UserError

# -- batches -----------------------------------------------------------------------------------------------------------


def test_what_a_batch_holds(tmp_path):
    module = data(folder(tmp_path / "a"), augment=Augment(jitter=0.2, brightness=0.3))
    batch = next(iter(module.train_dataloader()))
    assert isinstance(batch, FaceBatch)
    assert (tuple(batch.images.shape), batch.images.dtype) == ((8, 3, 16, 16), torch.uint8)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.labels.dtype == batch.image_ids.dtype == torch.int64
    source = module.source("train")
    assert batch.labels.tolist() == [source.labels[i] for i in batch.image_ids]
    assert max(batch.labels) < len(module.class_names)
    assert set(Counter(batch.labels.tolist()).values()) == {2}


def test_tests_see_every_image_once_unchanged_and_in_order(tmp_path):
    module = data(folder(tmp_path / "a"), image_size=12, augment=Augment(jitter=0.2), eval_batch_size=3)
    found = list(module.test_dataloader())
    source = module.source("test")
    assert torch.cat([b.image_ids for b in found]).tolist() == list(range(len(source)))
    assert {len(b) for b in found[:-1]} == {3}
    images = torch.cat([b.images for b in found])
    assert all(torch.equal(images[i], source.read(i)[0]) for i in range(len(source)))
    assert torch.equal(torch.cat([b.labels for b in found]), source.truth().labels)


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_batches(tmp_path, world):
    root = folder(tmp_path / "a")

    def share(rank: int, loader: str) -> list[list[int]]:
        module = data(root)
        module.trainer = SimpleNamespace(global_rank=rank, world_size=world)
        return [batch.image_ids.tolist() for batch in getattr(module, loader)()]

    alone = [batch.image_ids.tolist() for batch in data(root).train_dataloader()]
    parts = [share(rank, "train_dataloader") for rank in range(world)]
    for number, whole in enumerate(alone):
        assert [parts[i % world][number][i // world] for i in range(8)] == whole
    tested = [i for rank in range(world) for batch in share(rank, "test_dataloader") for i in batch]
    assert set(tested) == set(range(len(data(root).source("test"))))  # padding repeats only


def test_a_batch_size_that_cannot_be_shared_is_refused(tmp_path):
    module = data(folder(tmp_path / "a"))
    module.trainer = SimpleNamespace(global_rank=0, world_size=3)
    with pytest.raises(UserError, match=r"data.batch_size=8 is not a multiple of 3 processes. Fix: data.batch_size=6"):
        module.train_dataloader()


def test_a_letterbox_keeps_the_sides(tmp_path):
    stream = io.BytesIO()
    Image.new("RGB", (20, 10), (200, 0, 0)).save(stream, "PNG")
    files = {f"{name}/{i}.png": stream.getvalue() for name in "ABCDEF" for i in range(4)}
    root = folder(tmp_path / "a", files)
    shown = {}
    for resize in ("letterbox", "warp"):
        module = data(root, resize=resize, val_identities=2, test_identities=2, batch_size=4)
        shown[resize] = next(iter(module.train_dataloader())).images[0]
    assert (shown["warp"][0] == 200).all()
    assert (shown["letterbox"][0, :8] == 200).all()
    assert (shown["letterbox"][:, 8:] == 114).all()


def test_the_first_people_stand_for_all_splits(tmp_path):
    module = data(folder(tmp_path / "a"), overfit=3, val_identities=0, test_identities=0)
    module.setup("fit")
    module.setup("test")
    assert module.class_names == ["P00", "P01", "P02"]
    assert module.source("train") is module.source("test")
    source = module.source("test")
    assert len(source) == 2 + 3 + 4
    assert source.labels == [0] * 2 + [1] * 3 + [2] * 4
    assert (len(source.pairs), source.distractors) == (12, 0)
    assert torch.equal(
        source.read(8)[0], data(str(tmp_path / "a"), test_identities=0, val_identities=0).source("train").read(8)[0]
    )
    module.check_classes(module.class_names)  # they are meant to be known


class Listener(LightningModule):
    """Learns nothing and writes down what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: dict[int, list[list[int]]] = {}
        self.tested: list[int] = []

    def training_step(self, batch: FaceBatch, index: int) -> torch.Tensor:
        self.seen.setdefault(self.current_epoch, []).append(batch.image_ids.tolist())
        return self.weight * 0.0

    def validation_step(self, batch: FaceBatch, index: int) -> None:
        self.tested += batch.image_ids.tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], lr=0.1)


@pytest.mark.parametrize("workers", [0, 2])
def test_lightning_hands_the_epoch_to_the_order(tmp_path, workers):
    module, listener = data(folder(tmp_path / "a"), num_workers=workers), Listener()
    trainer = Trainer(
        max_epochs=3, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, default_root_dir=tmp_path, num_sanity_val_steps=0,
        check_val_every_n_epoch=3,
    )  # fmt: skip
    trainer.fit(listener, datamodule=module)
    loader = data(str(tmp_path / "a")).train_dataloader()
    for epoch in range(3):
        loader.batch_sampler.sampler.set_epoch(epoch)
        assert listener.seen[epoch] == [batch.image_ids.tolist() for batch in loader]
    assert listener.seen[0] != listener.seen[1]
    assert listener.tested == list(range(len(module.source("val"))))


# -- drawn pairs -------------------------------------------------------------------------------------------------------


def test_drawn_pairs_are_true_and_never_twice():
    images = [list(range(0, 5)), list(range(5, 7)), [7], list(range(8, 60))]
    labels = [person for person, some in enumerate(images) for _ in some]
    pairs = drawn_pairs(["a", "b", "c", "d"], images, 200, 0, "x")
    assert len(pairs) == 400
    assert pairs.same.tolist() == [True] * 200 + [False] * 200
    for first, second, same in zip(pairs.first.tolist(), pairs.second.tolist(), pairs.same.tolist(), strict=True):
        assert (labels[first] == labels[second]) == same
        assert first != second
    assert len({frozenset(p) for p in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)}) == 400


def test_drawn_pairs_are_spread_over_the_people():
    images = [list(range(40 * p, 40 * p + (40 if p else 3))) for p in range(10)]  # the first has 3 images, 3 pairs
    names = [f"n{p}" for p in range(10)]
    pairs = drawn_pairs(names, images, 93, 0, "x")
    owner = {image: p for p, some in enumerate(images) for image in some}
    same = Counter(owner[i] for i in pairs.first[pairs.same].tolist())
    assert same == {0: 3} | dict.fromkeys(range(1, 10), 10)
    first = Counter(owner[i] for i in pairs.first[~pairs.same].tolist())
    assert max(first.values()) - min(first.values()) <= 1


@pytest.mark.parametrize(
    ("images", "count"),
    [
        ([], 0),  # nobody
        ([[0, 1, 2]], 0),  # nobody else
        ([[0], [1]], 0),  # no two of one person
        ([[0, 1], [2]], 1),  # one same pair, two different ones: as many of each
        ([[0, 1], [2, 3]], 2),
        ([[0, 1], [2, 3], []], 2),  # somebody without images
        ([[0, 1, 2, 3, 4], [5]], 5),  # ten same, five different ones
    ],
)
def test_few_images_make_few_pairs(images, count):
    pairs = drawn_pairs([str(i) for i in range(len(images))], images, 1000, 0, "x")
    assert (int(pairs.same.sum()), int((~pairs.same).sum())) == (count, count)
    assert len({frozenset(p) for p in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)}) == 2 * count


def test_drawn_pairs_follow_names_and_not_places():
    images = {"a": [0, 1, 2], "b": [3, 4, 5], "c": [6, 7, 8]}
    one = drawn_pairs(list(images), list(images.values()), 9, 0, "x")
    other = drawn_pairs(list(images)[::-1], list(images.values())[::-1], 9, 0, "x")
    assert torch.equal(one.first, other.first)
    assert torch.equal(one.second, other.second)
