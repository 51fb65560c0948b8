"""Take the pictures of the report that the documentation shows, from a finished run.

    python scripts/make_screenshots.py RUN

Writes ``docs/report-1280.png`` and ``docs/report-400.png``: the table of vectors with the first card open, as a
desktop and a phone show it. Needs Chromium.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from browser import Browser, chromium
from PIL import Image

import conceptvec as cv

DOCS = Path(__file__).parents[1] / "docs"
SIZES = {1280: 1300, 400: 1300}  # width and height of each picture
LARGEST = 300_000  # bytes of a picture
OPEN = """(() => {
  document.querySelector(".listing tbody button").click();
  document.querySelector(".listing").previousElementSibling.previousElementSibling.scrollIntoView();
})()"""


def main() -> None:
    """Take the pictures."""
    run, program = Path(sys.argv[1]), chromium()
    if program is None:
        raise SystemExit("no Chromium here: install chromium or google-chrome")
    with tempfile.TemporaryDirectory() as place:
        report = cv.load_results(run).to_html(Path(place) / "report.html", run)
        with Browser(program, Path(place) / "profile") as browser:
            for width, height in SIZES.items():
                browser.look(width, height)
                browser.go(report.as_uri())
                browser.evaluate(OPEN)
                file = DOCS / f"report-{width}.png"
                # A page has few colours: a palette of them halves the file.
                picture = Image.open(io.BytesIO(browser.picture())).convert("RGB")
                picture.quantize(256).save(file, optimize=True)
                size = file.stat().st_size
                print(f"{file.name}: {size:,} bytes")
                if size > LARGEST:
                    raise SystemExit(f"expected at most {LARGEST:,} bytes; make SIZES smaller")


if __name__ == "__main__":
    main()
