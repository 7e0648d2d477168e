"""Random rows of a mixture that carry gradients to its parameters, by implicit reparameterization.

A row x of a mixture has uniform scores S_j(x) = P(X_j ≤ x_j | x_1 … x_(j−1)), one for each feature. Held fixed while
the parameters θ change, they say where the row moves: dx/dθ = −(∂S/∂x)⁻¹·∂S/∂θ (Figurnov, Mohamed & Mnih 2018,
"Implicit reparameterization gradients"; Graves 2016 for mixtures). No component has to be drawn again: rows move from
one to the other, as weights change.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tmixture.distributions import log_normalizer
from tmixture.numerics import exact
from tmixture.parameters import Parameters
from tmixture.quantiles import student_cdf


class StudentCDF(torch.autograd.Function):
    """P(Z ≤ z) of standard Student-t distributions, with the gradient in z."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, dof: Tensor) -> Tensor:
        """The probabilities, of the shape that both broadcast to."""
        ctx.save_for_backward(z, dof)
        return student_cdf(z, dof)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The density in z, and nothing in ν."""
        z, dof = ctx.saved_tensors
        finite = torch.where(dof.isinf(), 1.0, dof)
        logs = torch.where(dof.isinf(), z.square() / 2, (finite + 1) / 2 * torch.log1p(z.square() / finite))
        return gradient * (log_normalizer(dof.expand_as(z), 1) - logs).exp(), None


def scores(parameters: Parameters, x: Tensor) -> Tensor:
    """S (n, d) of rows (n, d), uniform and independent, differentiable in the rows and all parameters but ν.

    The conditional of one feature of component k, given those before it, is a Student-t in the next row of the
    whitened deviations y, with ν + j degrees of freedom and (ν + δ_j)/(ν + j) of its scale, and the component has the
    weight ∝ π_k·T_k(x_1 … x_j) (see `MultivariateStudentT.conditional`).
    """
    K, d = parameters.n_components, parameters.n_features
    factors = torch.linalg.cholesky(exact(parameters.scale.dense(K, d)))
    offsets = (exact(x)[:, None] - exact(parameters.means)).movedim(0, 2)  # (K, d, n)
    y = torch.linalg.solve_triangular(factors, offsets, upper=False).movedim(2, 0)  # (n, K, d)
    dof = exact(parameters.dof)[:, None].detach()
    known = torch.arange(d, device=x.device, dtype=y.dtype)
    before = y.square().cumsum(2) - y.square()  # δ of the features before each
    widening = torch.where(dof.isinf(), 1.0, (1 + known / dof) / (1 + before / dof))
    below = StudentCDF.apply(y * widening.sqrt(), dof + known)
    log_scales = factors.diagonal(dim1=1, dim2=2).log()
    half_log_det = log_scales.cumsum(1) - log_scales
    finite = torch.where(dof.isinf(), 1.0, dof)
    kernel = torch.where(dof.isinf(), before / 2, (finite + known) / 2 * torch.log1p(before / finite))
    joint = exact(parameters.weights).log()[:, None] + log_normalizer(dof.expand(K, d), known) - half_log_det - kernel
    return (joint.softmax(1) * below).sum(1)


def moving_with(parameters: Parameters, x: Tensor) -> Tensor:
    """The same rows (n, d), which carry the gradients of where they move with the parameters.

    It takes d backward passes, and holds n·d² numbers.
    """
    at = exact(x.detach()).requires_grad_()
    with torch.enable_grad():
        at_rest = scores(parameters, at)
        rows = [torch.autograd.grad(part.sum(), at, retain_graph=True)[0] for part in at_rest.unbind(1)]
    jacobian = torch.stack(rows, dim=1)  # (n, d, d), lower triangular
    moved = scores(parameters, at.detach())
    change = torch.linalg.solve_triangular(jacobian.detach().tril(), (moved - moved.detach())[:, :, None], upper=False)
    return x.detach() - change[:, :, 0].to(x)
