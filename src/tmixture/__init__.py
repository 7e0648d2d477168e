"""Robust Student-t mixtures for embeddings."""

from tmixture.diagnostics import ConvergenceWarning
from tmixture.distributions import MultivariateStudentT
from tmixture.mixture import StudentTMixture
from tmixture.selection import select_components
from tmixture.statistics import SufficientStatistics
from tmixture.step_sizes import PowerDecay

__version__ = "0.1.0"

__all__ = [
    "ConvergenceWarning",
    "MultivariateStudentT",
    "PowerDecay",
    "StudentTMixture",
    "SufficientStatistics",
    "select_components",
]
