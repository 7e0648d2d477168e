"""What a type checker knows of settings is what there is."""

import inspect
from typing import get_args

import pytest

from tmixture import StudentTMixture, select_components
from tmixture.initialization import CENTRES
from tmixture.settings import CovarianceType, FitSettings, GivenSettings, Init

from .helpers import STRUCTURES


def test_names():
    assert set(get_args(CovarianceType)) == set(STRUCTURES)
    assert set(get_args(Init)) == set(CENTRES)


@pytest.mark.parametrize(
    ("settings", "function"), [(FitSettings, select_components), (GivenSettings, StudentTMixture.from_parameters)]
)
def test_settings_that_are_passed_on(settings, function):
    accepted = set(inspect.signature(StudentTMixture).parameters) - {"n_components", "n_features"}
    own = set(inspect.signature(function).parameters)
    assert set(settings.__annotations__) | (own & accepted) == accepted
    assert not own & set(settings.__annotations__)
