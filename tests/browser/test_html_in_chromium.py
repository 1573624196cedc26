"""The HTML report in a real browser: narrow pages, hostile names, sorting, the download.

A probe is added to a copy of the page, with its own hash in the policy; it waits until the page has loaded
and writes what it sees into the document, which the browser then prints.
"""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import collapsemeter as cm
from collapsemeter import CollapseReport
from collapsemeter.dufm import DUFM
from collapsemeter.html import render

PAGES = Path(__file__).parents[1] / "html" / "pages.py"
_spec = importlib.util.spec_from_file_location("pages", PAGES)
assert _spec is not None
assert _spec.loader is not None
pages = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pages)

WIDTHS = (320, 390, 768, 1280)
WATCH = """
window.seen = {refused: [], errors: []};
addEventListener("securitypolicyviolation", (event) =>
  seen.refused.push(event.effectiveDirective + " " + event.blockedURI + " " + event.sample));
addEventListener("error", (event) => seen.errors.push(String(event.message)));
"""
LOOK = """
addEventListener("load", () => setTimeout(() => {
  seen.title = document.title;
  seen.frames = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const inner = frame.contentDocument;
    const page = inner.documentElement;
    seen.frames[frame.width] = {
      width: page.clientWidth, scroll: page.scrollWidth,
      columns: new Set([...inner.querySelectorAll(".card")].map((card) => card.offsetLeft)).size,
      refused: frame.contentWindow.seen.refused, errors: frame.contentWindow.seen.errors,
    };
  }
  const table = document.querySelector("table.sortable");
  const column = () => [...table.tBodies[0].rows].map((row) => row.cells[1].textContent);
  if (table) {
    const header = table.tHead.rows[0].cells[1];
    seen.sorted = [column()];
    for (let i = 0; i < 2; i++) {
      header.querySelector("button").click();
      seen.sorted.push([header.getAttribute("aria-sort"), ...column()]);
    }
  }
  const link = document.querySelector("#download a");
  seen.link = link && [link.download, link.href.slice(0, 5), link.textContent];
  const out = document.createElement("pre");
  out.id = "seen";
  out.textContent = JSON.stringify(seen);
  document.body.append(out);
}, 0));
"""


def chromium() -> str:
    found = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    assert found, "these tests need Chromium: apt-get install chromium"
    return found


def browse(page: Path, profile: Path, *options: str) -> str:
    command = [
        chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--allow-file-access-from-files", "--hide-scrollbars", f"--user-data-dir={profile}",
        "--window-size=1280,900", "--virtual-time-budget=10000", *options, page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


def with_scripts(text: str, first: str, last: str = "", frames: str = "") -> str:
    """Return a copy of a page that watches itself from the start and looks at itself at the end."""
    hashes = "".join(
        f" 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in (first, last)
    )
    (allowed,) = re.findall(r"script-src &#39;sha256-[^;]*", text)
    text = text.replace(allowed, allowed + html.escape(hashes), 1)
    if frames:
        text = text.replace(
            "default-src &#39;none&#39;;", "default-src &#39;none&#39;; frame-src file:;", 1
        )
    text = text.replace("<title>", f"<script>{first}</script><title>", 1)
    return text.replace("</body>", f"{frames}<script>{last}</script></body>", 1)


def look(text: str, folder: Path) -> dict[str, Any]:
    """Open a page, and the same page in frames of several widths; return what was seen."""
    (folder / "inner.html").write_text(with_scripts(text, WATCH), encoding="utf-8")
    frames = "".join(f'<iframe src="inner.html" width="{w}" height="600"></iframe>' for w in WIDTHS)
    outer = folder / "page.html"
    outer.write_text(with_scripts(text, WATCH, LOOK, frames), encoding="utf-8")
    dom = browse(outer, folder / "profile", "--dump-dom")
    (seen,) = re.findall(r'<pre id="seen">(.*?)</pre>', dom, re.DOTALL)
    found: dict[str, Any] = json.loads(html.unescape(seen))
    return found


def hostile() -> str:
    made = pages.report(
        pages.HOSTILE, warnings=pages.HOSTILE, skipped={pages.HOSTILE[0]: pages.HOSTILE[1]}
    )
    return render([(0, made), (1, made)], comparison=cm.compare(made, made), title=pages.HOSTILE[3])


def many_files() -> str:
    files = [{"path": "acts/" + "x" * 200, "bytes": 1, "sha256": "ab" * 32} for _ in range(3)]
    made = CollapseReport({"fc": pages.layer(60, 12, 0.3, head=True)}, provenance={"files": files})
    return render([(0, made)])


def beside_optimum() -> str:
    made = pages.report(classes=4)
    optimum = DUFM(4, 6, 2, feature_decay=1e-3, weight_decay=1e-3).optimum()
    return render([(0, made)], comparison=cm.compare(made, optimum))


MADE = {
    "history": lambda: render(pages.history(), title="LeNet"),
    "hostile names": hostile,
    "many files": many_files,
    "optimum": beside_optimum,
    "many layers": lambda: render(
        [
            (
                0,
                CollapseReport(
                    {f"encoder.{i}.{'x' * 40}": pages.layer(3, 4, 0.5, i) for i in range(24)}
                ),
            )
        ]
    ),
}


@pytest.mark.parametrize("name", MADE)
def test_a_page_fits_every_width_and_runs_its_own_script_only(name: str, tmp_path: Path) -> None:
    seen = look(MADE[name](), tmp_path)
    assert seen["errors"] == []
    assert seen["refused"] == []
    assert seen["title"] != "owned"
    assert set(seen["frames"]) == {str(width) for width in WIDTHS}
    for width, frame in seen["frames"].items():
        assert frame["scroll"] <= frame["width"], f"{name} scrolls sideways at {width} pixels"
        assert (frame["errors"], frame["refused"]) == ([], [])
    assert seen["frames"]["320"]["columns"] == seen["frames"]["390"]["columns"] == 1
    assert seen["frames"]["1280"]["columns"] == 4
    assert seen["link"] == ["report.json", "blob:", "Download the report as JSON"]


def test_classes_are_sorted_by_any_column(tmp_path: Path) -> None:
    counts = [3, 9, 4, 12]
    rows = [[float(c), float(i)] for c, n in enumerate(counts) for i in range(n)]
    labels = [c for c, n in enumerate(counts) for _ in range(n)]
    made = CollapseReport({"fc": cm.measure(cm.ClassMoments.from_batch(rows, labels, 4))})
    before, falling, rising = look(render([(0, made)]), tmp_path)["sorted"]
    assert sorted(before) == ["12", "3", "4", "9"]
    assert falling == ["descending", "12", "9", "4", "3"]
    assert rising == ["ascending", "3", "4", "9", "12"]


def test_the_probe_sees_what_it_is_there_for(tmp_path: Path) -> None:
    """A page that is too wide, throws, and runs a script that the policy does not name."""
    text = render([(0, pages.report())]).replace(
        "<main>",
        '<main><svg width="2000" height="1"></svg><p style="color:red">red</p>'
        '<script>document.title = "owned"</script>',
    )
    broken = text.replace("<h1>", '<h1 onclick="alert(1)">')
    seen = look(broken, tmp_path)
    assert seen["frames"]["390"]["scroll"] >= 2000
    for directive in ("script-src-elem", "style-src-attr"):
        assert any(refused.startswith(f"{directive} inline") for refused in seen["refused"])
    assert seen["title"] != "owned"


def test_the_page_prints(tmp_path: Path) -> None:
    page, target = tmp_path / "page.html", tmp_path / "page.pdf"
    page.write_text(render(pages.history()), encoding="utf-8")
    browse(page, tmp_path / "profile", "--no-pdf-header-footer", f"--print-to-pdf={target}")
    data = target.read_bytes()
    assert data.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", data)) <= 12
