"""`drawn_faces`: people and images are fixed by (draw_seed, split, person, index), and are neither alike nor trivial."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cvexp.data.drawn_faces import DrawnFacesData, DrawnImages, Person, draw
from cvexp.types import UserError


def images(size: int = 64, seed: int = 0, split: str = "train", people: int = 4, each: int = 3) -> DrawnImages:
    return DrawnImages(size, seed, split, people, each)


# -- the same pictures always ------------------------------------------------------------------------------------------


def test_the_default_numbers():
    module = DrawnFacesData()
    counts = {
        split: (len(module.source(split).people), len(module.source(split))) for split in ("train", "val", "test")
    }
    assert counts == {"train": (120, 2400), "val": (20, 200), "test": (40, 400)}
    assert module.class_names[:2] == ["train_0000", "train_0001"]
    assert len(module.class_names) == 120
    truth = module.source("test").truth()
    assert (len(truth.pairs), int(truth.pairs.same.sum())) == (2000, 1000)
    assert not truth.distractor.any()
    image, label, image_id = module.source("val").read(25)
    assert (tuple(image.shape), image.dtype, label, image_id) == ((3, 64, 64), torch.uint8, 2, 25)
    assert module.source("val").names[25] == "val_0002_0005.png"


def test_order_of_reading_does_not_matter():
    forward, backward = images(), images()
    first = [forward[i] for i in range(12)]
    second = [backward[i] for i in reversed(range(12))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, forward[i]) for i, a in enumerate(first))  # from the cache


def test_more_people_or_images_keep_those_that_there_were():
    small, large = images(people=2, each=2), images(people=5, each=7)
    for person in range(2):
        for index in range(2):
            assert torch.equal(small[2 * person + index], large[7 * person + index])


def test_every_picture_is_another():
    kinds = [images(), images(seed=1), images(split="val"), images(split="test")]
    pictures = [kind[i] for kind in kinds for i in range(12)]
    assert all(not torch.equal(a, b) for i, a in enumerate(pictures) for b in pictures[:i])


def test_a_picture_does_not_drift_with_the_library():
    # published scores of `drawn_faces` are comparable only while these numbers stand
    image = images()[0]
    assert image.double().mean().item() == pytest.approx(81.219, abs=0.02)


def test_the_seed_of_the_run_changes_neither_people_nor_pairs():
    a, b = (DrawnFacesData(seed=seed).source("test") for seed in (0, 1))
    assert torch.equal(a.read(7)[0], b.read(7)[0])
    assert torch.equal(a.pairs.first, b.pairs.first)


def test_what_a_reader_does_to_a_sample_does_not_reach_the_next():
    kept = images()
    reference = kept[0].clone()
    kept[0].zero_()
    kept[0].fill_(9)  # from the cache this time
    assert torch.equal(kept[0], reference)


def test_images_are_laid_out_as_decoders_do():
    kept = images()
    assert kept[0].stride(-3) == kept[0].stride(-3) == 1  # drawn and from the cache


@pytest.mark.parametrize("size", [32, 64, 97])
def test_any_size_shows_the_same_person(size):
    image = images(size)[0]
    assert image.shape == (3, size, size)
    small = torch.nn.functional.interpolate(image[None].float(), size=(8, 8), mode="area")
    usual = torch.nn.functional.interpolate(images()[0][None].float(), size=(8, 8), mode="area")
    assert (small - usual).abs().mean() < 12  # of 255; a wrong place or size of the head gives 30 and more


# -- who is who --------------------------------------------------------------------------------------------------------


def test_people_of_all_splits_are_different():
    people = [Person.drawn(np.random.default_rng([0, split, number])) for split in range(3) for number in range(40)]
    traits = np.array([[*p.skin, *p.hair, *p.head, p.jaw, *p.eyes, *p.nose, *p.mouth] for p in people])
    assert len(np.unique(traits.round(3), axis=0)) == 120
    module = DrawnFacesData()
    names = [set(module.source(split).people) for split in ("train", "val", "test")]
    assert len(set.union(*names)) == sum(map(len, names))
    module.check_classes(module.class_names)  # nobody who is trained on is in the test
    with pytest.raises(UserError, match=r"trained on 1 of the 40 people in the test: test_0003\..*Fix"):
        module.check_classes(["train_0000", "test_0003"])


def test_an_image_of_somebody_differs_by_more_than_noise():
    person = Person.drawn(np.random.default_rng(3))
    first, second = (draw(person, 64, np.random.default_rng(i)).astype(float) for i in range(2))
    assert np.abs(first - second).mean() > 20


@pytest.fixture(scope="module")
def tested():
    source = DrawnFacesData(pairs=500).source("test")
    return torch.stack([source.read(i)[0] for i in range(len(source))]).float(), source.truth()


def ordered(features: torch.Tensor, truth) -> float:
    """Share of (same, different) pairs of pairs in which the same one is nearer: 0.5 is chance, 1 is perfect."""
    distance = ((features[truth.pairs.first] - features[truth.pairs.second]) ** 2).sum(1)
    same, different = distance[truth.pairs.same], distance[~truth.pairs.same]
    return (same[:, None] < different[None]).float().mean().item()


def test_no_single_colour_tells_who_it_is(tested):
    pictures, truth = tested
    middle = pictures[:, :, 20:44, 20:44].mean((2, 3))
    assert ordered(pictures.mean((2, 3)), truth) < 0.65  # the whole image
    assert ordered(middle, truth) < 0.85  # the skin
    assert ordered(middle / middle.sum(1, keepdim=True), truth) < 0.85  # the skin without its brightness


def test_people_can_be_told_apart(tested):
    # plain pixels of the middle already beat chance by far; the parts of the face are there to be learned
    pictures, truth = tested
    assert ordered(pictures[:, :, 12:52, 12:52].flatten(1), truth) > 0.7


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"image_size": 16}, "data.image_size=16: faces are drawn at 32 pixels or more"),
        ({"train_identities": 1}, "data.train_identities=1 must be at least 2"),
        ({"test_images": 1}, "data.test_images=1 must be at least 2"),  # no pair of one person
        ({"draw_seed": -1}, "data.draw_seed=-1 must be at least 0"),
        ({"batch_size": 63}, "data.batch_size=63 is not a multiple"),
    ],
)
def test_refused_settings(settings, words):
    with pytest.raises(UserError, match=words) as error:
        DrawnFacesData(**settings)
    assert "Fix: " in str(error.value)


def test_too_few_people_for_a_batch():
    with pytest.raises(
        UserError, match=r"data.batch_size=64 is 16 people.*the data has 10 people.*Fix: data.batch_size=40"
    ):
        DrawnFacesData(train_identities=10, batch_size=64).train_dataloader()


def test_the_first_people_stand_for_all_splits():
    module = DrawnFacesData(overfit=5, batch_size=8)
    module.setup("fit")
    module.setup("test")
    assert module.source("train") is module.source("test")
    assert len(module.class_names) == 5
    assert torch.equal(module.source("val").read(99)[0], DrawnFacesData().source("train").read(99)[0])


def test_a_loader_gives_batches():
    module = DrawnFacesData(train_identities=8, train_images=4, batch_size=16, num_workers=0)
    found = list(module.train_dataloader())
    assert [len(batch) for batch in found] == [16, 16]
    assert found[0].images.shape == (16, 3, 64, 64)
    assert sorted(torch.cat([batch.labels for batch in found]).tolist()) == [i for i in range(8) for _ in range(4)]
