"""One short function per library: fit a problem for a number of iterations, and return the log-likelihoods on the way.

All start from the same means, equal weights and the same isotropic scales, where the library lets them be given.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.problems import DOF, Problem

History = list[float]
"""Mean log-likelihood before each iteration; empty where the library does not say."""


@dataclass(frozen=True)
class Adapter:
    """A library, and how to fit with it.

    Attributes:
        package: whose version is reported.
        law: "t" or "Gaussian".
        fit: fits a problem for at most a number of iterations.
        covariances: the structures it has.
        on_gpu: whether it can work on a GPU.
    """

    package: str
    law: str
    fit: Callable[[Problem, int], History]
    covariances: tuple[str, ...] = ("diag", "full")
    on_gpu: bool = False


def ours(problem: Problem, max_iter: int, **settings: Any) -> History:
    from tmixture import StudentTMixture

    K, d = problem.means.shape
    mixture = StudentTMixture.from_parameters(
        np.ones(K),
        problem.means,
        problem.variance * torch.eye(d).expand(K, d, d),
        covariance_type=problem.covariance,
        **{"dof": DOF, "reg_covar": problem.regularization, "warm_start": True, "tol": 0.0, **settings},
        max_iter=max_iter,
        device=problem.device,
    )
    return mixture.fit(problem.on_device(problem.x)).history_


def ours_classic(problem: Problem, max_iter: int) -> History:
    return ours(problem, max_iter, scale_update="classic")


def ours_gaussian(problem: Problem, max_iter: int) -> History:
    return ours(problem, max_iter, dof=float("inf"))


def sklearn(problem: Problem, max_iter: int, convert: Callable[[np.ndarray], Any] = np.float32) -> History:
    from sklearn.mixture import GaussianMixture

    K = len(problem.means)
    mixture = GaussianMixture(
        K,
        covariance_type=problem.covariance,
        weights_init=convert(np.full(K, 1 / K)),
        means_init=convert(problem.means),
        precisions_init=convert(_inverse(problem.scales())),
        init_params="random_from_data",
        reg_covar=problem.regularization,
        max_iter=max_iter,
        tol=0.0,
    )
    return [float(bound) for bound in mixture.fit(convert(problem.x)).lower_bounds_]


def sklearn_float64(problem: Problem, max_iter: int) -> History:
    return sklearn(problem, max_iter, np.float64)


def sklearn_array_api(problem: Problem, max_iter: int) -> History:
    os.environ["SCIPY_ARRAY_API"] = "1"  # read when scipy is imported
    from sklearn import config_context

    with config_context(array_api_dispatch=True):
        return sklearn(problem, max_iter, lambda array: problem.on_device(np.float32(array)))


def tgmm(problem: Problem, max_iter: int, name: str = "StudentTMixture", **settings: Any) -> History:
    import tgmm as library

    K, d = problem.means.shape
    mixture = getattr(library, name)(
        K,
        d,
        covariance_type=problem.covariance,
        init_means=problem.on_device(problem.means),
        init_covariances=problem.on_device(problem.scales()),
        reg_covar=problem.regularization,
        max_iter=max_iter,
        tol=1e-300,
        device=problem.device,
        **settings,
    )
    mixture.fit(problem.on_device(problem.x))
    return [float(value) for value in mixture.log_likelihood_history_]


def tgmm_t(problem: Problem, max_iter: int) -> History:
    return tgmm(problem, max_iter, dof=DOF)


def tgmm_t_ecme(problem: Problem, max_iter: int) -> History:
    return tgmm(problem, max_iter, dof=DOF, scale_update="ecme")


def tgmm_gaussian(problem: Problem, max_iter: int) -> History:
    return tgmm(problem, max_iter, "GaussianMixture")


def studenttmixture(problem: Problem, max_iter: int) -> History:
    from studenttmixture import EMStudentMixture

    K = len(problem.means)
    scales = np.float64(problem.scales())

    class FromStart(EMStudentMixture):
        def initialize_params(self, X: np.ndarray, random_seed: int, init_type: str) -> tuple[np.ndarray, ...]:
            by_last_axis = np.moveaxis(scales, 0, -1)
            return np.float64(problem.means), by_last_axis.copy(), np.full(K, 1 / K), np.sqrt(by_last_axis)

    FromStart(K, tol=1e-300, reg_covar=problem.regularization, max_iter=max_iter, df=DOF).fit(np.float64(problem.x))
    return []


def pomegranate(problem: Problem, max_iter: int, name: str = "Normal", **settings: Any) -> History:
    from pomegranate import distributions
    from pomegranate.gmm import GeneralMixtureModel

    law = getattr(distributions, name)
    scales = torch.from_numpy(problem.scales())
    components = [
        law(means=torch.from_numpy(mean), covs=scale, covariance_type=problem.covariance, **settings)
        for mean, scale in zip(problem.means.copy(), scales)
    ]
    GeneralMixtureModel(components, max_iter=max_iter, tol=-1e300).fit(torch.from_numpy(problem.x))
    return []


def pomegranate_t(problem: Problem, max_iter: int) -> History:
    return pomegranate(problem, max_iter, "StudentT", dofs=int(DOF))


def torchgmm(problem: Problem, max_iter: int) -> History:
    from torchgmm.bayes import GaussianMixture

    GaussianMixture(
        len(problem.means),
        covariance_type=problem.covariance,
        init_means=torch.from_numpy(problem.means),
        convergence_tolerance=0.0,
        covariance_regularization=problem.regularization,
        trainer_params={"max_epochs": max_iter, "accelerator": "cpu", "enable_progress_bar": False},
    ).fit(torch.from_numpy(problem.x))
    return []


def _inverse(scales: np.ndarray) -> np.ndarray:
    return 1 / scales if scales.ndim == 2 else np.linalg.inv(scales)


ADAPTERS: dict[str, Adapter] = {
    "tmixture": Adapter("tmixture", "t", ours, on_gpu=True),
    "tmixture, ν=∞": Adapter("tmixture", "Gaussian", ours_gaussian, on_gpu=True),
    "tgmm StudentTMixture": Adapter("tgmm", "t", tgmm_t, on_gpu=True),
    "studenttmixture": Adapter("studenttmixture", "t", studenttmixture, ("full",)),
    "pomegranate StudentT": Adapter("pomegranate", "t", pomegranate_t, ("diag",)),
    "scikit-learn float64": Adapter("scikit-learn", "Gaussian", sklearn_float64),
    "scikit-learn float32": Adapter("scikit-learn", "Gaussian", sklearn),
    "scikit-learn float32, torch": Adapter("scikit-learn", "Gaussian", sklearn_array_api, on_gpu=True),
    "torchgmm": Adapter("torchgmm", "Gaussian", torchgmm),
    "tgmm GaussianMixture": Adapter("tgmm", "Gaussian", tgmm_gaussian, on_gpu=True),
    "pomegranate Normal": Adapter("pomegranate", "Gaussian", pomegranate),
}

# The updates of the scales that there are, for counting iterations.
UPDATES: dict[str, Adapter] = {
    "tmixture": ADAPTERS["tmixture"],
    "tmixture, scale_update='classic'": Adapter("tmixture", "t", ours_classic),
    "tgmm StudentTMixture": ADAPTERS["tgmm StudentTMixture"],
    "tgmm StudentTMixture, scale_update='ecme'": Adapter("tgmm", "t", tgmm_t_ecme),
}

warnings.filterwarnings("ignore")
