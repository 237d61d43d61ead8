"""The report page in a real browser: nothing runs over the edge, on a phone or a desk, by day or by night.

Needs Chromium or Chrome, as CHROMIUM names it or on the PATH: apt-get install chromium. The page lies in a frame
of the wanted width inside another page, whose script measures it: the page itself runs none.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rpam_lite.report.page import page
from tests.rpam_lite.finished_run import make_run, report_of

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")
DARK, LIGHT = 0, 1  # as Blink counts preferredColorScheme

MEASURE = """
<!DOCTYPE html><title>measure</title><iframe id="page" style="width:WIDTHpx;height:4000px;border:0"></iframe>
<pre id="found"></pre><script>
const frame = document.getElementById("page");
frame.onload = () => {
  const inner = frame.contentDocument, view = frame.contentWindow, root = inner.documentElement;
  const parts = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = e => { for (; e; e = e.parentElement) {
    const c = parts(view.getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c; }
    return [255, 255, 255]; };
  inner.querySelectorAll("details").forEach(d => { d.open = true; });
  const over = [], faint = [], small = [];
  for (const e of inner.querySelectorAll("body *")) {
    const box = e.getBoundingClientRect();
    if (!box.width || e.closest(".scroll table") || e.closest("defs, title, desc")) continue;
    if (box.right > root.clientWidth + 1) over.push(e.tagName + "." + (e.getAttribute("class") || ""));
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own) continue;
    const style = view.getComputedStyle(e), svg = e.closest("svg[role=img]");
    const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
    const size = scale * parseFloat(style.fontSize);
    if (size < 9) small.push(e.textContent + " " + size);
    if (e.classList.contains("ink")) continue;
    const [a, b] = [light(parts(svg ? style.fill : style.color)), light(behind(svg ? svg.parentElement : e))];
    const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (contrast < 4.5) faint.push(e.tagName + " " + e.textContent.slice(0, 30) + " " + contrast.toFixed(2));
  }
  const paper = view.getComputedStyle(inner.body).backgroundColor;
  const found = {client: root.clientWidth, scroll: root.scrollWidth, over, faint, small, paper,
    ran: view.hasRun === true, texts: inner.body.innerText.length};
  document.getElementById("found").textContent = JSON.stringify(found);
};
frame.srcdoc = SOURCE;
</script>
"""


@pytest.fixture(scope="module")
def browser() -> str:
    named = os.environ.get("CHROMIUM")
    found = named or next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium on the PATH and CHROMIUM names none")
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The widest of pages: many layers, long names, answers without a space, and one that would run a script."""
    folder = tmp_path_factory.mktemp("page")
    hostile = "<script>window.hasRun = true</script><img src=x onerror='hasRun = true'>" + "x" * 300
    report = report_of(*make_run(folder, "row", layers=36, dial=True, say=lambda text: text + hostile))
    return page(report)


def run(browser: str, folder: Path, *options: str) -> str:
    """What headless Chromium prints; it gets a profile of its own, so that nothing of the user is touched."""
    base = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"]
    done = subprocess.run(
        [*base, f"--user-data-dir={folder / 'profile'}", *options],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize("width", [320, 390, 1200])
@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_the_page_fits_and_can_be_read(browser: str, source: str, tmp_path: Path, width: int, scheme: int) -> None:
    text = json.dumps(source).replace("</", "<\\/").replace("<!--", "<\\!--")
    file = tmp_path / "measure.html"
    file.write_text(MEASURE.strip().replace("WIDTH", str(width)).replace("SOURCE", text), encoding="utf-8")
    # An HTML file is dumped when it has loaded, its frame included.
    dumped = run(browser, tmp_path, f"--blink-settings=preferredColorScheme={scheme}", "--dump-dom", file.as_uri())
    match = re.search(r'<pre id="found">(.*?)</pre>', dumped, re.DOTALL)
    assert match is not None, dumped[:500]
    found: dict[str, Any] = json.loads(html.unescape(match[1]))
    assert found["client"] == width
    assert found["scroll"] <= width, found["over"][:5]
    assert not found["over"], found["over"][:5]
    assert not found["faint"], found["faint"][:5]
    assert not found["small"], found["small"][:5]
    assert not found["ran"]
    assert found["texts"] > 3000
    brightness = sum(map(int, re.findall(r"\d+", found["paper"])[:3])) / 3
    assert brightness > 200 if scheme == LIGHT else brightness < 60


def test_a_screenshot_shows_something(browser: str, source: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(source, encoding="utf-8")
    picture = tmp_path / "page.png"
    run(browser, tmp_path, "--window-size=1200,900", f"--screenshot={picture}", (tmp_path / "report.html").as_uri())
    assert picture.stat().st_size > 20_000
