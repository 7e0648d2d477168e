"""Bars on a screen move, and those in a file have few lines."""

import io
import sys
import time

import pytest

from tmixture.progress import progress_bar


class Console(io.StringIO):
    def __init__(self, on_screen):
        super().__init__()
        self.on_screen = on_screen

    def isatty(self):
        return self.on_screen


@pytest.mark.parametrize("on_screen", [True, False])
def test_a_bar_in_a_file_has_few_lines(on_screen, monkeypatch):
    console = Console(on_screen)
    monkeypatch.setattr(sys, "stderr", console)
    for _ in progress_bar(range(40), file=console):
        time.sleep(0.02)
    lines = console.getvalue().replace("\n", "\r").split("\r")
    assert (len(lines) > 4) == on_screen
    assert "40/40" in lines[-2]


def test_it_passes_on_what_it_is_given(capsys):
    assert list(progress_bar([1, 2], disable=True)) == [1, 2]
    assert capsys.readouterr().err == ""
