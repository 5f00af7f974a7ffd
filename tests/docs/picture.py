# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the demonstration and draws what it prints: `make demo-picture` writes docs/demo.svg.

The first run builds what the machines boot, which later ones find: such a run is drawn.
"""

import html
import re
import subprocess
import sys
import textwrap
from pathlib import Path

TOP = Path(__file__).parents[2]
PICTURE = TOP / "docs/demo.svg"
COMMAND = "$ make demo"
BUILT = "guest image built"
"""What `tests.lab.lab` says in a first run."""
COLUMNS = 92
CHARACTER, LINE, MARGIN = 8.4, 20, 18
"""In pixels: how wide a character of 14 pixels is in most fonts, and what is around it."""

HEAD = """\
<!-- SPDX-License-Identifier: GPL-2.0-or-later -->
<!-- Written by `make demo-picture`. -->
<svg xmlns="http://www.w3.org/2000/svg" xml:space="preserve" role="img"
     viewBox="0 0 {width} {height}"
     aria-label="what make demo prints">
  <style>
    text {{ font: 14px ui-monospace, Menlo, Consolas, monospace; fill: #e6edf3; white-space: pre }}
    .step {{ fill: #4493f8 }}
    .seen {{ fill: #3fb950 }}
    .time {{ fill: #9198a1 }}
  </style>
  <rect width="{width}" height="{height}" rx="10" fill="#0d1117" stroke="#8c959f"/>
"""
STYLES = (
    ("step", r"^\$|^\[\d/\d\]"),
    ("seen", r"-&gt;"),
    ("time", r"\(\d+\.\d s\)|^ +lab: .*|^building the package$"),
)
"""What is drawn in another colour; in text that is escaped already."""


def picture(output: str) -> str:
    """An SVG of a terminal with this text in it."""
    lines = []
    for line in output.splitlines():
        lines += textwrap.wrap(line, COLUMNS, subsequent_indent="      ") or [""]
    width, height = round(COLUMNS * CHARACTER + 2 * MARGIN), len(lines) * LINE + 2 * MARGIN
    parts = [HEAD.format(width=width, height=height)]
    for number, line in enumerate(lines, start=1):
        shown = html.escape(line, quote=False)
        for name, pattern in STYLES:
            shown = re.sub(pattern, rf'<tspan class="{name}">\g<0></tspan>', shown)
        parts.append(f'  <text x="{MARGIN}" y="{MARGIN + number * LINE - 5}">{shown}</text>\n')
    return "".join([*parts, "</svg>\n"])


def text_of(svg: str) -> str:
    """The text in a picture."""
    lines = re.findall(r"<text[^>]*>(.*)</text>", svg)
    return "".join(html.unescape(re.sub("<[^>]*>", "", line)) + "\n" for line in lines)


def demonstration() -> subprocess.CompletedProcess[str]:
    """Run it once, and print what it prints."""
    done = subprocess.run(
        ["make", "--silent", "demo"], cwd=TOP, stdout=subprocess.PIPE, text=True, check=False
    )
    sys.stdout.write(done.stdout)
    return done


def main() -> int:
    """Give the exit code of the demonstration."""
    done = demonstration()
    if done.returncode == 0 and BUILT in done.stdout:
        done = demonstration()
    if done.returncode == 0:
        PICTURE.write_text(picture(f"{COMMAND}\n{done.stdout}"))
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
