"""What a mixture holds: parameters, the stream behind them and the record of their fit; moved, saved and loaded."""

from __future__ import annotations

import inspect
import os
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from typing_extensions import Self, Unpack

from tmixture import files, validation
from tmixture.density import Density, working_density
from tmixture.frozen import checked_parts
from tmixture.host import number, set_number
from tmixture.parameters import Parameters
from tmixture.precision import exact_arithmetic, full_precision
from tmixture.running import RunningStatistics
from tmixture.scales import STRUCTURES, Scale
from tmixture.settings import CovarianceType, GivenSettings
from tmixture.trainable import train_by_gradients

# What is known of the last fit.
RECORD = ("n_iter_", "converged_", "history_", "n_reseeded_", "disagreement_")


class MixtureState(nn.Module):
    """The parameters of a mixture as buffers, with all that a fit leaves behind.

    `MixtureModel` adds what can be asked of them, and `StudentTMixture` how they are estimated.

    Args:
        unfitted: parameters whose shapes and devices are what matters, and ν, from which learning starts.
        dtype: of the buffers.
        rank: of a structure that has one.
        component_labels: the class of each component, as of `StudentTMixture`; as are background and allow_tf32.
        frozen: as of `StudentTMixture`.
    """

    n_components: int
    n_features: int
    covariance_type: str
    rank: int | None
    background: bool
    running: RunningStatistics
    component_labels: list[int] | None
    weights: Tensor
    means: Tensor
    dof: Tensor
    fitted: Tensor
    initial_dof: Tensor

    def __init__(
        self,
        unfitted: Parameters,
        dtype: torch.dtype,
        *,
        rank: int | None,
        component_labels: list[int] | None,
        frozen: Any,
        background: bool,
        allow_tf32: bool,
    ) -> None:
        super().__init__()
        self.n_components, self.n_features = unfitted.n_components, unfitted.n_features
        self.covariance_type, self.rank = unfitted.scale.covariance_type, rank
        self.component_labels, self.background = component_labels, background
        self.frozen = frozen
        self.allow_tf32 = allow_tf32
        for name, tensor in unfitted.tensors().items():
            self.register_buffer(name, tensor.to(dtype))
        self.register_buffer("fitted", torch.zeros((), device=unfitted.means.device))
        self.register_buffer("initial_dof", self.dof.clone())
        self.running = RunningStatistics(unfitted, dtype)

        self.n_iter_ = 0
        self.converged_ = False
        self.history_: list[float] = []
        self.n_reseeded_ = 0
        self.disagreement_: float | None = None

        self._prepared: Density | None = None
        self._prepared_from: list[tuple[Tensor, int]] = []

    # ---------------------------------------------------------------- parameters

    @property
    def structure(self) -> type[Scale]:
        """The class of the scale matrices."""
        return STRUCTURES[self.covariance_type]

    def snapshot(self) -> Parameters:
        """The parameters as one value."""
        scale = self.structure(**{name: getattr(self, name) for name in self.structure.constraints})
        return Parameters(self.weights, self.means, scale, self.dof)

    def plain_state(self) -> dict[str, Tensor]:
        """The `state_dict` that the mixture would have without `train_by_gradients`."""
        state = {name: x for name, x in self.state_dict().items() if not name.startswith("parametrizations.")}
        return {**state, **self.snapshot().tensors()}

    def adopt(self, parameters: Parameters) -> None:
        """Make these the parameters of the module.

        Raises:
            ValueError: they are too large or too small for its dtype. Nothing has changed then.
        """
        if self.means.dtype is torch.float16:  # every other dtype holds what can be fitted to data below 1e15
            parameters.check_range(self.means.dtype)
        with torch.no_grad():
            for name, value in parameters.tensors().items():
                current = getattr(self, name)
                # Row-major, as it will be when it comes back from a file: other layouts may round differently.
                value = value.to(current).clone(memory_format=torch.contiguous_format)
                if name in self._parameters:
                    self._parameters[name].copy_(value)  # type: ignore[union-attr]
                else:
                    setattr(self, name, value)
        set_number(self, "fitted", 1.0)
        self._prepare()

    @property
    def is_fitted(self) -> bool:
        """Whether there are parameters to ask."""
        return bool(number(self, "fitted"))

    @property
    def classes(self) -> Tensor:
        """The class (K,) of each component: `component_labels`, or its number."""
        given = range(self.n_components) if self.component_labels is None else self.component_labels
        return torch.tensor(list(given), device=self.means.device)

    @property
    def frozen(self) -> dict[str, list[bool]] | None:
        """Masks (K,) of the components of which some part stays as it is, by part; what is set is checked."""
        return self._frozen

    @frozen.setter
    def frozen(self, parts: Any) -> None:
        self._frozen = checked_parts(parts, self.n_components, shared_scale=not self.structure.per_component)

    def train_by_gradients(self) -> Self:
        """Turn the parameters into `nn.Parameter`s, so that an optimizer can train them through `log_prob`.

        Weights stay on the simplex, scales positive definite and finite ν positive. `fit` still works. It cannot be
        undone, and the module can then no longer be pickled.
        """
        with torch.no_grad():  # a weight of zero has no finite unconstrained value
            self.weights = self.weights.clamp(min=torch.finfo(self.weights.dtype).tiny)
        tensors = {"weights": constraints.simplex, "means": constraints.real, **self.structure.constraints}
        if not self.dof.isinf().any():
            tensors["dof"] = constraints.positive
        train_by_gradients(self, tensors)
        return self

    def full_precision(self) -> AbstractContextManager[None]:
        """A block whose products nothing outside makes less precise."""
        return full_precision(self.means.device, allow_tf32=self.allow_tf32)

    def exact_arithmetic(self) -> AbstractContextManager[None]:
        """The same without autograd, for what is kept."""
        return exact_arithmetic(self.means.device, allow_tf32=self.allow_tf32)

    def require_fitted(self) -> None:
        """Raise a `RuntimeError` unless there are parameters to ask."""
        if self._latest() is not None:  # before the other question, which makes the host wait for a GPU
            return
        waiting = self.running.waiting
        seen = "" if waiting is None else f" ({waiting.rows} of at least {self.n_components} rows seen)"
        raise RuntimeError(f"this StudentTMixture is not fitted yet: call fit or partial_fit first{seen}")

    def reorder(self, components: Tensor | list[int]) -> Self:
        """Renumber the components: the new component k is the present component `components[k]`.

        The density, and the stream that `partial_fit` continues, stay what they are.
        """
        order = torch.as_tensor(components, device=self.means.device)
        if order.dim() != 1 or sorted(order.tolist()) != list(range(self.n_components)):
            raise ValueError(f"components must be a permutation of 0 … {self.n_components - 1}, got {order.tolist()}")
        if self.background and int(order[-1]) != self.n_components - 1:
            raise ValueError(f"components must leave the background the last one, got {order.tolist()}")
        self.require_fitted()
        with self.exact_arithmetic():
            parameters = self.snapshot()
            self.adopt(parameters.take(order))
            if self.component_labels is not None:
                self.component_labels = self.classes[order].tolist()
            if self.frozen is not None:
                self.frozen = {part: [mask[k] for k in order.tolist()] for part, mask in self.frozen.items()}
            if self.running.started:
                self.running.set(self.running.stream.reorder(parameters.scale, order))
        return self

    # ---------------------------------------------------------------- settings and files

    @classmethod
    def from_parameters(
        cls,
        weights: Tensor | np.ndarray | list[float],
        means: Tensor | np.ndarray,
        scales: Tensor | np.ndarray | None = None,
        *,
        loadings: Tensor | np.ndarray | None = None,
        noise: Tensor | np.ndarray | None = None,
        dof: float | Tensor | list[float] = 4.0,
        covariance_type: CovarianceType = "full",
        **settings: Unpack[GivenSettings],
    ) -> Self:
        """A mixture with given parameters, ready to be asked, or to be fitted further with `warm_start=True`.

        Args:
            weights: (K,), not negative, not all zero; they are normalised.
            means: (K, d).
            scales: scale matrices (K, d, d), of which a structure other than "full" keeps the closest it can hold.
            loadings: Λ (K, d, q) of "lowrank", instead of `scales`.
            noise: the diagonals (K, d) of Ψ, with `loadings`.
            dof: as for the constructor.
            covariance_type: as for the constructor; "lowrank" with `loadings`.
            **settings: further arguments of the constructor.
        """
        means = validation.means(means)
        K, d = means.shape
        arguments: dict[str, Any] = {"dtype": means.dtype if means.is_floating_point() else None, **settings}
        factors = validation.factors(loadings, noise, scales, K, d)
        if factors:
            covariance_type, arguments["rank"] = "lowrank", factors["loadings"].shape[2]
        arguments.update(n_components=K, n_features=d, dof=dof, covariance_type=covariance_type)
        mixture = cls(**arguments)
        if factors:
            scale = mixture.structure(**factors)
        else:
            scale = mixture.structure.from_dense(validation.covariance_matrices(scales, K, d), mixture.rank or 0)
        mixture.adopt(Parameters(validation.weights(weights, K), means.double(), scale, mixture.dof.double()))
        return mixture

    @classmethod
    def setting_names(cls) -> list[str]:
        """The names of all arguments that say how to fit, in their order; each is an attribute of a mixture."""
        return [name for name in inspect.signature(cls).parameters if name not in ("dof", "device", "dtype")]

    def settings(self) -> dict[str, Any]:
        """The arguments that make a mixture like this one, but unfitted: `StudentTMixture(**mixture.settings())`."""
        placement = {"device": self.means.device, "dtype": self.means.dtype}
        return {**{name: getattr(self, name) for name in self.setting_names()}, "dof": self.initial_dof, **placement}

    def save(self, path: str | os.PathLike[str], origin: dict[str, Any] | None = None) -> None:
        """Write everything to a safetensors file: settings, parameters, a stream, and `origin`, words on the data.

        The generator is not saved unless it is a seed, nor is `train_by_gradients`, to be called again after `load`.
        """
        record = {name: getattr(self, name) for name in RECORD}
        files.write(path, self.plain_state(), files.encoded(self.settings()), record, origin)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: torch.device | str | None = None) -> Self:
        """The mixture that `save` wrote. Nothing in the file is executed."""
        tensors, settings, record = files.read(path)
        arguments = {**files.decoded(settings), "dof": tensors["initial_dof"].tolist(), "device": device}
        mixture = cls(**arguments)
        mixture.load_state_dict(tensors)
        for name, value in record.items():
            setattr(mixture, name, value)
        return mixture

    # ---------------------------------------------------------------- inside

    def _latest(self) -> Density | None:
        """The component densities, prepared anew only if a buffer has changed since; None if not fitted."""
        if not torch.compiler.is_compiling() and not self._is_prepared():
            self._prepare()
        return self._prepared

    def _sources(self) -> list[Tensor]:
        """The tensors that the parameters are made of."""
        buffers = [buffer for buffer in self._buffers.values() if buffer is not None]
        return [*buffers, *self.parameters()] if "parametrizations" in self._modules else buffers

    def _is_prepared(self) -> bool:
        sources = self._sources()
        return len(sources) == len(self._prepared_from) and all(
            now is tensor and now._version == version for now, (tensor, version) in zip(sources, self._prepared_from)
        )

    def _prepare(self) -> None:
        """Work out what all questions need; the one place that asks the device whether the mixture is fitted."""
        sources = self._sources()
        self._prepared, self._prepared_from = None, []
        if self.means.is_meta or not self.is_fitted:
            return
        with self.exact_arithmetic():
            self._prepared = working_density(self.snapshot(), self.means.dtype)
        if not any(tensor.is_inference() for tensor in sources):  # they count no versions
            self._prepared_from = [(tensor, tensor._version) for tensor in sources]

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._prepare()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prepared": None, "_prepared_from": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._prepare()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        metadata: dict[str, Any],
        strict: bool,
        missing: list[str],
        unexpected: list[str],
        errors: list[str],
    ) -> None:
        # A mixture is loaded whole or not at all: half of one would pass for fitted.
        own = self.state_dict(prefix=prefix, keep_vars=True)
        wrong = [name for name in own.keys() & state_dict.keys() if state_dict[name].shape != own[name].shape]
        if not wrong and own.keys() <= state_dict.keys():
            super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
            self._prepare()
            return
        missing.extend(name for name in own if strict and name not in state_dict)
        errors.extend(
            f"size mismatch for {name}: {tuple(state_dict[name].shape)} in the state, {tuple(own[name].shape)} here"
            for name in sorted(wrong)
        )
        # What is inside, whose turn is next, stays with the parameters.
        for child, module in self.named_children():
            for name in [name for name in state_dict if name.startswith(f"{prefix}{child}.")]:
                del state_dict[name]
            module.state_dict(destination=state_dict, prefix=f"{prefix}{child}.")
