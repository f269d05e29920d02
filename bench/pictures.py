"""Take the pictures of docs/pictures from a report of a real result, in a real browser.

python bench/pictures.py report.html     # of: ./vllm-variants report sm90 -o report.html

Needs playwright and a chromium on PATH, and pngquant to make the files small.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
from pathlib import Path

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
# A picture's name → width, scheme, where it begins and how far it goes down.
SHOTS = {
    "report": (1280, "light", "body", 1690),
    "report-dark": (1280, "dark", "body", 1690),
    "report-features": (1280, "light", "#features", 900),
    "report-checks": (1280, "light", "#checks", 900),
    "report-phone": (400, "light", "body", 1780),
}


def main(report: Path) -> None:
    """Write every picture of `report`."""
    from playwright.sync_api import sync_playwright

    PICTURES.mkdir(exist_ok=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, (width, scheme, start, height) in SHOTS.items():
            context = browser.new_context(
                viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
            )
            page = context.new_page()
            page.goto(report.resolve().as_uri())
            page.wait_for_selector(".chart.drawn svg")
            box = page.locator(start).bounding_box()
            assert box
            clip = {"x": 0, "y": box["y"], "width": width, "height": min(height, box["height"])}
            path = PICTURES / f"{name}.png"
            page.screenshot(path=path, full_page=True, clip=clip)
            subprocess.run(
                ["pngquant", "--force", "--strip", "--speed", "1", "--output", path, "160", path], check=True
            )
            print(path, path.stat().st_size)
        browser.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("report", type=Path, help="the HTML file")
    main(parser.parse_args().report)
