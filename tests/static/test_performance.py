# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/performance.md says what was measured, and nothing else."""

import json

from tests.bench import plot, report

TRACE = """10.0 10.2
7   10.010000 execve("launch", ["qubes-usb-proxy/launch", "usb-export", "2-1"], 0x1) = 0 <0.0>
7   10.050000 write(8</sys/bus/usb/drivers/usb/unbind>, "2-1", 3) = 3 <0.011634>
7   10.070000 poll([{fd=5<socket:[1]>, events=POLLRDHUP}], 2, -1 <unfinished ...>
7   10.150000 <... poll resumed>) = 1 ([{fd=11, revents=POLLIN}]) <0.080000>
7   10.160000 exit_group(0) = ?
"""


def test_the_page_is_what_the_results_make_of_it() -> None:
    text = report.PAGE.read_text()
    assert text == report.page(json.loads(report.RESULTS.read_text()), text)
    assert "attach, SuperSpeed" in text


def test_the_page_shows_the_plot() -> None:
    assert f"({plot.PLOT.name})" in report.PAGE.read_text()
    assert plot.PLOT.read_text().startswith("<svg ")


def test_the_plot_shows_what_was_traced() -> None:
    (process,) = plot.processes(TRACE)
    assert (process.name, round(process.start), round(process.end)) == (
        "usb-export (Python)",
        10,
        160,
    )
    assert [(round(a), round(b), kind) for a, b, kind, _ in process.parts] == [
        (50, 62, "sysfs"),
        (70, 150, "wait"),
    ]
    assert "unbind" in plot.draw(TRACE)


def test_a_label_fits_its_box() -> None:
    """Of 200 ms, 80 have room for a short name, and 30 have none for a long one."""
    drawn = plot.draw(TRACE.replace("0.011634", "0.030000"))
    assert ">poll 80 ms</text>" in drawn
    assert "unbind 30.0 ms</title>" in drawn
    assert "unbind 30 ms</text>" not in drawn
