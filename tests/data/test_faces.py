"""LFW's exact numbers, one's own people, and that nobody is both trained on and tested."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from face_cases import PEOPLE, archive, data, files_of, folder, listed, picture

from cvexp.data.faces import FacesData
from cvexp.types import UserError

# -- LFW ---------------------------------------------------------------------------------------------------------------


def lfw(data_root: Path, **settings: object) -> FacesData:
    where = data_root / "lfw"
    lists = {"identities": "people_not_in_pairsDevTest", "val_pairs": "pairsDevTrain", "test_pairs": "pairsDevTest"}
    paths = {name: str(where / f"{file}.txt") for name, file in lists.items()}
    return FacesData(**(paths | {"root": str(where / "lfw_crop90.zip"), "image_size": 64, "num_workers": 0} | settings))


@pytest.fixture(scope="module")
def whole_lfw(data_root) -> FacesData:
    module = lfw(data_root)
    module.setup("fit")
    module.setup("test")
    return module


def test_lfw_training(whole_lfw):
    source = whole_lfw.source("train")
    assert (len(whole_lfw.class_names), len(source)) == (1262, 6968)
    assert source.people == whole_lfw.class_names == sorted(source.people)
    assert min(Counter(source.labels).values()) == 2
    image, label, image_id = source.read(6967)
    assert (tuple(image.shape), image.dtype) == ((3, 90, 90), torch.uint8)
    assert (label, image_id) == (1261, 6967)


def test_lfw_test(whole_lfw):
    truth = whole_lfw.source("test").truth()
    gallery = ~truth.distractor
    assert (len(truth.pairs), int(truth.pairs.same.sum())) == (1000, 500)
    assert int(gallery.sum()) == 2741
    assert len(truth.labels[gallery].unique()) == 963
    assert int(truth.distractor.sum()) == 3524
    alone = [name for name, n in Counter(truth.labels[gallery].tolist()).items() if n == 1]
    assert len(alone) == 545  # people of one image who are in the pairs are no distractors
    assert truth.pairs.name == "pairsDevTest.txt"
    assert set(truth.people).isdisjoint(whole_lfw.class_names)
    # the pairs are of the people that the list names: its first line
    first, second = int(truth.pairs.first[0]), int(truth.pairs.second[0])
    names = whole_lfw.source("test").names
    assert (names[first], names[second]) == ("Abdullah_Gul_0013.jpg", "Abdullah_Gul_0014.jpg")
    same = truth.labels[truth.pairs.first] == truth.labels[truth.pairs.second]
    assert torch.equal(same, truth.pairs.same)
    assert not truth.distractor[torch.cat([truth.pairs.first, truth.pairs.second])].any()


def test_lfw_validation(whole_lfw):
    source = whole_lfw.source("val")
    assert (len(source.pairs), len(source.people), len(source)) == (2200, 2132, 3443)
    shown = torch.cat([source.pairs.first, source.pairs.second]).unique()
    assert len(shown) == len(source)  # only images of pairs: a validation comes often
    # it shares people with training, and says so
    assert len(whole_lfw.val_overlap) == 945
    assert set(whole_lfw.val_overlap) == set(source.people) & set(whole_lfw.class_names)


def test_lfw_pictures_under_two_names_are_told_and_are_no_error(whole_lfw):
    found = [str(problem) for problem in whole_lfw.problems["test"]]
    assert len(found) == 2
    for names in (("Bart_Hendricks", "Ricky_Ray"), ("Carlos_Beltran", "Raul_Ibanez")):
        assert any("same picture under two names" in text and all(name in text for name in names) for text in found)
    assert whole_lfw.problems["train"] == []


def test_lfw_without_gallery_or_distractors(data_root, whole_lfw):
    module = lfw(data_root, gallery=False, distractors=False)
    module._opened = whole_lfw._opened  # the images have been looked at
    source = module.source("test")
    assert source.distractors == 0
    assert len(torch.cat([source.pairs.first, source.pairs.second]).unique()) == len(source) < 2741


def test_view_2_is_refused_with_people_of_view_1(data_root, whole_lfw):
    module = lfw(data_root, test_pairs=str(data_root / "lfw" / "pairs.txt"))
    module._opened = whole_lfw._opened
    with pytest.raises(UserError, match=r"training takes \d+ of the \d+ people.*and \d+ more.*data.allow_overlap=\["):
        module.setup("fit")
    module = lfw(data_root, identities=None)  # everybody is trained on
    module._opened = whole_lfw._opened
    with pytest.raises(UserError, match=r"pairsDevTest.txt: training takes 418 of the 963 people in the test"):
        module.setup("test")


# -- one's own people --------------------------------------------------------------------------------------------------


def test_people_are_set_aside_by_name(tmp_path):
    module = data(folder(tmp_path / "a"))
    splits = {split: module.source(split) for split in ("train", "val", "test")}
    tested = [name for name in splits["test"].people if not name.startswith("Single")]
    assert [len(splits["train"].people), len(splits["val"].people), len(tested)] == [7, 2, 3]
    everybody = [*splits["train"].people, *splits["val"].people, *splits["test"].people]
    assert sorted(everybody) == sorted(PEOPLE)  # nobody twice
    # another number of people to train on does not move anybody else; nor does the order on disk
    more = files_of() | {f"Q{n}/Q{n}_1.png": picture(n) for n in range(3)}  # one image: cannot be set aside
    again = data(archive(tmp_path / "b.zip", dict(reversed(more.items()))))
    assert again.source("val").people == splits["val"].people
    assert [n for n in again.source("test").people if n.startswith("P")] == tested
    fewer = data(str(tmp_path / "a"), test_identities=2, val_identities=4)
    assert set(fewer.source("test").people) - {"Single_A", "Single_B"} < set(tested)
    assert set(splits["val"].people) < set(fewer.source("val").people)


def test_distractors_have_one_image_and_no_pair(tmp_path):
    source = data(folder(tmp_path / "a")).source("test")
    truth = source.truth()
    assert [source.people[label] for label in truth.labels[truth.distractor]] == ["Single_A", "Single_B"]
    assert not truth.distractor[torch.cat([truth.pairs.first, truth.pairs.second])].any()
    assert data(str(tmp_path / "a"), distractors=False).source("test").distractors == 0
    trained_on = data(str(tmp_path / "a"), min_images=1)  # then they are no strangers
    assert {"Single_A", "Single_B"} <= set(trained_on.class_names)
    assert trained_on.source("test").distractors == 0


def test_pairs_do_not_depend_on_the_seed_of_the_run(tmp_path):
    root = folder(tmp_path / "a")
    a, b, c = (data(root, **s).source("test").pairs for s in ({"seed": 0}, {"seed": 1}, {"pair_seed": 1}))
    assert torch.equal(a.first, b.first)
    assert torch.equal(a.second, b.second)
    assert not (torch.equal(a.first, c.first) and torch.equal(a.second, c.second))
    assert (len(a), int(a.same.sum())) == (12, 6)
    assert a.name == "3 people of test, set aside from training (data.pair_seed=0)"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": 7}, "data.batch_size=7 is not a multiple of data.images_per_identity=2"),
        ({"images_per_identity": 1}, "an anchor needs another image"),
        ({"batch_size": 0}, "data.batch_size=0 must be at least 1"),
        ({"eval_batch_size": 0}, "data.eval_batch_size=0"),
        ({"num_workers": -1}, "data.num_workers=-1"),
        ({"overfit": 1}, "data.overfit=1 must be at least 2"),  # one person has nobody to be told from
        ({"pairs": 0}, "data.pairs=0"),
        ({"resize": "crop"}, "data.resize='crop' is not one of: letterbox, warp"),
        ({"balance": "none"}, "data.balance='none' is not one of: identities, images"),
        ({"min_images": 0}, "data.min_images=0"),
        ({"val_identities": -1}, "data.val_identities=-1"),
        ({"val_identities": 1}, "data.val_identities=1: one person has nobody to be told from"),
        ({"test_identities": 1}, "data.test_identities=1: one person has nobody"),  # no pair, and rank-1 is always 1
        ({"on_bad": "ask"}, "data.on_bad='ask'"),
        ({"allow_overlap": "Ann"}, r"data.allow_overlap=Ann.*Fix: data.allow_overlap=\[Ann\]"),
        ({"test_pairs": "x.txt"}, "data.test_pairs and data.test_identities=3 are both given"),
        ({"val_pairs": "x.txt"}, "data.val_pairs and data.val_identities=2 are both given"),
    ],
)
def test_refused_settings(settings, words):
    with pytest.raises(UserError, match=words) as error:
        data("nowhere", **settings)
    assert "Fix: " in str(error.value)


@pytest.mark.parametrize(
    ("settings", "stage", "words"),
    [
        ({"test_identities": 0}, "test", r"no test is configured.* Fix: data.test_pairs=<list file> or data.test_iden"),
        ({"val_identities": 0}, "fit", r"no val is configured.* Fix: data.val_pairs=.* or data.val_identities"),
        ({"test_identities": 11}, "fit", r"test_identities=11 of 12 people with two images or more. Fix: smaller"),
        ({"test_identities": 9}, "fit", r"1 people are left to train on; two.*Fix: more people"),
        ({"min_images": 9}, "fit", r"0 people are left to train on"),
        ({"test_pairs": "absent.txt", "test_identities": 0}, "fit", "absent.txt: the list cannot be read"),
        ({"identities": "absent.txt"}, "fit", "absent.txt: the list cannot be read"),
        ({"test_root": "absent"}, "none", ""),  # not used without a list
    ],
)
def test_what_cannot_be_trained_or_tested(tmp_path, settings, stage, words):
    module = data(folder(tmp_path / "a"), **settings)
    if stage == "none":
        module.setup("fit")
        module.setup("test")
        return
    with pytest.raises(UserError, match=words):
        module.setup(stage)


def test_a_model_may_be_tested_on_people_alone(tmp_path):
    # everybody is set aside: nothing to train on, which only matters to training
    module = data(folder(tmp_path / "a"), val_identities=0, test_identities=12)
    module.setup("test")
    assert module.class_names == []
    module.check_classes(["Stranger"])


# -- lists -------------------------------------------------------------------------------------------------------------


def test_lists_choose_people(tmp_path):
    module = listed(folder(tmp_path / "a"), tmp_path)
    module.setup("fit")
    module.setup("test")
    assert set(module.class_names) < {f"P{n:02d}" for n in range(6)}
    assert len(module.class_names) == 4
    source = module.source("test")
    assert source.people == [*(f"P{n:02d}" for n in range(6, 12)), "Single_A", "Single_B"]
    assert len(source) == sum(PEOPLE[name] for name in source.people)
    pairs = source.pairs
    names = [(source.names[a], source.names[b]) for a, b in zip(pairs.first, pairs.second, strict=True)]
    assert names[0] == ("P06_0001.png", "P06_0002.png")
    assert names[3] == ("P10_0001.png", "P11_0002.png")


def test_test_images_may_lie_elsewhere(tmp_path):
    files = files_of()
    train = folder(tmp_path / "train", {n: c for n, c in files.items() if n < "P06"})
    test = archive(tmp_path / "test.zip", {n: c for n, c in files.items() if n >= "P06"})
    module = listed(train, tmp_path, test_root=test)
    module.setup("test")
    same = listed(folder(tmp_path / "all"), tmp_path).source("test")
    assert module.source("test").names == same.names
    assert torch.equal(module.source("test").read(5)[0], same.read(5)[0])


def test_a_list_that_disagrees_with_the_images(tmp_path):
    files = {n: c for n, c in files_of().items() if n != "P01/P01_0003.png" and not n.startswith("P02/")}
    root = folder(tmp_path / "a", files)
    with pytest.raises(UserError, match=r"(?s)2 problem.*P01: 3 image\(s\) listed, 2 image.*P02: 4 .* listed, 0 image"):
        listed(root, tmp_path).setup("fit")
    module = listed(root, tmp_path, on_bad="skip")
    module.setup("fit")
    assert len(module.problems["train"]) == 2
    (tmp_path / "names.txt").write_text("P00\nP01\nP03\nNobody\n")  # without numbers, only absence tells
    with pytest.raises(UserError, match=r"1 problem.*\n.*Nobody: in the list, 0 image"):
        listed(root, tmp_path, identities=str(tmp_path / "names.txt")).setup("fit")


def test_a_missing_image_of_a_pair_is_an_error_and_a_broken_one_can_be_skipped(tmp_path):
    files = files_of()
    root = folder(tmp_path / "a", {n: c for n, c in files.items() if n != "P10/P10_0001.png"})
    with pytest.raises(UserError, match=r"pairs.txt: line 5: image P10_0001 is missing, expected .*a/P10/P10_0001.jpg"):
        listed(root, tmp_path).setup("test")
    broken = folder(tmp_path / "b", files | {"P10/P10_0001.png": b"x"})
    with pytest.raises(UserError, match=r"P10_0001.png: not a readable image"):
        listed(broken, tmp_path).setup("test")
    module = listed(broken, tmp_path, on_bad="skip")
    module.setup("test")
    assert len(module.source("test").pairs) == 3
    assert any("1 pair(s) of unusable images are left out" in str(p) for p in module.problems["test"])
    gone = files | {f"P{n:02d}/P{n:02d}_{i:04d}.png": b"x" for n in range(6, 12) for i in (1, 2)}
    module = listed(folder(tmp_path / "c", gone), tmp_path, on_bad="skip")
    with pytest.raises(UserError, match="all of its images are unusable"):
        module.setup("test")


def test_two_files_with_one_number_are_refused(tmp_path):
    root = folder(tmp_path / "a", files_of() | {"P06/P06_1.jpg": picture(5)})
    with pytest.raises(UserError, match=r"P06_0001.png and P06/P06_1.jpg are both image 1 of P06"):
        listed(root, tmp_path).setup("test")


# -- nobody is both trained on and tested ------------------------------------------------------------------------------


def overlapping(tmp_path: Path, **settings: object) -> FacesData:
    """Trained on everybody, tested on six of them."""
    return listed(folder(tmp_path / "a"), tmp_path, **({"identities": None, "val_identities": 0} | settings))


@pytest.mark.parametrize("stage", ["fit", "test"])
def test_trained_people_in_the_test_are_refused(tmp_path, stage):
    with pytest.raises(UserError) as error:
        overlapping(tmp_path).setup(stage)
    text = str(error.value)
    assert "training takes 6 of the 6 people in the test: P06, P07, P08, P09, P10 and 1 more" in text
    assert "pairs.txt" in text
    assert "Fix: data.identities=<a list without them>" in text
    assert "data.allow_overlap=[P06,P07,P08,...]" in text


def test_overlap_is_allowed_by_name(tmp_path):
    names = [f"P{n:02d}" for n in range(6, 12)]
    for allowed in ("all", names):
        module = overlapping(tmp_path, allow_overlap=allowed)
        module.setup("test")
        module.check_classes(module.class_names)
    with pytest.raises(UserError, match=r"training takes 1 of the 6 people in the test: P11\."):
        overlapping(tmp_path, allow_overlap=names[:-1]).setup("fit")


def test_a_checkpoint_that_knows_the_tested_is_refused(tmp_path):
    module = listed(folder(tmp_path / "a"), tmp_path)
    module.check_classes(["P00", "Somebody"])  # not in the test
    with pytest.raises(UserError, match=r"trained on 2 of the 8 people in the test: P06, Single_A\..*Fix"):
        module.check_classes(["P00", "P06", "Single_A"])  # a distractor must be a stranger too
    module = listed(str(tmp_path / "a"), tmp_path, allow_overlap=["P06"])
    module.check_classes(["P00", "P06"])
    (tmp_path / "val.txt").write_text("1\nP00\t1\t2\nP00\t1\tP07\t1\n")
    for tested in ("train", "val"):  # known people are meant there
        module = listed(str(tmp_path / "a"), tmp_path, val_pairs=str(tmp_path / "val.txt"), val_identities=0)
        module.tested = tested
        module.check_classes(["P00", "P06"])


def test_more_people_than_were_set_aside_are_no_validation(tmp_path):
    root = folder(tmp_path / "a")
    trained = data(root).class_names
    for people, refused in ((2, False), (4, True)):
        module = data(root, val_identities=people)
        module.tested = "val"
        if refused:
            with pytest.raises(UserError, match=r"trained on 2 of the 4 people in the validation"):
                module.check_classes(trained)
        else:
            module.check_classes(trained)


@pytest.mark.parametrize(
    "name",
    [
        "Jose\u0301 Lee",  # an accent apart from its letter: a zip file from macOS
        "jos\u00e9_lee",  # in small letters
        "Jos\u00e9-Lee",
    ],
)
def test_another_way_of_writing_a_name_is_no_other_person(tmp_path, name):
    own, theirs = {"Jos\u00e9_Lee": 3}, {name: 3, "Zoe": 2}
    root, elsewhere = folder(tmp_path / "a", files_of(PEOPLE | own)), archive(tmp_path / "b.zip", files_of(theirs))
    (tmp_path / "pairs.txt").write_text(f"1\n{name}\t1\t2\n{name}\t1\tZoe\t1\n")
    settings = {
        "test_root": elsewhere,
        "test_pairs": str(tmp_path / "pairs.txt"),
        "test_identities": 0,
        "val_identities": 0,
    }
    with pytest.raises(UserError, match="training takes 1 of the 2 people in the test: "):
        data(root, **settings).setup("fit")
    with pytest.raises(UserError, match="trained on 1 of the"):
        data(root, **settings, allow_overlap=["Zoe"]).check_classes(["Jos\u00e9_Lee"])
    data(root, **settings, allow_overlap=["Jos\u00e9_Lee"]).check_classes(["Jos\u00e9_Lee"])


def test_a_list_names_images_whose_accents_are_written_apart(tmp_path):
    root = archive(tmp_path / "a.zip", files_of({"Jose\u0301": 2, "Zoe": 2} | PEOPLE))
    (tmp_path / "pairs.txt").write_text("1\nJos\u00e9\t1\t2\nJos\u00e9\t1\tZoe\t1\n")
    module = data(root, test_pairs=str(tmp_path / "pairs.txt"), test_identities=0)
    assert module.source("test").people[:2] == ["Jos\u00e9", "Zoe"]
    assert module.source("test").read(1)[0].shape == (3, 12, 12)


def test_overlap_with_leave_is_told(tmp_path):
    module = overlapping(tmp_path, allow_overlap="all", val_identities=3)
    module.setup("test")
    told = [str(problem) for problem in module.problems["test"]]
    assert len(told) == 2
    assert "3 of the 6 people in the test are trained on, as data.allow_overlap says" in told[0]
    assert "3 of the 6 people in the test are in the validation" in told[1]  # it chose the checkpoint
    module = listed(str(tmp_path / "a"), tmp_path)
    module.setup("test")
    assert module.problems["test"] == []


def test_a_model_from_elsewhere_is_asked_for_its_own_people(tmp_path):
    module = overlapping(tmp_path)
    module.trained = ["Somebody"]  # the checkpoint's; the data's own training is not what is tested
    module.setup("test")
    assert module.problems["test"] == []
    module = overlapping(tmp_path)
    module.trained = ["P06"]
    with pytest.raises(UserError, match="the model was trained on 1 of the 6 people in the test: P06"):
        module.setup("test")


@pytest.mark.parametrize("same", [True, False])
def test_a_test_on_the_pairs_that_choose_the_threshold_is_refused(tmp_path, same):
    turned = "2\nP06\t2\t1\nP07\t1\t2\nP09\t2\tP08\t1\nP10\t1\tP11\t2\n"  # the same images the other way round
    (tmp_path / "val.txt").write_text(turned if same else turned.replace("P11\t2", "P11\t1"))
    settings = {"val_pairs": str(tmp_path / "val.txt"), "val_identities": 0}
    module = listed(folder(tmp_path / "a"), tmp_path, **settings)
    if same:
        with pytest.raises(UserError, match=r"pairs.txt: all its 4 pairs are in data.val_pairs=.*val.txt.*Fix"):
            module.setup("test")
    else:
        module.setup("test")
        assert "6 of the 6 people in the test are in the validation" in str(module.problems["test"][0])


def test_a_test_needs_no_list_of_the_validation(tmp_path):
    module = listed(folder(tmp_path / "a"), tmp_path, val_pairs=str(tmp_path / "gone.txt"), val_identities=0)
    module.setup("test")
    assert module.problems["test"] == []
    with pytest.raises(UserError, match=r"gone.txt: the list cannot be read"):
        module.setup("fit")


def test_validation_may_share_people(tmp_path):
    (tmp_path / "val.txt").write_text("1\nP00\t1\t2\nP00\t1\tP07\t1\n")
    module = listed(folder(tmp_path / "a"), tmp_path, val_pairs=str(tmp_path / "val.txt"), val_identities=0)
    module.setup("fit")
    assert module.val_overlap == ["P00"]
    (told,) = module.problems["val"]
    assert told.kept
    assert "1 of its 2 people are trained on" in str(told)
    assert len(module.source("val")) == 3  # only what is in pairs


def test_the_same_picture_under_two_names_is_told(tmp_path):
    files = files_of()
    files["P06/P06_0002.png"] = files["P00/P00_0001.png"]  # tested as P06, trained on as P00
    files["P01/P01_0002.png"] = files["P01/P01_0001.png"]  # twice under one name
    module = listed(folder(tmp_path / "a", files), tmp_path, val_identities=0)
    module.source("test")
    assert len(module.problems["test"]) == 1
    text = str(module.problems["test"][0])
    assert "same picture under two names, P00" in text
    assert "P06_0002.png" in text
