"""What a user should know about a fit that went less than well, as warnings that say what to do."""

from __future__ import annotations

import torch

from tmixture.fitting import Fit
from tmixture.maximization import Rules
from tmixture.notices import warn
from tmixture.parameters import Parameters

# A ν this close to a bound, relative to it, lies on it.
BOUND_TOLERANCE = 1e-5
# Means that were rounded by more than this share of their component's standard deviation answer other questions.
ROUNDING_TOLERANCE = 0.05


class ConvergenceWarning(UserWarning):
    """A fit has used up its iterations before the log-likelihood settled."""


def features_lost_to_rounding(parameters: Parameters, dtype: torch.dtype) -> list[int]:
    """The features whose means a dtype cannot hold to a small share of a standard deviation."""
    deviation = parameters.scale.variances(parameters.n_features).sqrt().to(parameters.means)
    error = (parameters.means.to(dtype).to(parameters.means) - parameters.means).abs()
    return (error > ROUNDING_TOLERANCE * deviation).any(0).nonzero()[:, 0].tolist()


def warn_of_no_convergence(tol: float, max_iter: int) -> None:
    """Warn of a fit that ended at `max_iter`, unless that was asked for."""
    if tol > 0 and max_iter > 0:
        warn(
            f"EM did not converge to tol={tol:g} in max_iter={max_iter} iterations: raise either of "
            "them, or go on from here by another fit with warm_start=True (see tmixture.plot.history; tol=0 runs "
            "max_iter iterations without this warning)",
            ConvergenceWarning,
        )


def warn_of(parameters: Parameters, converged: bool, dtype: torch.dtype, tol: float, max_iter: int) -> None:
    """Warn of parameters that a dtype does not hold, and of a fit that has not converged."""
    rounded = features_lost_to_rounding(parameters, dtype)
    if rounded:
        warn(
            f"features {rounded[:10]} lie so far from zero that means in {dtype} miss them by more than "
            f"{ROUNDING_TOLERANCE:g} standard deviations: centre the features, or use dtype=torch.float64."
        )
    if not converged:
        warn_of_no_convergence(tol, max_iter)


def warn_about(fit: Fit, rules: Rules, dtype: torch.dtype, *, tol: float, max_iter: int) -> None:
    """Warn of what is worth knowing about a finished fit.

    The texts do not change from fit to fit where they can, so that Python shows them once per line of code and not at
    every refit.
    """
    if fit.reseeded:
        warn(
            f"components {sorted(set(fit.reseeded))} were left without rows, or collapsed onto a few, and were "
            "started anew on poorly explained rows. If this keeps happening, use fewer components."
        )
    if fit.degenerate:
        features = sorted({feature for several in fit.degenerate.values() for feature in several})
        warn(
            f"components {sorted(fit.degenerate)} have next to no variance in features {features[:10]}, where their "
            "rows have equal values: their likelihood has no bound there, whatever these rows mean. Try n_init=10, "
            "fewer components, a larger reg_covar, or a covariance_type with fewer parameters."
        )
    warn_of(fit.step.parameters, fit.step.converged, dtype, tol, max_iter)
    if not rules.learn_dof:
        return
    dof, (low, high) = fit.step.parameters.dof, rules.dof_bounds
    if (dof <= low * (1 + BOUND_TOLERANCE)).any():
        warn(
            f"learned degrees of freedom reached their lower bound {low:g} (see the mixture's dof): such a component "
            "often holds scattered outliers or repeated rows. Look at its rows, use more components, or fix dof."
        )
    if (dof >= high * (1 - BOUND_TOLERANCE)).any():
        warn(
            f"learned degrees of freedom reached their upper bound {high:g} (see the mixture's dof): these components "
            "are Gaussian. This is harmless; dof=inf makes them exactly so."
        )
