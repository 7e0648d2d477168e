"""The arguments of a cluster loss, in their final form."""

from __future__ import annotations

from typing import Literal

from tmixture import StudentTMixture
from tmixture.losses.weights import FREQUENCIES, ClusterWeights, Frequency

# How the mixture learns, unless said otherwise: by fits to so many rows, after so many calls each.
WINDOW_ROWS, CALLS_PER_REFIT = 1024, 10
# With refit="streaming", a batch makes up this share of what a mixture made here knows after it.
DRIFT_RATE = 0.02
# As by how many rows a mixture made here is held at the mean of the known rows of a class.
ANCHOR_ROWS = 100.0

RefitPolicy = int | Literal["streaming", "external"]
Weighting = Literal["outlier", "confidence", "inverse", "inverse_log", "effective_number"]


def mixture(given: StudentTMixture | None, n_components: int | None, embedding_size: int | None) -> StudentTMixture:
    """The mixture given, or one made here."""
    if isinstance(given, StudentTMixture):
        if n_components is not None or embedding_size is not None:
            raise ValueError("n_components and embedding_size are those of the mixture given: leave them out")
        if given.background:
            raise ValueError("mixture must have no background: a loss on clusters gives every row one")
        return given
    if given is not None or n_components is None or embedding_size is None:
        raise ValueError(
            f"mixture must be a StudentTMixture, got {type(given).__name__}; without one, give n_components and "
            f"embedding_size (got {n_components} and {embedding_size})"
        )
    return StudentTMixture(
        n_components,
        embedding_size,
        step_size=DRIFT_RATE,
        anchor_rows=ANCHOR_ROWS,
        distributed=True,
        generator=0,
    )


def rows(value: int, name: str) -> int:
    """A number of rows."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} must be a number of rows, got {value!r}")
    return value


def policy(refit: RefitPolicy, n_rows: int, n_components: int) -> RefitPolicy:
    """How the mixture learns, from so many recent rows."""
    if isinstance(refit, int) and not isinstance(refit, bool) and refit > 0:
        if n_rows < n_components:
            raise ValueError(
                f"refit={refit} fits to recent rows: window_size must be at least n_components={n_components}, got "
                f"{n_rows}"
            )
    elif refit not in ("streaming", "external"):
        raise ValueError(f"refit must be 'streaming', 'external' or a number of steps, got {refit!r}")
    return refit


def weights(given: Weighting | Frequency | ClusterWeights | None, mixture: StudentTMixture) -> ClusterWeights | None:
    """The weights given, or those of a name or a function."""
    if given is None or isinstance(given, ClusterWeights):
        if given is not None and given.mixture is not mixture:
            raise ValueError("weights are a ClusterWeights of another mixture than the loss has")
        return given
    if given in ("outlier", "confidence"):
        return ClusterWeights(mixture, outlier=given == "outlier", confidence=given == "confidence")
    if given in FREQUENCIES:
        return ClusterWeights(mixture, mass=given, outlier=False)  # type: ignore[arg-type]
    if callable(given):
        return ClusterWeights(mixture, mass=given, outlier=False)
    names = ", ".join(map(repr, FREQUENCIES))
    raise ValueError(
        "weights must be a ClusterWeights, a function of the clusters' sizes, or one of 'outlier', 'confidence', "
        f"{names}, got {given!r}"
    )
