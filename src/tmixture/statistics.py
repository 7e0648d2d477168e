"""The sufficient statistics of a Student-t mixture: what EM adds, streams, all-reduces and checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from tmixture.frozen import Frozen
from tmixture.parameters import Parameters
from tmixture.scales import Scale


@dataclass
class SufficientStatistics:
    """Weighted sums over rows, in float64 where the device has it.

    With responsibilities r, outlier weights u and sample weights s, the moments taken about `reference`:

    Attributes:
        responsibility: n_k = Σ_i s·r, (K,).
        mass: w_k = Σ_i s·r·u, (K,).
        first: Σ_i s·r·u·(x − reference_k), (K, d).
        scatter: Σ_i s·r·u·(x − reference_k)(x − reference_k)ᵀ in the structure's own form.
        log_mass: Σ_i s·r·E[log U | x], (K,). E[log U] = log u + ψ((ν+d)/2) − log((ν+d)/2) is inside the sum because ν
            differs between the batches of a stream.
        log_likelihood: Σ_i s·log p(x), scalar.
        weight: Σ_i s, scalar.
        rows: number of rows with positive weight, scalar.
        reference: (K, d).
    """

    responsibility: Tensor
    mass: Tensor
    first: Tensor
    scatter: Tensor
    log_mass: Tensor
    log_likelihood: Tensor
    weight: Tensor
    rows: Tensor
    reference: Tensor

    def __repr__(self) -> str:
        K, d = self.reference.shape
        return f"SufficientStatistics(K={K}, d={d}, rows={float(self.rows):g}, weight={float(self.weight):g})"

    @classmethod
    def zeros(cls, scale: Scale, reference: Tensor) -> SufficientStatistics:
        """Empty statistics about `reference` (K, d) for scales like `scale`, on its device and with its dtype."""
        K, d = reference.shape
        shape = torch.Size(scale.scatter_shape(K, d))
        sizes = [K, K, K, 1, 1, 1, K * d, shape.numel()]  # of one piece of memory: small fits feel every call
        parts = reference.new_zeros(sum(sizes)).split(sizes)
        return cls(
            responsibility=parts[0],
            mass=parts[1],
            first=parts[6].view(K, d),
            scatter=parts[7].view(shape),
            log_mass=parts[2],
            log_likelihood=parts[3][0],
            weight=parts[4][0],
            rows=parts[5][0],
            reference=reference,
        )

    @classmethod
    def about_origin(cls, scale: Scale, origin: Tensor, means: Tensor, offset: Tensor | None) -> SufficientStatistics:
        """Empty statistics like those of means (K, d), about what `Scale.reference` says of an origin (d,)."""
        return cls.zeros(scale, origin.expand_as(means) if offset is None else origin + offset.to(origin))

    @classmethod
    def expected(cls, parameters: Parameters, rows: float) -> SufficientStatistics:
        """What the average over `rows` rows drawn from the mixture itself is expected to be.

        Under the model E[r] = E[r·u] = π, E[r·u·(x−μ)(x−μ)ᵀ] = π·Σ and E[r·log U] = π·(ψ(ν/2) − log(ν/2)).
        """
        weights, half = parameters.weights, parameters.dof / 2
        log_precision = torch.where(half.isinf(), 0.0, torch.digamma(half) - half.log())
        return cls(
            responsibility=weights,
            mass=weights,
            first=torch.zeros_like(parameters.means),
            scatter=parameters.scale.expected_scatter(weights, parameters.n_features),
            log_mass=weights * log_precision,
            log_likelihood=weights.new_zeros(()),
            weight=weights.new_ones(()),
            rows=weights.new_tensor(rows),
            reference=parameters.means,
        )

    @property
    def weight_per_row(self) -> Tensor:
        """The mean sample weight, scalar."""
        return self.weight / self.rows

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def sums(self) -> list[Tensor]:
        """The additive tensors: everything but the reference."""
        return [tensor for name, tensor in self.tensors().items() if name != "reference"]

    def add_shares(self, responsibility: Tensor, mass: Tensor) -> None:
        """Add Σ_i s·r (K,) and Σ_i s·r·u (K,), in place."""
        torch._foreach_add_([self.responsibility, self.mass], [responsibility, mass])

    def add_rows(self, log_likelihood: Tensor, weight: Tensor | None) -> None:
        """Count rows with these log p(x_i) (n,) and sample weights (n,), in place."""
        exact = self.mass.dtype
        if weight is None:
            self.log_likelihood += log_likelihood.sum(dtype=exact)
            self.weight += len(log_likelihood)
            self.rows += len(log_likelihood)
        else:
            self.log_likelihood += (log_likelihood.to(exact) * weight).sum()
            self.weight += weight.sum()
            self.rows += (weight > 0).sum()

    def add(self, part: SufficientStatistics, components: Tensor, scale: Scale) -> None:
        """Add, in place, sums in which only the given components (C,), all different, have a share.

        Args:
            part: statistics of C components.
            components: their indices.
            scale: the scales that both were taken under.
        """
        reference = self.reference[components]
        if not torch.equal(part.reference, reference):
            part = part.about(scale.take(components), reference)
        names = ["responsibility", "mass", "first", "log_mass"]
        if scale.per_component:
            names.append("scatter")
        else:
            self.scatter.add_(part.scatter)
        for name in names:
            getattr(self, name).index_add_(0, components, getattr(part, name))
        for name in ("log_likelihood", "weight", "rows"):
            getattr(self, name).add_(getattr(part, name))

    def about(self, scale: Scale, reference: Tensor) -> SufficientStatistics:
        """The same statistics with the moments taken about another reference (K, d)."""
        delta = self.reference - reference
        scatter = scale.translate(self.scatter, self.mass, self.first, delta)
        moments = {"first": self.first + self.mass[:, None] * delta, "scatter": scatter, "reference": reference}
        return SufficientStatistics(**{**self.tensors(), **moments})

    def standardized(self, scale: Scale, frozen: Frozen | None = None) -> SufficientStatistics:
        """The same statistics in terms of the latent variables of the scales that follow from them."""
        centred = 1.0 if frozen is None else (~frozen.means).to(self.mass)
        scatter = scale.standardize(self.scatter, self.mass, self.first, centred)
        if frozen is not None and scale.per_component:
            stays = frozen.scales.reshape(-1, *[1] * (scatter.dim() - 1))
            scatter = torch.where(stays, self.scatter, scatter)
        return SufficientStatistics(**{**self.tensors(), "scatter": scatter})

    def per_unit_weight(self) -> SufficientStatistics:
        """Averages instead of sums; the number of rows is kept."""
        averaged = {name: t / self.weight for name, t in self.tensors().items() if name not in ("reference", "rows")}
        return SufficientStatistics(**{**self.tensors(), **averaged})

    def times(self, factor: float) -> SufficientStatistics:
        """The same for sample weights that are so many times as large."""
        scaled = {name: t * factor for name, t in self.tensors().items() if name not in ("reference", "rows")}
        return SufficientStatistics(**{**self.tensors(), **scaled})

    def __add__(self, other: SufficientStatistics) -> SufficientStatistics:
        """Those of the rows of both, about the same reference."""
        if not isinstance(other, SufficientStatistics):
            return NotImplemented
        if self.reference.shape != other.reference.shape or not torch.equal(self.reference, other.reference):
            raise ValueError("statistics that are added must be about the same reference: of the same parameters")
        sums = {name: t + getattr(other, name) for name, t in self.tensors().items() if name != "reference"}
        return SufficientStatistics(**sums, reference=self.reference)

    def blend(self, other: SufficientStatistics, rate: float) -> SufficientStatistics:
        """(1 − rate)·self + rate·other, both about the same reference; the rows add up."""
        blended = {
            name: torch.lerp(tensor, getattr(other, name), rate)
            for name, tensor in self.tensors().items()
            if name not in ("reference", "rows")
        }
        return SufficientStatistics(**{**self.tensors(), **blended, "rows": self.rows + other.rows})

    def reorder(self, scale: Scale, order: Tensor) -> SufficientStatistics:
        """The same statistics with the components in another order (K,)."""
        names = ["responsibility", "mass", "first", "log_mass", "reference"]
        if scale.per_component:
            names.append("scatter")
        return SufficientStatistics(**{**self.tensors(), **{name: getattr(self, name)[order] for name in names}})

    def take(self, scale: Scale, source: Tensor, means: Tensor) -> SufficientStatistics:
        """Statistics in which component k has the share of `source[k]`, moved to `means[k]`.

        Components with the same source divide its sums among them.

        Args:
            scale: scales of the same structure.
            source: (K,) indices.
            means: (K, d), where the components now are.

        The statistics must be about their own means, so that the first moments are zero.
        """
        share = 1 / torch.bincount(source, minlength=len(source))[source].to(self.mass)
        scatter = self.scatter
        if scale.per_component:
            scatter = scatter[source] * share.reshape(-1, *[1] * (scatter.dim() - 1))
        divided = {name: getattr(self, name)[source] * share for name in ("responsibility", "mass", "log_mass")}
        moments = {"first": torch.zeros_like(self.first), "scatter": scatter, "reference": means.to(self.mass)}
        return SufficientStatistics(**{**self.tensors(), **divided, **moments})
