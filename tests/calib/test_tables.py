"""The table printer: never cut in logs, fitted to a terminal, HTML in notebooks."""

import os
import sys

from calib import tables

LONG = "bert/encoder/" + "layer/" * 60 + "[0]"


def example():
    return tables.build("1 site [a]", ("site", "value"), [(LONG, "1.5")], left=("site",))


def test_a_log_line_holds_a_long_address_whole():
    text = tables.render(tables.build("t", ("site",), [(LONG[-200:],)], left=("site",)))
    assert LONG[-200:] in text and "t" in text.splitlines()[0]


def test_text_that_looks_like_markup_is_printed_as_it_is():
    text = tables.render(example(), width=600)
    assert "1 site [a]" in text and LONG in text


def test_a_terminal_gets_lines_of_its_width_with_nothing_cut(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((50, 20)))
    lines = tables.render(example()).splitlines()
    assert max(map(len, lines)) <= 50
    cells = "".join(line.split("│")[1].strip() for line in lines if line.startswith("│"))
    assert cells == LONG


def test_html_escapes_the_text():
    assert "a &lt; b" in tables.as_html("a < b") and tables.as_html("x").startswith("<pre")
