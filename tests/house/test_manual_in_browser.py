"""The built manual in a browser: nothing comes from elsewhere, formulas are set, pages fit a phone,
and text is legible by day and by night.

It looks at docs/_build/html, after ``make -C docs html``, and with FASTOPT_TEST_BROWSER set alone,
since it opens every page.
"""

from __future__ import annotations

import html
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from helpers.browser import REQUIRED, browser

BUILT = Path(__file__).parents[2] / "docs" / "_build" / "html"
FRAMES = """<!doctype html><meta charset="utf-8"><body><pre id="written"></pre><script>
const wait = (ms) => new Promise((done) => setTimeout(done, ms));

// Colours as [red, green, blue, opacity]; contrast as WCAG 2 has it, from 1 to 21.
function colour(text) {
  const numbers = text.match(/[\\d.]+/g).map(Number);
  const scale = text.startsWith("color(") ? 255 : 1;
  return [...numbers.slice(0, 3).map((one) => one * scale), numbers[3] ?? 1];
}
function over(upper, lower) {
  return [0, 1, 2].map((k) => upper[k] * upper[3] + lower[k] * (1 - upper[3])).concat(1);
}
function luminance(of) {
  const linear = (one) => one <= 0.03928 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4;
  const [r, g, b] = of.slice(0, 3).map((one) => linear(one / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function contrast(one, other) {
  const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (light + 0.05) / (dark + 0.05);
}
function ground(inside, element) {
  if (!element) return [255, 255, 255, 1];
  const own = colour(inside.getComputedStyle(element).backgroundColor);
  return own[3] === 1 ? own : over(own, ground(inside, element.parentElement));
}
function texts(inside) {  // elements with text of their own that can be seen
  const all = [...inside.document.body.querySelectorAll("*")];
  return all.filter((one) =>
    !one.closest("script, style, noscript, mjx-container") &&
    [...one.childNodes].some((node) => node.nodeType === 3 && node.nodeValue.trim()) &&
    one.checkVisibility({opacityProperty: true, visibilityProperty: true}));
}
function faint(inside, theme) {
  inside.document.documentElement.dataset.theme = theme;
  const found = texts(inside).filter((one) => {
    const style = inside.getComputedStyle(one), back = ground(inside, one);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    return contrast(over(colour(style.color), back), back) < (large ? 3 : 4.5);
  });
  return found.map((one) => `${theme}: ${one.textContent.trim().slice(0, 40)}`);
}
function cut(inside) {  // titles that the theme hides a part of, without the dots that say so
  const boxes = inside.document.querySelectorAll(".prev-next-area a");
  const beyond = (box) => [...box.querySelectorAll("p")].some((one) => {
    const range = inside.document.createRange();
    range.selectNodeContents(one);
    const [text, frame] = [range, box].map((it) => it.getBoundingClientRect());
    return text.left < frame.left - 1 || text.right > frame.right + 1;
  });
  return [...boxes].filter(beyond).map((one) => one.textContent.trim());
}
async function look(page) {
  const frame = document.createElement("iframe");
  frame.style.width = "WIDTHpx";
  frame.style.height = "800px";
  frame.src = page;
  await new Promise((done) => { frame.onload = done; document.body.append(frame); });
  const inside = frame.contentWindow;
  for (let k = 0; k < 50 && inside.document.querySelector(".math:not(.done)"); ++k) {
    if (inside.MathJax?.startup?.promise) { await inside.MathJax.startup.promise; break; }
    await wait(100);
  }
  const still = inside.document.createElement("style");
  still.textContent = "* {transition: none !important}";
  inside.document.head.append(still);
  const column = inside.document.querySelector(".bd-article-container");
  const images = [...inside.document.images];
  images.forEach((one) => { one.loading = "eager"; });
  for (let k = 0; k < 50 && images.some((one) => !one.complete); ++k) await wait(100);
  const found = {
    page,
    width: inside.document.documentElement.scrollWidth,
    beyond: column ? column.scrollWidth - column.clientWidth : 0,
    broken: images.filter((one) => !one.naturalWidth).map((one) => one.src),
    cut: cut(inside),
    faint: [...faint(inside, "light"), ...faint(inside, "dark")],
    math: inside.document.querySelectorAll(".math").length,
    set: inside.document.querySelectorAll("mjx-container").length,
    wrong: inside.document.querySelectorAll("[data-mjx-error], mjx-merror").length,
    loads: inside.performance.getEntriesByType("resource").map((one) => one.name),
  };
  frame.remove();
  return found;
}
(async () => {
  const found = [];
  for (const page of PAGES) found.push(await look(page));
  document.getElementById("written").textContent = JSON.stringify(found);
})();
</script></body>"""


class Handler(SimpleHTTPRequestHandler):
    """Serves the manual, and a page that opens all others in frames of a width."""

    def do_GET(self) -> None:
        if not self.path.startswith("/frames-"):
            super().do_GET()
            return
        pages = [f"/{path.relative_to(BUILT)}" for path in sorted(BUILT.rglob("*.html"))]
        text = FRAMES.replace("WIDTH", self.path.removeprefix("/frames-"))
        text = text.replace("PAGES", json.dumps(pages))
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    if not REQUIRED:
        pytest.skip("opens every page of the manual: with FASTOPT_TEST_BROWSER set")
    if not (BUILT / "index.html").exists():
        pytest.fail("FASTOPT_TEST_BROWSER is set, and the manual is not built: make -C docs html")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(BUILT)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("width", [360, 800])
def test_pages_load_nothing_from_elsewhere_set_their_formulas_fit_and_are_legible(
    address: str, width: int, tmp_path: Path
) -> None:
    made = subprocess.run(
        [
            browser(),
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1700,1000"),
            f"--user-data-dir={tmp_path}",
            *("--virtual-time-budget=600000", "--dump-dom", f"{address}/frames-{width}"),
        ],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    found = re.search(r'<pre id="written">(\[.*?)</pre>', made.stdout, re.DOTALL)
    assert found, f"the browser wrote no page (exit {made.returncode}): {made.stderr[-2000:]}"
    seen = json.loads(html.unescape(found[1]))
    assert len(seen) > 100
    assert sum(page["math"] for page in seen) > 200
    for page in seen:
        assert page["width"] <= width, page["page"]
        assert page["beyond"] <= 0, page["page"]  # the column scrolls sideways as a page would
        assert (page["broken"], page["cut"]) == ([], []), page["page"]
        if "explorer" not in page["page"]:  # it has a test of its own, and other switches
            assert page["faint"] == [], page["page"]
        assert (page["set"], page["wrong"]) == (page["math"], 0), page["page"]
        outside = [one for one in page["loads"] if not one.startswith((address, "data:"))]
        assert not outside, page["page"]
