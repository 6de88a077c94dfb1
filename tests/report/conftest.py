"""A page in headless Chromium: a copy gets a second script, allowed by its hash, that clicks and writes down what it sees."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from cvexp.report import Page
from cvexp.report.html import digest

Drive: TypeAlias = Callable[..., dict[str, Any]]
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--no-first-run", "--enable-logging=stderr", "--virtual-time-budget=3000", "--window-size=1200,900",
)  # fmt: skip

# Before the page: what goes wrong. After it: the test's steps, whose result is written where --dump-dom shows it.
WATCH = """
window.wrong = [];
addEventListener("error", (event) => wrong.push("error: " + event.message), true);
addEventListener("unhandledrejection", (event) => wrong.push("rejection: " + event.reason));
addEventListener("securitypolicyviolation", (event) => wrong.push("refused: " + event.violatedDirective));
"""
STEPS = """
addEventListener("load", async () => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const one = (selector, within = document) => within.querySelector(selector);
  const press = (key, target) => target.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  const pause = (ms) => new Promise((done) => setTimeout(done, ms));
  const column = (k, table = one("table")) =>
    all("tbody tr", table).filter((row) => !row.hidden).map((row) => row.cells[k].textContent);
  const head = (k, table = one("table")) => table.tHead.rows[0].cells[k];
  const sort = (k, table = one("table")) => { one("button", head(k, table)).click(); return column(k, table); };
  const seen = {};
  try { STEPS_HERE } catch (error) { wrong.push("steps: " + error); }
  await pause(50);
  seen.wrong = wrong;
  seen.requests = performance.getEntriesByType("resource").map((entry) => entry.name).filter((n) => !n.startsWith("data:"));
  const result = document.createElement("pre");
  result.id = "_result";
  result.textContent = JSON.stringify(seen);
  document.body.append(result);
});
"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")]
    if not any(found):
        pytest.skip("no chromium or google-chrome on the PATH")
    return next(filter(None, found))


@pytest.fixture
def drive(browser: str, tmp_path: Path) -> Drive:
    """``drive(page, steps)``: what the steps wrote into ``seen``, after the page proved to be without error or request."""

    def driven(page: Page, steps: str, smuggled: str = "") -> dict[str, Any]:
        path = tmp_path / "page.html"
        page.write(path)
        last = STEPS.replace("STEPS_HERE", steps)
        text = path.read_text(encoding="utf-8")
        text = text.replace("script-src ", f"script-src '{digest(WATCH)}' '{digest(last)}' ", 1)
        text = text.replace("<title>", f"<script>{WATCH}</script><title>", 1)
        text = text.replace("</body>", f"{smuggled}<script>{last}</script></body>")
        path.write_text(text, encoding="utf-8")
        done = subprocess.run(
            [browser, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        result = re.search(r'<pre id="_result">(.*?)</pre>', done.stdout, re.DOTALL)
        assert result, f"the steps did not end: {done.stderr[-2000:]}"
        seen: dict[str, Any] = json.loads(html.unescape(result[1]))
        seen["console"] = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        if not smuggled:
            assert (seen["wrong"], seen["requests"], seen["console"]) == ([], [], [])
        return seen

    return driven
