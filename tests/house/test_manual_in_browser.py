"""The built manual in a browser: nothing comes from elsewhere, formulas are set, pages fit a phone.

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
  const found = {
    page,
    width: inside.document.documentElement.scrollWidth,
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
def test_pages_load_nothing_from_elsewhere_set_their_formulas_and_fit(
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
        assert (page["set"], page["wrong"]) == (page["math"], 0), page["page"]
        outside = [one for one in page["loads"] if not one.startswith((address, "data:"))]
        assert not outside, page["page"]
