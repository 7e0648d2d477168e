"""Robust Student-t mixtures for embeddings."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tmixture.diagnostics import ConvergenceWarning
    from tmixture.directional import DirectionalMixture
    from tmixture.distributions import MultivariateStudentT
    from tmixture.divergence import component_divergence, mixture_divergence
    from tmixture.lowrank_student_t import LowRankMultivariateStudentT
    from tmixture.many.together import ManyMixtures, fit_many
    from tmixture.mapreduce import MapReduceFit
    from tmixture.merging import merge_components
    from tmixture.mixture import StudentTMixture
    from tmixture.priors import Prior
    from tmixture.selection import select_components
    from tmixture.statistics import SufficientStatistics
    from tmixture.step_sizes import PowerDecay

__version__ = "0.1.0"

__all__ = [
    "ConvergenceWarning",
    "DirectionalMixture",
    "LowRankMultivariateStudentT",
    "ManyMixtures",
    "MapReduceFit",
    "MultivariateStudentT",
    "PowerDecay",
    "Prior",
    "StudentTMixture",
    "SufficientStatistics",
    "component_divergence",
    "fit_many",
    "merge_components",
    "mixture_divergence",
    "select_components",
]

# Where each name is defined. It is imported when it is first used: `tmixture --help` must not wait for torch.
_HOMES = {
    "ConvergenceWarning": "diagnostics",
    "DirectionalMixture": "directional",
    "LowRankMultivariateStudentT": "lowrank_student_t",
    "ManyMixtures": "many.together",
    "MapReduceFit": "mapreduce",
    "MultivariateStudentT": "distributions",
    "PowerDecay": "step_sizes",
    "Prior": "priors",
    "StudentTMixture": "mixture",
    "SufficientStatistics": "statistics",
    "component_divergence": "divergence",
    "fit_many": "many.together",
    "merge_components": "merging",
    "mixture_divergence": "divergence",
    "select_components": "selection",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
