"""Robust Student-t mixtures for embeddings."""

from tmixture.mixture import StudentTMixture
from tmixture.statistics import SufficientStatistics
from tmixture.streaming import PowerDecay

__version__ = "0.1.0"

__all__ = ["PowerDecay", "StudentTMixture", "SufficientStatistics"]
