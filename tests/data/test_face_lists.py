"""LFW's lists: the official files, worked examples, and every way in which a list can be wrong."""

from __future__ import annotations

import pytest

from cvexp.data.face_lists import Face, read_pairs, read_people
from cvexp.types import UserError

VIEW1 = "2\nAnn\t1\t2\nBob\t3\t1\nAnn\t1\tBob\t2\nCy\t1\tAnn\t3\n"
IDS = {Face("Ann", 1): 10, Face("Ann", 2): 11, Face("Ann", 3): 12, Face("Bob", 1): 20, Face("Bob", 2): 21,
       Face("Bob", 3): 22, Face("Cy", 1): 30}  # fmt: skip


def written(tmp_path, text: str | bytes):
    path = tmp_path / "list.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# -- pairs -------------------------------------------------------------------------------------------------------------


def test_one_fold(tmp_path):
    found = read_pairs(written(tmp_path, VIEW1))
    assert found.people == ["Ann", "Bob", "Cy"]
    assert [line.line for line in found.lines] == [2, 3, 4, 5]
    pairs = found.resolve(IDS, "root")
    assert pairs.first.tolist() == [10, 22, 10, 30]
    assert pairs.second.tolist() == [11, 20, 21, 12]
    assert pairs.same.tolist() == [True, True, False, False]
    assert pairs.fold.tolist() == [0, 0, 0, 0]
    assert pairs.name == "list.txt"


def test_folds_follow_one_another(tmp_path):
    text = "2\t1\nAnn\t1\t2\nAnn\t1\tBob\t2\nBob\t1\t2\nCy\t1\tAnn\t3\n"
    pairs = read_pairs(written(tmp_path, text)).resolve(IDS, "root")
    assert pairs.fold.tolist() == [0, 0, 1, 1]
    assert pairs.same.tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    "text",
    [
        VIEW1.replace("\t", " "),  # spaces
        VIEW1.replace("\n", "\r\n"),  # another system
        "\ufeff" + VIEW1,  # an editor's mark
        "\n" + VIEW1.replace("\n", "\n\n"),  # blank lines
        VIEW1.rstrip("\n"),  # no end of line at the end
    ],
)
def test_forms_of_the_same_list(tmp_path, text):
    pairs = read_pairs(written(tmp_path, text)).resolve(IDS, "root")
    assert pairs.first.tolist() == [10, 22, 10, 30]


def test_names_with_spaces_between_tabs(tmp_path):
    found = read_pairs(written(tmp_path, "1\nAnn Lee\t1\t2\nAnn Lee\t1\tBob\t1\n"))
    assert found.people == ["Ann Lee", "Bob"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the list is empty"),
        ("\n  \n", "the list is empty"),
        (b"\xff\xfe\x00", r"not text \(UTF-8\)"),
        ("Ann\t1\t2\n", r"line 1: 'Ann\\t1\\t2': not the number of pairs.*Fix: begin with"),  # no first line
        ("0\n", "line 1: '0': not the number of pairs"),
        ("-1\nAnn\t1\t2\n", "line 1: '-1': not the number"),
        ("1\t2\t3\n", "line 1: .*not the number"),
        ("99999999999999\n", "line 1: .*not the number"),  # no int of a sane size
        ("1\nAnn\t1\t2\n", r"1 pairs, the first line says 2 \(1 fold\(s\) of 1 \+ 1\)"),  # too few
        (VIEW1 + "Ann\t2\tBob\t3\n", "line 6: .*more pairs than the 4 of the first line"),
        (VIEW1.replace("2\n", "1\n", 1), r"line 3: .*same pair where pair 2 of 2 must be a different one.*says 1 of"),
        ("2\nAnn\t1\t2\nAnn\t1\tBob\t2\n", "line 3: .*different pair where pair 2 of 4 must be a same one"),
        ("1\nAnn\t1\n", "line 2: .*neither 'name i j' nor"),
        ("1\nAnn\t1\t2\t3\t4\n", "line 2: .*neither 'name i j' nor"),
        ("1\nAnn\tone\t2\n", r"line 2: 'Ann\\tone\\t2': .*whole numbers"),
        ("1\nAnn\t-1\t2\n", "line 2: .*whole numbers"),
        ("1\nAnn\t1.0\t2\n", "line 2: .*whole numbers"),
        ("1\nAnn\t\u0661\t2\n", "line 2: .*whole numbers"),  # a digit, but not one of ours
        ("1\nAnn\t1\t1\n", "line 2: .*image Ann_0001 is paired with itself"),
        ("1\nAnn\t1\t2\nAnn\t1\tAnn\t3\n", "line 3: .*'different' people are both Ann"),
        ("2\nAnn\t1\t2\nAnn\t2\t1\n", "line 3: .*the pair of line 2 again"),
        ("1\n\t1\t2\n", "line 2: .*neither"),  # no name
    ],
)
def test_refused_pairs(tmp_path, text, words):
    path = written(tmp_path, text)
    with pytest.raises(UserError, match=words) as error:
        read_pairs(path)
    assert str(path) in str(error.value)
    assert "Fix: " in str(error.value)


def test_a_missing_list_and_a_folder_are_no_lists(tmp_path):
    with pytest.raises(UserError, match=r"absent.txt: the list cannot be read \(No such file.*Fix"):
        read_pairs(tmp_path / "absent.txt")
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory"):
        read_people(tmp_path)


def test_a_missing_image_names_list_line_and_path(tmp_path):
    found = read_pairs(written(tmp_path, VIEW1))
    ids = {face: i for face, i in IDS.items() if face != Face("Bob", 1)}
    with pytest.raises(
        UserError, match=r"list.txt: line 3: image Bob_0001 is missing, expected faces/Bob/Bob_0001.jpg"
    ):
        found.resolve(ids, "faces")


# -- people ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "people"),
    [
        ("Ann\nBob\n", {"Ann": None, "Bob": None}),
        ("Ann\t4\nBob\n", {"Ann": 4, "Bob": None}),  # with and without the number of images
        ("2\nAnn\t4\nBob\t1\n", {"Ann": 4, "Bob": 1}),  # with the number of names
        ("Bob\nAnn\n", {"Bob": None, "Ann": None}),
        ("Ann 4\n", {"Ann": 4}),  # spaces
        ("0000045\n0000099\n", {"0000045": None, "0000099": None}),  # people who are numbered: no count
        ("2\n0000045\n12\n", {"0000045": None, "12": None}),  # numbered people after a count
        ("Jose\u0301\n", {"Jos\u00e9": None}),  # an accent apart from its letter, as macOS writes it
    ],
)
def test_people(tmp_path, text, people):
    assert read_people(written(tmp_path, text)) == people


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        (b"\xff", "not text"),
        ("Ann\nAnn\n", "line 2: 'Ann': Ann is in the list already"),
        ("Ann\tmany\n", "line 1: .*neither 'name' nor 'name<TAB>number of images'"),
        ("Ann\t1\t2\n", "line 1: .*neither"),  # a list of pairs
        ("3\nAnn\nBob\n", "2 names, the first line says 3"),
        ("0\nAnn\n", "1 names, the first line says 0"),
    ],
)
def test_refused_people(tmp_path, text, words):
    path = written(tmp_path, text)
    with pytest.raises(UserError, match=words) as error:
        read_people(path)
    assert str(path) in str(error.value)
    assert "Fix: " in str(error.value)


# -- the official files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "same", "folds", "people"),
    [("pairs.txt", 3000, 10, None), ("pairsDevTrain.txt", 1100, 1, 2132), ("pairsDevTest.txt", 500, 1, 963)],
)
def test_official_pairs(data_root, name, same, folds, people):
    found = read_pairs(data_root / "lfw" / name)
    assert len(found.lines) == 2 * same
    assert sum(line.same for line in found.lines) == same
    assert {line.fold for line in found.lines} == set(range(folds))
    per_fold = [sum(line.fold == fold for line in found.lines) for fold in range(folds)]
    assert per_fold == [2 * same // folds] * folds
    assert people in (None, len(found.people))
    if folds > 1:  # folds share nobody
        members = [{face.person for line in found.lines if line.fold == f for face in line[:2]} for f in range(folds)]
        assert sum(map(len, members)) == len(found.people)


def test_official_people(data_root):
    everybody = read_people(data_root / "lfw" / "lfw-names.txt")
    kept = read_people(data_root / "lfw" / "people_not_in_pairsDevTest.txt")
    assert (len(everybody), sum(everybody.values())) == (5749, 13233)
    assert (len(kept), sum(kept.values())) == (4786, 10492)
    assert sum(count for count in kept.values() if count > 1) == 6968
