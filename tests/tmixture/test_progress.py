"""Bars on a screen move, and those in a file have few lines."""

import io
import sys
import time

import pytest
import torch

from tmixture import StudentTMixture
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


def test_a_fit_with_a_log_file_writes_few_lines(monkeypatch):
    console = Console(False)
    monkeypatch.setattr(sys, "stderr", console)
    mixture = StudentTMixture(3, 2, generator=0, tol=0.0, max_iter=50, verbose=True)
    mixture.fit(torch.randn(100, 2, generator=torch.Generator().manual_seed(0)))
    lines = console.getvalue().replace("\n", "\r").split("\r")
    assert len(lines) <= 4
    assert "50/50" in lines[-2]
    assert "log-likelihood" in lines[-2]


def test_it_passes_on_what_it_is_given(capsys):
    assert list(progress_bar([1, 2], disable=True)) == [1, 2]
    assert capsys.readouterr().err == ""
