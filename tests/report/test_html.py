"""The page as text: nothing from outside, nothing unescaped, every tag closed. What it does is in test_html_in_browser."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from cvexp.report import (
    Column,
    Fact,
    Facts,
    Figure,
    Fold,
    Gallery,
    KeyFigure,
    KeyFigures,
    Link,
    Notes,
    Page,
    Part,
    Picture,
    Section,
    Table,
    Text,
)
from cvexp.report.html import asset, digest
from cvexp.report.markup import Ids, Image, Value, escape, paragraphs
from cvexp.types import UserError

NAN = float("nan")
SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 40.4 20"><script>alert(1)</script></svg>'
HOSTILE = """</script></style></title>--><script>alert(1)</script><img src=x onerror="alert(1)"> & ' " `"""
VOID = {"meta", "link", "img", "input", "br", "hr"}


def picture(kind: str = "PNG", size: tuple[int, int] = (6, 4)) -> bytes:
    buffer = BytesIO()
    Pillow.new("RGB", size, (200, 30, 30)).save(buffer, kind)
    return buffer.getvalue()


class Tree(HTMLParser):
    """Elements, attributes and texts of a page; a tag that is not closed where it should be is an error."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"an attribute twice in <{tag}>: {names}"
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1:] == [tag], f"</{tag}> within {self.open}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def everything(word: str) -> Page:
    """A page with each kind of part, and this word wherever a caller may put one."""
    table = Table(
        [Column(word, meaning=word), word], [(word, 1.5), (Link(word, anchor="here"), None)], word, total=(word, word)
    )
    return Page(
        word,
        word,
        [
            Section(word, [Text(word), Notes([word, word], "warn", word), Fold(word, [Facts({word: word})])]),
            Section(
                word, [KeyFigures([KeyFigure(word, word, word, note=word)]), Facts([Fact(word, word, word, True)])]
            ),
            Section(word, [table, Section(word, [Text(word)]), Section(word)], anchor="here"),
            Section(word, [Figure(picture(), word, word, word), Figure(SVG, word, half=True)]),
            Section(
                word, [Gallery([Picture(picture("JPEG"), word, word, "bad", word)], word), Gallery([], word, word)]
            ),
        ],
        word,
    )


def of(*parts: Part) -> str:
    """One section's text, without style and script."""
    text = Page("t", "", [Section("s", parts)]).html()
    return text[text.index("<main") : text.index("</main>")]


# --- the whole page --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word",
    [
        "",  # nothing
        "cat",
        HOSTILE,  # leaves every element it stands in, if it can
        "没有 ünï \u202egnp.exe \ud800 \x00\x1b[31m",  # other scripts, direction marks, half a surrogate, control characters
        "line\n\nline",
    ],
)
def test_any_word_leaves_a_valid_page(word: str) -> None:
    text = everything(word).html()
    text.encode("utf-8")
    tree, plain = Tree(text), Tree(everything("cat").html())
    # The same elements with the same attributes' names, whatever the words are: none is made by a word.
    kinds = [tag for tag, _ in tree.elements if tag not in {"p", "code"}]
    if word:
        assert kinds == [tag for tag, _ in plain.elements if tag not in {"p", "code"}]
    assert not any(name.startswith("on") for _, attributes in tree.elements for name in attributes)
    ids = [attributes["id"] for _, attributes in tree.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) >= 8
    assert {a["href"][1:] for a in tree.all("a") if a["href"].startswith("#")} <= set(ids)


def test_hostile_words_are_shown_as_they_are() -> None:
    tree = Tree(everything(HOSTILE).html())
    assert len(tree.all("script")) == len(tree.all("style")) == 1
    assert tree.texts.count(HOSTILE) >= 15
    assert tree.all("img")[0]["alt"] == HOSTILE


def test_nothing_comes_from_outside() -> None:
    text = everything("cat").html()
    tree = Tree(text)
    addresses = [
        a[k] for _, a in tree.elements for k in ("src", "href", "data", "action", "srcset", "poster") if k in a
    ]
    assert len(addresses) > 10
    assert [a for a in addresses if not a.startswith(("#", "data:"))] == []
    assert "//" not in re.sub(
        r"(?m)^\s*//.*$|base64,[\w+/=]+|'sha256-[\w+/=]+'", "", text
    )  # comments of the script aside
    assert "url(" not in text
    assert "@import" not in text
    assert all("style" not in attributes for _, attributes in tree.elements), "the policy lets no style attribute work"


def test_policy_allows_this_style_and_script_alone() -> None:
    text = everything("cat").html()
    policy = next(m["content"] for m in Tree(text).all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    style, script = (re.search(f"<{t}>(.*?)</{t}>", text, re.DOTALL)[1] for t in ("style", "script"))  # type: ignore[index]
    assert rules == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": f"'{digest(style)}'",
        "script-src": f"'{digest(script)}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert text.index("Content-Security-Policy") < text.index("<style>")
    assert digest("") == "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="  # the well-known hash of nothing


@pytest.mark.parametrize("name", ["page.css", "page.js"])
def test_assets_cannot_end_their_element(name: str) -> None:
    assert asset(name)
    assert re.search(r"</(?:script|style)|<!--", asset(name)) is None


@pytest.mark.parametrize(
    ("count", "contents"),
    [
        (0, False),  # a page without sections
        (2, False),
        (3, True),  # long enough to be lost in
    ],
)
def test_long_pages_have_contents(count: int, contents: bool) -> None:
    tree = Tree(Page("t", sections=[Section("same title")] * count).html())
    assert bool(tree.all("nav")) is contents
    ids = [s["id"] for s in tree.all("section")]
    assert ids == ["same-title", "same-title-2", "same-title-3"][:count]
    assert [a["href"] for a in tree.all("a") if "class" not in a] == [f"#{i}" for i in ids if contents]


def test_same_page_gives_same_text() -> None:
    assert everything("cat").html() == everything("cat").html()


@pytest.mark.parametrize(
    "part",
    [
        Text(""),
        Notes([]),
        KeyFigures([]),
        Facts({}),
        Facts([]),
        Table([], []),
        Table(["a"], []),
        Gallery([]),
        Fold("f", []),
    ],
    ids=lambda part: repr(part)[:30],
)
def test_empty_parts_are_valid(part: Part) -> None:
    Tree(of(part) + "</main>")


# --- text and numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "form", "expected"),
    [
        (None, ".3f", Value("–", absent=True)),  # noqa: RUF001
        (NAN, ".3f", Value("–", absent=True)),  # noqa: RUF001
        (np.float32("nan"), "", Value("–", absent=True)),  # noqa: RUF001
        ("", "", Value("–", absent=True)),  # noqa: RUF001
        ("cat", ".3f", Value("cat")),  # a format is of numbers
        ("12", "", Value("12")),  # text that looks like a number is text
        (True, ".3f", Value("yes")),  # not 1.000
        (np.bool_(False), "", Value("no")),
        (0, "", Value("0", 0.0)),  # zero is a number
        (-0.25, ".1%", Value("-25.0%", -0.25)),
        (12345, "", Value("12,345", 12345.0)),
        (0.123456, "", Value("0.1235", 0.123456)),  # sorted by all its digits
        (1 / 3, ".3f", Value("0.333", 1 / 3)),
        (np.int64(1500), "", Value("1,500", 1500.0)),
        (np.float32(0.5), ".2f", Value("0.50", 0.5)),
        (torch.tensor(2.5), ".1f", Value("2.5", 2.5)),
        (float("inf"), ".3f", Value("∞", float("inf"))),
        (float("-inf"), "", Value("-∞", float("-inf"))),
    ],
)
def test_values(value: Any, form: str, expected: Value) -> None:
    assert Value.of(value, form) == expected


def test_format_that_is_none() -> None:
    with pytest.raises(UserError, match=r"cannot write 0\.5 in the format 'd'.*Fix: "):
        Value.of(0.5, "d")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("a `b<c` d", "<p>a <code>b&lt;c</code> d</p>"),
        ("one\n\n\n two", "<p>one</p><p>two</p>"),
        ("a ` alone", "<p>a ` alone</p>"),
        ("`<b>`", "<p><code>&lt;b&gt;</code></p>"),
    ],
)
def test_paragraphs(text: str, expected: str) -> None:
    assert paragraphs(text) == expected


def test_escape() -> None:
    assert escape("<a href=\"x\" b='&amp;'>\x00\ud800\t\n") == (
        "&lt;a href=&quot;x&quot; b=&#x27;&amp;amp;&#x27;&gt;\ufffd?\t\n"
    )


def test_ids_are_given_once() -> None:
    ids = Ids()
    titles = ["Worst images", "worst  IMAGES!", "没有", "", "worst-images-2", "<script>"]
    assert [ids.new(t) for t in titles] == [
        "worst-images", "worst-images-2", "part", "part-2", "worst-images-2-2", "script",
    ]  # fmt: skip


# --- tables ----------------------------------------------------------------------------------------------------------


def cells(text: str) -> list[str]:
    return re.findall(r"<(?:td|th scope=\"row\")([^>]*>.*?)</t[dh]>", text)


def test_cells_carry_what_they_are_sorted_by() -> None:
    text = of(Table(["name", Column("AP", ".2f")], [("cat", 0.123), ("dog", NAN), ("cow", float("-inf"))]))
    assert cells(text) == [
        ">cat", ' class="num" data-v="0.123">0.12',
        ">dog", ' class="num absent" data-absent>–',  # noqa: RUF001
        ">cow", ' class="num" data-v="-Infinity">-∞',
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("best", "numbers", "marked"),
    [
        ("max", [0.1, 0.7, 0.3], [1]),
        ("min", [0.1, 0.7, 0.3], [0]),
        ("max", [0.7, NAN, 0.7], [0, 2]),  # as good as each other
        ("max", [NAN, 0.2, None], []),  # alone: nothing to be better than
        (None, [0.1, 0.7], []),
        ("max", [NAN, None], []),
        ("min", [], []),
    ],
)
def test_best_is_marked(best: Any, numbers: list[float], marked: list[int]) -> None:
    text = of(Table(["k", Column("v", best=best)], [(str(k), v) for k, v in enumerate(numbers)], total=("mean", 9.0)))
    assert [k for k, cell in enumerate(cells(text)[1::2]) if "best" in cell.split(">")[0]] == marked


@pytest.mark.parametrize(
    ("number", "full", "width"),
    [(0.25, 1.0, "25.00%"), (3, 2, "100.00%"), (-1, 2, "0.00%"), (float("inf"), 1, "100.00%")],
)
def test_bars(number: float, full: float, width: str) -> None:
    assert re.findall(r'<rect width="([^"]+)"', of(Table([Column("v", bar=full)], [(number,), (None,)]))) == [width]


def test_filter_box_is_for_long_tables() -> None:
    assert ['type="search"' in of(Table(["a"], [(k,) for k in range(n)])) for n in (0, 12, 13)] == [False, False, True]


def test_row_of_wrong_length() -> None:
    with pytest.raises(UserError, match=r"table 'AP': the row \['cat', 1\] has 2 cells for 3 columns\. Fix: "):
        of(Table(["a", "b", "c"], [("dog", 1, 2), ("cat", 1)], "AP"))
    with pytest.raises(UserError, match="has 1 cells for 2 columns"):
        of(Table(["a", "b"], [], total=("mean",)))


@pytest.mark.parametrize(
    ("link", "address"),
    [
        (Link("a", "../run 3/report.html"), "../run%203/report.html"),
        (Link("a", "r#1?.html", "classes"), "r%231%3F.html#classes"),  # the file's name has these signs
        (Link("a", anchor="s"), "#s"),
        (Link("a", 'x" onclick="y'), "x%22%20onclick%3D%22y"),
    ],
)
def test_links(link: Link, address: str) -> None:
    tree = Tree(of(Table(["run"], [(link,)])) + "</main>")
    assert tree.all("a")[-1]["href"] == address


@pytest.mark.parametrize(
    "path", ["https://example.org", "//example.org", "JavaScript:alert(1)", "/etc/x", "C:\\x", "data:,x"]
)
def test_links_stay_beside_the_page(path: str) -> None:
    with pytest.raises(UserError, match="Fix: give a path relative"):
        of(Table(["run"], [(Link("a", path),)]))


def test_link_to_nowhere() -> None:
    with pytest.raises(UserError, match=r"'#worst'.*it has s, table\. Fix: "):
        of(Table(["run"], [(Link("a", anchor="worst"),)]))


# --- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "kind", "size"),
    [
        (picture("PNG"), "png", (6, 4)),
        (picture("JPEG", (3, 9)), "jpeg", (3, 9)),
        (SVG, "svg", (40, 20)),
        (b"\xef\xbb\xbf\n<svg/>", "svg", (0, 0)),  # says nothing of its size
        (
            b"<svg width='72pt' height='36pt' viewBox='0 0 72 36'/>",
            "svg",
            (96, 48),
        ),  # points, as Matplotlib writes them
        (b"<!-- made by --><svg viewBox='0,0,7,8'></svg>", "svg", (7, 8)),
    ],
)
def test_images(data: bytes, kind: str, size: tuple[int, int], tmp_path: Path) -> None:
    image = Image.read(data)
    assert (image.kind, image.width, image.height) == (kind, *size)
    assert base64.b64decode(image.uri.split("base64,")[1]) == data
    path = tmp_path / "figure.bin"  # the content counts, not the name
    path.write_bytes(data)
    assert Image.read(path) == Image.read(str(path)) == image


@pytest.mark.parametrize(
    "data",
    [b"", b"GIF89a", b"<html></html>", b"<svg", b"not a picture", picture()[:20], b"<!DOCTYPE svg>"],
)
def test_no_image(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(data)
    for source in (data, path):
        name = "given as bytes" if isinstance(source, bytes) else "broken.png"
        with pytest.raises(UserError, match=rf"(?s){name}.*no picture.*Fix: "):
            of(Figure(source))


def test_missing_image(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.png cannot be read.*Fix: "):
        of(Gallery([Picture(tmp_path / "absent.png")]))


def test_svg_is_an_image_so_that_its_script_is_dead() -> None:
    tree = Tree(of(Figure(SVG, "curve")) + "</main>")
    assert tree.all("script") == []
    assert tree.all("img")[0]["src"].startswith("data:image/svg+xml;base64,")
    assert tree.all("img")[0]["alt"] == "curve"


def test_saved_figure_is_named_as_its_file(tmp_path: Path) -> None:
    path = tmp_path / "pr_curves.svg"
    path.write_bytes(SVG)
    pictures = Gallery([Picture(picture("JPEG"), name="a.b/c")])
    names = re.findall(r'data-name="([^"]+)"', of(Figure(path), Figure(SVG), Figure(picture(), name="x"), pictures))
    assert names == ["pr_curves.svg", "figure.svg", "x.png", "a.b/c.jpg"]


# --- the file --------------------------------------------------------------------------------------------------------


def test_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "report.html"
    size = everything("没有 \ud800").write(path)
    assert size == path.stat().st_size > 10_000
    assert path.read_text(encoding="utf-8") == everything("没有 \ud800").html()
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_former_page_stays_where_a_new_one_fails(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("former")
    with pytest.raises(UserError):
        Page("t", sections=[Section("s", [Figure(b"broken")])]).write(path)
    assert path.read_text() == "former"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["file/report.html", "folder"])
def test_unwritable(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").write_text("")
    with pytest.raises(UserError, match=r"cannot be written.*Fix: "):
        Page("t").write(tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]
