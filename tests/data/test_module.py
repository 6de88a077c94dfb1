"""The data module: what its loaders hand out, with and without workers, and under Lightning."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from cvexp.data.module import DetectionDataset, collate, follow
from cvexp.data.shapes import ShapesData
from cvexp.data.transforms import GREY, Augment, Fit
from cvexp.data.voc import VOCData
from cvexp.types import Batch, Target, UserError

AUGMENT = Augment(jitter=0.2, flip=0.5, brightness=0.3)


SMALL = {"train_size": 10, "val_size": 5, "test_size": 3, "batch_size": 4, "num_workers": 0, "augment": AUGMENT}


def data(**settings: object) -> ShapesData:
    return ShapesData(**(SMALL | settings))


def ids(loader) -> list[list[int]]:
    return [[t.image_id for t in batch.targets] for batch in loader]


def epochs(module: ShapesData, count: int = 3) -> list[list[Batch]]:
    """Batches of the first epochs, with the epoch set as Lightning does."""
    loader = module.train_dataloader()
    found = []
    for epoch in range(count):
        loader.batch_sampler.sampler.set_epoch(epoch)
        found.append(list(loader))
    return found


def flat(found: list[list[Batch]]) -> torch.Tensor:
    return torch.stack([batch.images for epoch in found for batch in epoch])


def targets(found: list[list[Batch]]) -> list[Target]:
    return [target for epoch in found for batch in epoch for target in batch.targets]


def test_what_a_batch_holds():
    batch = next(iter(data().train_dataloader()))
    assert isinstance(batch, Batch)
    assert (batch.images.shape, batch.images.dtype) == ((4, 3, 96, 96), torch.uint8)
    assert len(batch.targets) == 4
    assert batch.images.is_contiguous(memory_format=torch.channels_last)  # what networks convert it to anyway
    for target in batch.targets:
        assert target.boxes.dtype == torch.float32
        assert target.original_size == (96, 96)


def test_collate_stacks_any_layout():
    planes = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    pixels = planes.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    batch = collate([(planes, None), (pixels, None)])
    assert torch.equal(batch.images[0], planes)
    assert torch.equal(batch.images[1], planes)


def test_a_ragged_batch_gets_the_largest_sides_rounded_up():
    target = data().dataset("train", augmented=False)[0, 0][1]
    mask = torch.ones(len(target), 50, 90, dtype=torch.bool)
    wide, high = torch.full((3, 50, 90), 7, dtype=torch.uint8), torch.full((3, 70, 30), 9, dtype=torch.uint8)
    batch = collate([(wide, replace(target, masks=mask)), (high, target)], ragged=True)
    assert batch.images.shape == (2, 3, 96, 96)
    assert (batch.images[0, :, :50, :90] == 7).all()
    assert (batch.images[0, :, 50:] == GREY).all()
    assert (batch.images[1, :, :70, :30] == 9).all()
    assert (batch.images[1, :, :, 30:] == GREY).all()
    assert batch.targets[0].masks.shape[-2:] == (96, 96)
    assert batch.targets[0].masks.sum() == mask.sum()  # nothing of the padding
    assert torch.equal(batch.targets[1].boxes, target.boxes)  # the padding is at the right and bottom


def test_photographs_are_batched_with_their_like(data_root):
    """Landscape and portrait apart: a batch of 320 x 240 photographs needs no 320 x 320 canvas."""
    root = str(data_root / "voc/VOCdevkit/VOC2012")
    module = VOCData(
        root=root, train="test20", val="test20", image_size=320, batch_size=4, num_workers=0, pad="batch", augment=None
    )
    shapes = [tuple(batch.images.shape[-2:]) for batch in module.train_dataloader()]
    assert all(height % 32 == width % 32 == 0 and max(height, width) == 320 for height, width in shapes)
    assert sum(height != width for height, width in shapes) > len(shapes) / 2
    seen = [t.image_id for batch in module.val_dataloader() for t in batch.targets]
    assert sorted(seen) == list(range(100))


def test_epochs_differ_and_repeat_by_seed():
    first = epochs(data())
    assert torch.equal(flat(first), flat(epochs(data())))
    orders = [[t.image_id for batch in epoch for t in batch.targets] for epoch in first]
    assert orders[0] != orders[1] != orders[2]
    assert not torch.equal(flat(first), flat(epochs(data(seed=1))))


def test_workers_change_nothing():
    alone, helped = epochs(data()), epochs(data(num_workers=2))  # persistent: epochs 1 and 2 reach the same processes
    assert torch.equal(flat(alone), flat(helped))
    for a, b in zip(targets(alone), targets(helped), strict=True):
        assert a.image_id == b.image_id
        assert torch.equal(a.boxes, b.boxes)
        assert torch.equal(a.to_original, b.to_original)
    assert helped[0][0].images.is_shared()  # no copy on the way from the worker


def test_a_sample_depends_on_seed_epoch_and_index_alone():
    short, long, other = (
        data(**s).dataset("train", augmented=True) for s in ({"train_size": 4}, {"train_size": 9}, {"seed": 5})
    )
    long[0, 7]  # whatever was read before
    assert torch.equal(short[2, 3][0], long[2, 3][0])
    assert not torch.equal(short[2, 3][0], short[1, 3][0])  # another epoch
    assert not torch.equal(short[2, 3][0], other[2, 3][0])  # another seed of the run


def test_tests_see_every_image_once_unchanged_and_in_order():
    module = data()
    assert ids(module.val_dataloader()) == [[0, 1, 2, 3], [4]]
    assert ids(module.test_dataloader()) == [[0, 1, 2]]
    image = next(iter(module.val_dataloader())).images[2]
    assert torch.equal(image, module.source("val").read(2)[0])


def test_training_leaves_an_incomplete_batch_out_and_keeps_at_least_one():
    assert [len(b) for b in ids(data().train_dataloader())] == [4, 4]  # 10 images
    assert [len(b) for b in ids(data(train_size=3).train_dataloader())] == [3]


def test_eval_batch_size():
    assert ids(data(eval_batch_size=2).val_dataloader()) == [[0, 1], [2, 3], [4]]
    assert len(ids(data(eval_batch_size=2).train_dataloader())[0]) == 4


def test_the_test_split_can_be_exchanged():
    module = data()
    module.tested = "val"
    assert ids(module.test_dataloader()) == [[0, 1, 2, 3], [4]]


def test_overfit_shows_the_first_training_images_as_every_split():
    module, whole = data(overfit=3, augment=None), data()
    assert sorted(ids(module.train_dataloader())[0]) == [0, 1, 2]
    assert ids(module.val_dataloader()) == ids(module.test_dataloader()) == [[0, 1, 2]]
    truth, all_truth = module.source("val").ground_truth(), whole.source("train").ground_truth()
    assert truth.image_ids.tolist() == [0, 1, 2]
    assert truth.sizes.shape == (3, 2)
    kept = all_truth.image_index < 3
    for name in ("image_index", "boxes", "labels", "difficult", "crowd", "area"):
        assert torch.equal(getattr(truth, name), getattr(all_truth, name)[kept]), name
    assert len(data(overfit=99).source("test")) == 10  # no more than there are


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_global_batches(world):
    def share(rank: int) -> list[list[int]]:
        module = data()
        module.trainer = SimpleNamespace(global_rank=rank, world_size=world)
        return ids(module.train_dataloader())

    alone = ids(data().train_dataloader())
    for number, whole in enumerate(alone):
        assert sorted(i for rank in range(world) for i in share(rank)[number]) == sorted(whole)


def test_a_batch_size_that_cannot_be_shared_names_the_fix():
    module = data(batch_size=5)
    module.trainer = SimpleNamespace(global_rank=0, world_size=2)
    with pytest.raises(UserError, match=r"batch_size=5 is not a multiple of 2 processes. Fix: data.batch_size=4"):
        module.train_dataloader()
    module = data(eval_batch_size=3)
    module.trainer = SimpleNamespace(global_rank=0, world_size=2)
    with pytest.raises(UserError, match=r"data.eval_batch_size=3 .* Fix: data.eval_batch_size=2"):
        module.val_dataloader()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": 0}, "data.batch_size=0"),
        ({"eval_batch_size": 0}, "data.eval_batch_size=0"),  # not the same as null
        ({"num_workers": -1}, "data.num_workers=-1"),
        ({"overfit": 0}, "data.overfit=0"),
        ({"resize": "stretch"}, "data.resize='stretch'.*letterbox.*warp"),
        ({"pad": "none"}, "data.pad='none' is not one of: square, batch"),
    ],
)
def test_refused_settings(settings, words):
    with pytest.raises(UserError, match=words):
        data(**settings)


def test_masks_follow_into_the_batch():
    batch = next(iter(data(masks=True, image_size=96).train_dataloader()))
    for target in batch.targets:
        assert target.masks.shape == (len(target), 96, 96)


class Listener(LightningModule):
    """Learns nothing and writes down what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: dict[int, list[int]] = {}
        self.first: dict[int, torch.Tensor] = {}

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        self.seen.setdefault(self.current_epoch, []).extend(t.image_id for t in batch.targets)
        self.first.setdefault(self.current_epoch, batch.images)
        return self.weight * 0.0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], lr=0.1)


@pytest.mark.parametrize("workers", [0, 2])
def test_lightning_hands_the_epoch_to_the_order(workers, tmp_path):
    module, listener = data(num_workers=workers), Listener()
    trainer = Trainer(
        max_epochs=3, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, default_root_dir=tmp_path, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(listener, datamodule=module)
    expected = epochs(data())
    for epoch in range(3):
        assert listener.seen[epoch] == [t.image_id for batch in expected[epoch] for t in batch.targets]
        assert torch.equal(listener.first[epoch], expected[epoch][0].images)
    assert listener.seen[0] != listener.seen[1]


def test_overfitting_shows_the_same_images_in_every_split():
    module = data(overfit=4, augment=None)
    train, test = next(iter(module.train_dataloader())), next(iter(module.test_dataloader()))
    order = [t.image_id for t in train.targets]
    assert sorted(order) == [0, 1, 2, 3]
    assert torch.equal(train.images, test.images[order])
    truth = module.source("test").ground_truth()
    assert truth.image_ids.tolist() == [0, 1, 2, 3]
    assert len(truth.boxes) == sum(len(t) for t in test.targets)
    assert truth.image_index.max() < 4


# -- proposals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resize", ["letterbox", "warp"])
@pytest.mark.parametrize(
    "augment",
    [
        None,  # only the size changes
        Augment(flip=1.0),
        Augment(flip=1.0, flip_vertical=1.0),
        Augment(jitter=0.3, zoom=(0.5, 1.5), flip=0.5, flip_vertical=0.5, min_visible=0.0),  # crops and grounds
    ],
    ids=["plain", "flipped", "both flips", "cropped"],
)
def test_proposals_go_the_way_of_the_objects(augment: Augment | None, resize: str) -> None:
    """The objects' own boxes as proposals: whatever happens to an image, they lie on its objects."""
    source = data(train_size=12).source("train")
    proposals = [source.read(index)[1].boxes for index in range(12)]
    dataset = DetectionDataset(source, Fit(size=130, resize=resize, augment=augment), 0, proposals, limit=None)
    seen = 0
    for index in range(12):
        for epoch in range(3):
            _, target, extras = dataset[epoch, index]
            found = extras["proposals"]
            assert found.dtype == torch.float32
            for box in target.boxes:
                assert ((found - box).abs().amax(dim=1) < 1e-3).any()
                seen += 1
            assert (found >= 0).all()
            assert (found[:, 2] <= target.size[1]).all()
            assert (found[:, 3] <= target.size[0]).all()
    assert seen > 60


def test_of_the_proposals_the_best_that_are_left_come_in_their_order() -> None:
    """Those that the crop cuts away are dropped after the best were chosen: an image may have fewer."""
    target = data().dataset("train", augmented=False)[0, 0][1]
    target = replace(target, size=(96, 96), to_original=torch.tensor([-1.0, 1.0, 96.0, 0.0]))  # flipped
    given = torch.tensor([[0.0, 0, 10, 10], [90, 90, 200, 200], [100, 0, 120, 10], [5, 5, 5.5, 50]])
    assert follow(given, target).tolist() == [[86, 0, 96, 10], [0, 90, 6, 96]]
    assert follow(torch.zeros(0, 4), target).shape == (0, 4)
    source = data().source("train")
    dataset = DetectionDataset(source, Fit(size=96, resize="letterbox"), 0, [given] * 10, limit=1)
    assert dataset[0, 0][2]["proposals"].tolist() == [[0, 0, 10, 10]]


def test_a_batch_holds_the_proposals_of_each_image() -> None:
    samples = [
        (torch.zeros(3, 8, 8, dtype=torch.uint8), None, {"proposals": torch.full((n, 4), float(n))}) for n in (2, 0)
    ]
    batch = collate(samples)
    assert [len(boxes) for boxes in batch.extras["proposals"]] == [2, 0]
    assert collate([sample[:2] for sample in samples]).extras == {}


# -- fewer images ------------------------------------------------------------------------------------------------------


def test_a_split_can_be_limited_to_its_first_images() -> None:
    module = data(limit_train=3, limit_test=1)
    assert [len(module.source(split)) for split in ("train", "val", "test")] == [3, 5, 1]
    assert module.source("test").ground_truth().image_ids.tolist() == [0]
    assert sorted(id for batch in ids(data(limit_train=4).train_dataloader()) for id in batch) == [0, 1, 2, 3]
    with pytest.raises(UserError, match=r"data\.limit_val=0 must be at least 1"):
        data(limit_val=0)
