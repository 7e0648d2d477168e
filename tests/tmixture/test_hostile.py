"""Whatever rows and weights are given, a fit answers or refuses: no abort, no NaN, no objective that falls.

Ten thousand cases take a quarter of an hour: `pytest tests/tmixture/test_hostile.py --hypothesis-profile thorough`.
"""

import os

import pytest
from hypothesis import given

from .hostile import Worker, cases, fault


@pytest.fixture(scope="module")
def worker():
    worker = Worker()
    yield worker
    worker.close()


@pytest.mark.slow
@given(case=cases())
def test_a_fit_answers_or_refuses(worker, case):
    assert worker.ask(fault, case) is None


@pytest.mark.slow
def test_the_end_of_a_process_is_noticed(worker):
    assert worker.ask(os._exit, 1) == "the end of the interpreter"
    assert worker.ask(str, "still here") == "still here"
