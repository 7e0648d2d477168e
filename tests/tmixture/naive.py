"""EM for Student-t mixtures as loops over rows and components in float64: slow, obvious, with formulas of its own.

`Model` holds dense scale matrices whatever the structure. `em_step` follows Peel & McLachlan (2000) for the classic
update. For "px" it follows Liu, Rubin & Wu (1998): the latent precision of component k is expanded to U = α·G with
G ~ Gamma(ν/2, ν/2), the data to X | U ~ N(μ, Σ*/U), and the model is the old one with Σ = Σ*/α. Up to constants

    Q = Σ_ik r_ik [−½ log|Σ*| − u_ik δ*_ik/2]
      + Σ_ik r_ik [ν/2·log(ν/2) − lgamma(ν/2) + (ν/2)(E log U_ik − log α) − ν/(2α)·u_ik].

∂Q/∂Σ* = 0 gives Σ* = scatter / Σ r. ∂Q/∂α = 0 gives α = Σ r u / Σ r for a component with a scale of its own, and
α = Σ ν r u / Σ ν r over everything where one Σ, hence one α, is shared. ∂Q/∂ν = 0 gives, averaged over the rows,

    log(ν/2) − ψ(ν/2) + 1 + E log U − log α − u/α = 0.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import digamma, gammaln, logsumexp

from tmixture.scales import STRUCTURES


@dataclass(frozen=True)
class Model:
    """Weights (K,), means (K, d), dense scale matrices (K, d, d), dof (K,)."""

    weights: np.ndarray
    means: np.ndarray
    scales: np.ndarray
    dof: np.ndarray


def distance(x, mean, scale):
    return float((x - mean) @ np.linalg.solve(scale, x - mean))


def log_density(x, mean, scale, dof):
    d = len(mean)
    delta = distance(x, mean, scale)
    half_log_det = np.linalg.slogdet(scale)[1] / 2
    if math.isinf(dof):
        return -d / 2 * math.log(2 * math.pi) - half_log_det - delta / 2
    constant = gammaln((dof + d) / 2) - gammaln(dof / 2) - d / 2 * math.log(dof * math.pi)
    return constant - half_log_det - (dof + d) / 2 * math.log1p(delta / dof)


def joint(x, model):
    """Log π_k + log T_k(x_i): (N, K)."""
    components = list(zip(model.weights, model.means, model.scales, model.dof))
    return np.array([[math.log(pi) + log_density(row, mu, S, nu) for pi, mu, S, nu in components] for row in x])


def log_likelihood(x, model, sample_weight=None):
    """The sum over the rows."""
    s = np.ones(len(x)) if sample_weight is None else sample_weight
    return float(s @ logsumexp(joint(x, model), axis=1))


def em_step(x, model, structure, *, learn_dof=False, scale_update="px", sample_weight=None, bounds=(0.5, 200.0)):
    (N, d), K = x.shape, len(model.weights)
    s = np.ones(N) if sample_weight is None else sample_weight
    logs = joint(x, model)
    r = s[:, None] * np.exp(logs - logsumexp(logs, axis=1, keepdims=True))
    u, log_u = np.ones((N, K)), np.zeros((N, K))
    for i in range(N):
        for k in range(K):
            if not math.isinf(model.dof[k]):
                half = (model.dof[k] + d) / 2
                rate = (model.dof[k] + distance(x[i], model.means[k], model.scales[k])) / 2
                u[i, k], log_u[i, k] = half / rate, digamma(half) - math.log(rate)

    n, w = r.sum(0), (r * u).sum(0)
    means = np.array([sum(r[i, k] * u[i, k] * x[i] for i in range(N)) / w[k] for k in range(K)])
    scatter = np.zeros((K, d, d))
    for i in range(N):
        for k in range(K):
            scatter[k] += r[i, k] * u[i, k] * np.outer(x[i] - means[k], x[i] - means[k])

    alpha = np.ones(K)
    if scale_update == "px" and structure.startswith("tied"):
        nu = model.dof
        alpha[:] = 1.0 if np.isinf(nu).any() else (nu * w).sum() / (nu * n).sum()
    elif scale_update == "px":
        alpha = w / n
    scales = constrained(scatter, n, structure) / alpha[:, None, None]

    dof = model.dof
    constant = [sum(r[i, k] * (log_u[i, k] - u[i, k] / alpha[k]) for i in range(N)) / n[k] for k in range(K)]
    constant = np.array(constant) + 1 - np.log(alpha)
    if learn_dof == "component":
        dof = np.array([dof_root(c, bounds) for c in constant])
    elif learn_dof == "shared":
        dof = np.full(K, dof_root((n * constant).sum() / n.sum(), bounds))
    return Model(n / n.sum(), means, scales, dof)


def constrained(scatter, n, structure):
    """The maximum-likelihood Σ* of each structure from the scatter matrices and the masses."""
    K, d, _ = scatter.shape
    if structure.startswith("tied"):
        scatter, n = np.repeat(scatter.sum(0)[None], K, axis=0), np.full(K, n.sum())
    matrices = scatter / n[:, None, None]
    if structure in ("diag", "tied_diag"):
        return np.array([np.diag(np.diag(matrix)) for matrix in matrices])
    if structure in ("spherical", "tied_spherical"):
        return np.array([np.trace(matrix) / d * np.eye(d) for matrix in matrices])
    return matrices


def within(matrices, structure):
    """Matrices of a structure like those given. What nothing here knows has to know itself what is closest."""
    if structure == "lowrank":
        return factorized(matrices)
    if structure in ("full", "diag", "spherical") or structure.startswith("tied"):
        return constrained(matrices, np.ones(len(matrices)), structure)
    return STRUCTURES[structure].from_dense(torch.as_tensor(matrices)).dense(*matrices.shape[:2]).numpy()


def factorized(matrices):
    """Matrices of the same diagonals with one factor, which explains 60 % of every feature."""
    signs = np.where(matrices[:, 0] < 0, -1.0, 1.0)
    variance = np.diagonal(matrices, axis1=1, axis2=2)
    loadings = signs * np.sqrt(0.6 * variance)
    return loadings[:, :, None] * loadings[:, None, :] + 0.4 * variance[:, None] * np.eye(matrices.shape[1])


def dof_root(constant, bounds):
    """The root of log(ν/2) − ψ(ν/2) + constant, or the bound beyond which it lies."""

    def condition(nu):
        return math.log(nu / 2) - digamma(nu / 2) + constant

    low, high = bounds
    if condition(low) <= 0:
        return low
    if condition(high) >= 0:
        return high
    return brentq(condition, low, high, xtol=1e-14, rtol=1e-14)


def random_model(K, d, structure, seed=0, dof=5.0, spread=2.0):
    """A model with overlapping components, its scales within the structure."""
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(K, d, d))
    scatter = factor @ factor.transpose(0, 2, 1) / d + 0.5 * np.eye(d)
    weights = rng.uniform(0.5, 1.5, K)
    return Model(
        weights / weights.sum(),
        spread * rng.normal(size=(K, d)),
        within(scatter, structure),
        np.broadcast_to(np.asarray(dof, float), K),
    )


def draw(model, N, seed=1):
    """Rows (N, d) from the model."""
    rng = np.random.default_rng(seed)
    K, d = model.means.shape
    rows = []
    for k in rng.choice(K, size=N, p=model.weights):
        u = 1.0 if math.isinf(model.dof[k]) else rng.gamma(model.dof[k] / 2) / (model.dof[k] / 2)
        rows.append(model.means[k] + np.linalg.cholesky(model.scales[k]) @ rng.normal(size=d) / math.sqrt(u))
    return np.array(rows)


def heavy_tailed(K=3, d=2, N=80, structure="full", seed=0):
    """Overlapping heavy-tailed rows and a start that is not the truth: the hard case for EM."""
    truth = random_model(K, d, structure, seed=seed, dof=2.0, spread=1.5)
    x = draw(truth, N, seed=seed + 1)
    start = random_model(K, d, structure, seed=seed + 2, dof=8.0, spread=1.0)
    # Started in the inner half: a lone far row would become a component whose likelihood has no bound.
    inner = np.argsort(np.linalg.norm(x - np.median(x, axis=0), axis=1))[: N // 2]
    return x, replace(start, means=x[np.random.default_rng(seed).choice(inner, K, replace=False)])
