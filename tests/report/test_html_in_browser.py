"""The page in a browser: sorting, filter, lightbox, and that it asks for nothing.

A copy of the page gets a second script, allowed by its hash, that clicks and writes down what it sees; everything else
stays under the page's own policy.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any, TypeAlias

import pytest
from PIL import Image as Pillow

from cvexp.report import Column, Fact, Facts, Figure, Fold, Gallery, Page, Picture, Section, Table
from cvexp.report.html import asset

Drive: TypeAlias = Callable[..., dict[str, Any]]
NAN = float("nan")
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 40 20"><script>alert(1)</script><rect width="9" height="9"/></svg>'


def photo(shade: int = 0) -> bytes:
    buffer = BytesIO()
    Pillow.new("RGB", (8, 6), (shade, 80, 120)).save(buffer, "JPEG")
    return buffer.getvalue()


def page(*parts: Any) -> Page:
    return Page("title", sections=[Section("section", parts)])


SHOWN_NONE = "\N{EN DASH}"
TABLE = Table(
    ["class", Column("AP", ".1f"), "mixed", Column("loss", ".1f", best="min")],
    [
        ("image 10", 0.25, 3, 0.5),
        ("cat", NAN, "often", 0.1),
        ("Image 9", 0.21, None, NAN),  # shown as 0.2, yet after 0.25 and before 0.19 when they fall
        ("dog", 10.0, 20, 0.3),  # as text before 9
        ("<b>ant</b>", None, "Always", 0.2),
        ("bee", 9.0, -1, float("inf")),
        ("zebra", 0.19, NAN, 0.1),
    ],
    "classes",
    total=("mean", 99.0, None, 0.0),
)


def test_a_click_sorts(drive: Drive) -> None:
    seen = drive(
        page(TABLE),
        """
        seen.given = column(0);
        seen.unsorted = head(1).getAttribute("aria-sort");
        seen.falling = sort(1); seen.fallingSays = head(1).getAttribute("aria-sort");
        seen.fallingArrow = getComputedStyle(one("button", head(1)), "::after").content;
        seen.rising = sort(1); seen.risingSays = head(1).getAttribute("aria-sort");
        seen.again = (sort(1), column(0)); seen.againSays = head(1).getAttribute("aria-sort");
        seen.words = sort(0); seen.wordsBack = sort(0);
        seen.mixed = sort(2); seen.mixedBack = sort(2);
        seen.least = sort(3); seen.most = sort(3);
        seen.sorted = all("[aria-sort]").map((h) => h.getAttribute("aria-sort"));
        seen.total = all("tfoot tr > *").map((c) => c.textContent);
        one("button", head(1)).focus(); seen.focused = document.activeElement.textContent;
        """,
    )
    given = [row[0] for row in TABLE.rows]
    none = SHOWN_NONE
    assert seen["given"] == given
    assert (seen["unsorted"], seen["fallingSays"], seen["risingSays"], seen["againSays"]) == (
        "none", "descending", "ascending", "none",
    )  # fmt: skip
    assert seen["fallingArrow"] == '"↓"'
    # As numbers and by all digits; what is absent comes last both ways.
    assert seen["falling"] == ["10.0", "9.0", "0.2", "0.2", "0.2", none, none]
    assert seen["rising"] == ["0.2", "0.2", "0.2", "9.0", "10.0", none, none]
    assert seen["again"] == given
    # As words: capitals aside, 9 before 10.
    assert seen["words"] == ["<b>ant</b>", "bee", "cat", "dog", "Image 9", "image 10", "zebra"]
    assert seen["wordsBack"] == seen["words"][::-1]
    # Numbers before words before nothing, both ways.
    assert seen["mixed"] == ["-1", "3", "20", "Always", "often", none, none]
    assert seen["mixedBack"] == ["20", "3", "-1", "often", "Always", none, none]
    # The least is best, so it comes first; infinity is a number.
    assert seen["least"] == ["0.1", "0.1", "0.2", "0.3", "0.5", "∞", none]
    assert seen["most"] == ["∞", "0.5", "0.3", "0.2", "0.1", "0.1", none]
    assert seen["sorted"] == ["none", "none", "none", "descending"]
    assert seen["total"] == ["mean", "99.0", none, "0.0"]
    assert seen["focused"] == "AP"


def test_equal_rows_keep_their_order(drive: Drive) -> None:
    seen = drive(
        page(Table(["k", "v"], [(str(k), k % 2) for k in range(6)])),
        "sort(1); seen.falling = column(0); sort(1); seen.rising = column(0);",
    )
    assert seen["falling"] == ["1", "3", "5", "0", "2", "4"]
    assert seen["rising"] == ["0", "2", "4", "1", "3", "5"]


def test_sorted_by_all_digits(drive: Drive) -> None:
    rows = [("a", 0.25), ("b", 0.21), ("c", 0.19), ("d", 1e-30), ("e", -5), ("f", 1e30)]
    seen = drive(page(Table(["k", Column("v", ".1f")], rows)), "sort(1); seen.falling = column(0);")
    assert seen["falling"] == ["f", "a", "b", "c", "d", "e"]


def test_filter_and_csv(drive: Drive) -> None:
    rows = [(f"class {k:02d}", k / 10, "Even" if k % 2 == 0 else "odd") for k in range(14)]
    rows[3] = ('a "quoted", <i>name</i>', NAN, "=1+1")
    steps = """
        const box = one("input[type=search]"), says = one("output");
        const type = (word) => { box.value = word; box.dispatchEvent(new Event("input")); return [column(0), says.textContent]; };
        seen.visible = getComputedStyle(one(".tools")).display !== "none";
        seen.before = says.textContent;
        seen.even = type("even");
        sort(1); seen.sorted = column(0);
        seen.two = type("  CLASS 1 odd ");
        seen.markup = type("<I>name");
        let saved, name;
        URL.createObjectURL = (blob) => { saved = blob; return "#"; };
        HTMLAnchorElement.prototype.click = function () { name = this.download; };
        one(".csv").click(); seen.csv = await saved.text(); seen.name = name;
        seen.none = type("zebra");
        seen.cleared = type("");
        """
    seen = drive(page(Table(["name", "v", "kind"], rows, total=("mean", 0.5, None))), steps)
    assert seen["visible"]
    assert seen["before"] == "14 rows"
    assert seen["even"] == [[f"class {k:02d}" for k in range(0, 14, 2)], "7 of 14 rows"]
    assert seen["sorted"] == seen["even"][0][::-1]
    assert seen["two"] == [["class 13", "class 11", "class 01"], "3 of 14 rows"]  # every word, any cell
    assert seen["markup"] == [[rows[3][0]], "1 of 14 rows"]
    assert seen["csv"] == 'name,v,kind\r\n"a ""quoted"", <i>name</i>",,\'=1+1\r\nmean,0.5,\r\n'
    assert seen["name"] == "table.csv"
    assert seen["none"] == [[], "0 of 14 rows"]
    assert seen["cleared"][1] == "14 rows"
    assert len(seen["cleared"][0]) == 14


def test_gallery_and_lightbox(drive: Drive) -> None:
    pictures = [Picture(photo(k), f"image {k}", f"F1 {k}", name=f"n{k}") for k in range(30)]
    steps = """
        const box = one("dialog"), says = () => [one(".count", box).textContent, one("p", box).textContent];
        const cards = () => all(".gallery figure").filter((card) => !card.hidden).length;
        seen.first = cards(); seen.more = one(".more").textContent;
        seen.closed = box.open;
        const third = all(".gallery .zoom")[2];
        third.click();
        seen.open = box.open; seen.third = says(); seen.same = one(".stage img").src === one("img", third).src;
        press("ArrowRight", box); seen.fourth = says();
        press("ArrowLeft", box); press("ArrowLeft", box); press("ArrowLeft", box); press("ArrowLeft", box); seen.last = says();
        press("ArrowRight", box); press("ArrowRight", box); seen.second = says();
        one(".stage img").click(); seen.whole = one(".stage").className;
        let saved, name;
        URL.createObjectURL = (blob) => { saved = blob; return "#"; };
        HTMLAnchorElement.prototype.click = function () { name = this.download; };
        one('[aria-label="save the image"]').click(); seen.name = name; seen.type = saved.type;
        seen.start = [...new Uint8Array(await saved.arrayBuffer())].slice(0, 3);
        one('[aria-label="close"]').click(); box.dispatchEvent(new Event("close"));
        seen.reclosed = box.open; seen.focus = all(".zoom").indexOf(document.activeElement);
        one(".more").click(); seen.all = cards(); seen.moreHidden = one(".more").hidden;
        all(".zoom").at(-1).click(); seen.figure = says();
        seen.arrows = one('[aria-label="next image"]').hidden; seen.vector = one(".stage img").className;
        seen.loaded = (await one(".stage img").decode(), one(".stage img").naturalWidth);
        """
    seen = drive(page(Gallery(pictures), Figure(SVG, "a <curve>")), steps)
    assert (seen["first"], seen["more"]) == (24, "Show 6 more of 30")
    assert (seen["closed"], seen["open"], seen["reclosed"]) == (False, True, False)
    assert seen["third"] == ["3 of 24  ·  F1 2", "image 2"]
    assert seen["same"]
    assert seen["fourth"] == ["4 of 24  ·  F1 3", "image 3"]
    assert seen["last"] == ["24 of 24  ·  F1 23", "image 23"]  # round the beginning
    assert seen["second"] == ["2 of 24  ·  F1 1", "image 1"]  # and back round the end
    assert seen["whole"] == "stage whole"
    assert (seen["name"], seen["type"], seen["start"]) == ("n1.jpg", "image/jpeg", [0xFF, 0xD8, 0xFF])
    assert seen["focus"] == 1
    assert (seen["all"], seen["moreHidden"]) == (30, True)
    assert (seen["figure"], seen["arrows"], seen["vector"]) == (["", "a <curve>"], True, "vector")
    assert seen["loaded"] > 0


def test_long_page_stays_in_its_frame(drive: Drive) -> None:
    """Nothing is wider than the window but what scrolls in its own box; the contents follow; on paper folds open."""
    wide = Table([f"column {k}" for k in range(40)], [["x" * 80, *range(1000, 1039)]] * 30, "c" * 300)
    parts = [wide, Facts([Fact("f" * 200, "v" * 500, code=True)]), Fold("w" * 300, [Facts({"a": 1})])]
    sections = [Section(f"section {k} " + "t" * 150, parts) for k in range(4)]
    steps = """
        const root = document.documentElement;
        seen.excess = root.scrollWidth - root.clientWidth;
        const box = one(".scroll"); seen.scrolls = box.scrollWidth > box.clientWidth && box.scrollHeight > box.clientHeight;
        box.scrollTop = 300; box.scrollLeft = 400;
        const corner = head(0).getBoundingClientRect(), frame = box.getBoundingClientRect();
        seen.sticky = [Math.abs(corner.top - frame.top) < 3, Math.abs(corner.left - frame.left) < 3];
        const current = () => all(".contents [aria-current]").map((link) => link.hash);
        const to = (top) => { scrollTo({ top, behavior: "instant" }); dispatchEvent(new Event("scroll")); return current(); };
        seen.top = to(0); seen.end = to(root.scrollHeight);
        dispatchEvent(new Event("beforeprint")); seen.printed = all("details").map((fold) => fold.open);
        dispatchEvent(new Event("afterprint")); seen.after = all("details").map((fold) => fold.open);
        """
    seen = drive(Page("t" * 200, "s" * 300, sections, "f" * 300), steps)
    assert seen["excess"] == 0
    assert seen["scrolls"]
    assert seen["sticky"] == [True, True]
    assert [len(seen["top"]), len(seen["end"])] == [1, 1]
    assert seen["top"][0].startswith("#section-0")
    assert seen["end"][0].startswith("#section-3")
    assert (seen["printed"], seen["after"]) == ([True] * 4, [False] * 4)


@pytest.mark.parametrize(
    ("smuggled", "refused"),
    [
        ("<img src='https://example.invalid/x.png'>", "img-src"),  # a picture from the network
        ("<script>window.evil = 1</script>", "script-src"),  # a script that is not the page's
        ("<p style='color:red'>x</p>", "style-src"),
        ("<iframe src='https://example.invalid/'></iframe>", "frame-src"),
    ],
)
def test_policy_refuses_what_is_smuggled_in(smuggled: str, refused: str, drive: Drive) -> None:
    """Also shows that the tests above would see a request or an error."""
    seen = drive(page(TABLE), "await pause(200); seen.evil = window.evil ?? 0;", smuggled)
    assert any(refused in word for word in seen["wrong"]), seen
    assert seen["evil"] == 0
    assert seen["console"]


def test_hostile_words_do_nothing(drive: Drive) -> None:
    word = "</script></style><script>evil=1</script><img src=x onerror=evil=1>"
    parts = [Table([word, word], [(word, word)] * 13, word), Figure(SVG, word), Gallery([Picture(photo(), word, word)])]
    steps = (
        "sort(0); one('.gallery .zoom').click(); seen.evil = window.evil ?? 0; seen.text = one('dialog p').textContent;"
    )
    seen = drive(Page(word, word, [Section(word, parts)] * 3, word), steps)
    assert (seen["evil"], seen["text"]) == (0, word)


def test_script_is_of_the_page() -> None:
    """The steps above run beside the page's own script, not instead of it."""
    assert asset("page.js") in page(TABLE).html()
