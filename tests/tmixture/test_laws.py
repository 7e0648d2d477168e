"""Laws of a fit: affine maps, permutation, weights as repetition, chunking, storage, dtypes, and its fixed point."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from tmixture import StudentTMixture

from . import naive
from .helpers import LEARN_DOF, STRUCTURES, TIED, assert_same_parameters, from_model, in_turn, of, parameters

# Derandomized: a tolerance met by 999 of 1000 draws must not fail somebody's run.
laws = settings(max_examples=10, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
modes = {"structure": st.sampled_from(STRUCTURES), "learn_dof": st.sampled_from(LEARN_DOF)}


def transformation(structure, d, rng):
    """A linear map of the group under which the structure is closed."""
    rotation, _ = np.linalg.qr(rng.normal(size=(d, d)))
    if structure in ("spherical", "tied_spherical"):
        return rng.uniform(0.1, 10) * rotation
    if structure in ("diag", "tied_diag", "lowrank"):
        return np.diag(rng.uniform(0.1, 10, d) * rng.choice([-1, 1], d))[rng.permutation(d)]
    return rotation @ np.diag(rng.uniform(0.2, 5, d)) @ np.linalg.qr(rng.normal(size=(d, d)))[0]


@laws
@given(seed=seeds, **modes)
def test_affine_equivariance(seed, structure, learn_dof):
    """Fit(Ax + b) is A·fit(x) + b, and the log-likelihood falls by log|det A|."""
    rng = np.random.default_rng(seed)
    x, start = naive.heavy_tailed(d=3, N=100, structure=structure, seed=seed % 1000)
    A, b = transformation(structure, 3, rng), rng.normal(size=3) * 10
    moved_start = naive.Model(start.weights, start.means @ A.T + b, A @ start.scales @ A.T, start.dof)
    plain = from_model(start, structure, learn_dof=learn_dof, max_iter=8).fit(x)
    moved = from_model(moved_start, structure, learn_dof=learn_dof, max_iter=8).fit(x @ A.T + b)
    before = parameters(plain)
    expected = naive.Model(before["weights"], before["means"] @ A.T + b, A @ before["scales"] @ A.T, before["dof"])
    assert_same_parameters(moved, expected, rtol=1e-7)
    shift = np.linalg.slogdet(A)[1]
    np.testing.assert_allclose(moved.history_, np.array(plain.history_) - shift, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(moved(x @ A.T + b), plain(x), rtol=1e-5, atol=1e-8)


@laws
@given(seed=seeds, **modes)
def test_permutation_of_the_components(seed, structure, learn_dof):
    x, start = naive.heavy_tailed(K=4, d=2, N=80, structure=structure, seed=seed % 1000)
    order = np.random.default_rng(seed).permutation(4)
    permuted = naive.Model(start.weights[order], start.means[order], start.scales[order], start.dof[order])
    one, other = (from_model(m, structure, learn_dof=learn_dof, max_iter=6).fit(x) for m in (start, permuted))
    after = parameters(one)
    assert_same_parameters(other, naive.Model(*(after[name][order] for name in after)), rtol=1e-9)


@laws
@given(seed=seeds)
def test_order_of_the_rows(seed):
    x, start = naive.heavy_tailed(d=3, N=100, seed=seed % 1000)
    order = np.random.default_rng(seed).permutation(100)
    one, other = (from_model(start, "full", learn_dof="component", max_iter=6).fit(rows) for rows in (x, x[order]))
    assert_same_parameters(other, one, rtol=1e-9)


@laws
@given(seed=seeds, start_from=st.sampled_from(["parameters", "means", "labels", "responsibilities"]), **modes)
def test_integer_weights_are_repeated_rows(seed, start_from, structure, learn_dof):
    rng = np.random.default_rng(seed)
    start = naive.random_model(2, 2, structure, dof=10.0, seed=seed % 1000)
    x = naive.draw(start, 120)
    weight = rng.integers(0, 4, len(x))
    given_start = {
        "labels": np.arange(len(x)) % 2,
        "responsibilities": rng.dirichlet([1.0, 1.0], size=len(x)),
    }.get(start_from)

    def fit(rows, given_start, **arguments):
        mixture = from_model(start, structure, learn_dof=learn_dof, max_iter=6, reg_covar="auto")
        if start_from != "parameters":
            mixture.warm_start = False
        if start_from == "means":
            mixture.init = torch.as_tensor(start.means)
        return mixture.fit(rows, responsibilities=given_start, **arguments)

    weighted = fit(x, given_start, sample_weight=weight)
    repeated = fit(
        np.repeat(x, weight, axis=0), None if given_start is None else np.repeat(given_start, weight, axis=0)
    )
    assert_same_parameters(weighted, repeated, rtol=1e-8)
    np.testing.assert_allclose(weighted.history_, repeated.history_, rtol=1e-10)
    for criterion in ("score", "bic", "aic", "icl"):
        value = getattr(weighted, criterion)(x, weight)
        assert value == pytest.approx(getattr(repeated, criterion)(np.repeat(x, weight, axis=0)), rel=1e-8)


@laws
@given(seed=seeds, factor=st.floats(1e-3, 1e3), **modes)
def test_the_unit_of_the_weights_does_not_matter(seed, factor, structure, learn_dof):
    x, start = naive.heavy_tailed(N=80, structure=structure, seed=seed % 1000)
    weight = np.random.default_rng(seed).uniform(0, 2, len(x))
    one, other = (
        from_model(start, structure, learn_dof=learn_dof, max_iter=6).fit(x, sample_weight=w)
        for w in (weight, factor * weight)
    )
    assert_same_parameters(other, one, rtol=1e-8)
    np.testing.assert_allclose(other.history_, one.history_, rtol=1e-10)


@laws
@given(seed=seeds, size=st.integers(1, 100), init=st.sampled_from([None, "kmeans", "kmeans++", "random"]), **modes)
def test_chunking(seed, size, init, structure, learn_dof):
    """Whatever the chunk size, the same parameters, to about 1e-6 in float32 (the scales, as squares, to 3e-6)."""
    start = naive.random_model(3, 3, structure, seed=seed % 1000, dof=8.0, spread=3.0)
    x = naive.draw(start, 90)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 3e-6)):
        fits = []
        for chunk_size in (size, None):
            mixture = from_model(
                start,
                structure,
                learn_dof=learn_dof,
                max_iter=5,
                chunk_size=chunk_size,
                dtype=dtype,
                generator=seed % 99,
            )
            if init is not None:
                mixture.warm_start, mixture.init = False, init
            fits.append(mixture.fit(x))
        # A component on a handful of rows is nearly singular, and magnifies rounding.
        assume(float(fits[1].weights.min()) > 0.15)
        assert_same_parameters(*fits, rtol=tolerance)
        np.testing.assert_allclose(fits[0].history_, fits[1].history_, rtol=tolerance)
        assert fits[0].score(x) == pytest.approx(fits[1].score(x), rel=tolerance)


class Pairs:
    """A loader of (x, label) tuples that can be iterated again."""

    def __init__(self, x, size):
        self.x, self.size = x, size

    def __iter__(self):
        for part in self.x.split(self.size):
            yield part, torch.zeros(len(part))


@pytest.mark.parametrize(("structure", "init"), in_turn(STRUCTURES, ["kmeans", "random"]))
def test_storage(structure, init, tmp_path):
    """However the same rows are stored, the same fit."""
    x, _ = naive.heavy_tailed(d=3, N=101, structure=structure)
    tensor = torch.as_tensor(x)
    paths = []
    for i, part in enumerate(np.split(x, [10, 11, 64])):
        paths.append(tmp_path / f"{i}.npy")
        np.save(paths[-1], part)
    np.save(tmp_path / "all.npy", x)
    stores = {
        "tensor": tensor,
        "array": x,
        "Fortran order": np.asfortranarray(x),
        "big-endian": x.astype(">f8"),
        "not contiguous": torch.stack([tensor, tensor], dim=2)[:, :, 0],
        "memory map": np.load(tmp_path / "all.npy", mmap_mode="r"),
        "path": tmp_path / "all.npy",
        "shards": paths,
        "shards as text": [str(path) for path in paths],
        "arrays": np.split(x, [50]),
        "nested lists": x.tolist(),
        "loader": DataLoader(tensor, batch_size=7),
        "loader of tuples": DataLoader(TensorDataset(tensor, torch.zeros(101)), batch_size=13),
        "pairs": Pairs(tensor, 101),
    }
    weight = np.random.default_rng(0).integers(0, 3, 101)
    arguments = {**of(structure), "init": init, "chunk_size": 40, "max_iter": 5, "generator": 3}

    def fit(data):
        mixture = StudentTMixture(3, 3, dtype=torch.float64, learn_dof="component", **arguments)
        return mixture.fit(data, sample_weight=weight)

    reference = fit(tensor)
    for name, data in stores.items():
        mixture = fit(data)
        assert_same_parameters(mixture, reference, rtol=1e-12)
        assert mixture.predict(data).tolist() == reference.predict(tensor).tolist(), name
        assert mixture.bic(data, weight) == pytest.approx(reference.bic(tensor, weight), rel=1e-12), name


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("learn_dof", LEARN_DOF)
def test_dtype_of_the_parameters(structure, learn_dof):
    """Float32 gives the float64 fit to float32 precision, also far from the origin and for tiny variances."""
    x, start = naive.heavy_tailed(d=3, N=150, structure=structure, seed=1)
    for offset, scale in ((0.0, 1.0), (0.0, 1e-3), (100.0, 1.0)):
        rows = torch.as_tensor(offset + scale * x).float()
        moved = naive.Model(start.weights, offset + scale * start.means, scale**2 * start.scales, start.dof)
        single, double = (
            from_model(moved, structure, learn_dof=learn_dof, max_iter=10, reg_covar="auto", dtype=dtype).fit(rows)
            for dtype in (torch.float32, torch.float64)
        )
        assert_same_parameters(single, double, rtol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64, torch.int8, torch.uint8])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_dtype_of_the_input(structure, dtype):
    """Rows of any dtype are the float64 rows of the same values."""
    x, start = naive.heavy_tailed(d=3, N=150, structure=structure)
    offset = 100 if dtype == torch.uint8 else 0
    rows = (torch.as_tensor(x * 5).clamp(-100, 100) + offset).to(dtype)
    model = naive.Model(start.weights, start.means * 5 + offset, start.scales * 25, start.dof)
    one, other = (
        from_model(model, structure, dtype=torch.float32, max_iter=8, reg_covar="auto").fit(data)
        for data in (rows, rows.double())
    )
    assert_same_parameters(one, other, rtol=2e-5)
    assert one.means.dtype == one.log_prob(rows).dtype == one(rows).dtype == torch.float32
    np.testing.assert_allclose(other.log_prob(rows), other.log_prob(rows.double()), rtol=1e-5)


def converged(structure, learn_dof):
    truth = naive.random_model(2, 2, structure, dof=3.0, spread=5.0)
    x = naive.draw(truth, 300)
    mixture = from_model(truth, structure, learn_dof=learn_dof, max_iter=1000, tol=1e-14).fit(x)
    assert mixture.converged_
    assert ((mixture.dof > 1) & (mixture.dof < 20)).all()
    return x, mixture


@pytest.mark.parametrize(("structure", "learn_dof"), in_turn(STRUCTURES, ["component", "shared", False]))
def test_the_fixed_point(structure, learn_dof):
    """Σ r·u·δ = d·Σ r and, per component of its own scale, Σ r·u = Σ r; the gradient of the likelihood vanishes."""
    x, mixture = converged(structure, learn_dof)
    rows, after = torch.as_tensor(x), parameters(mixture)
    r, u = mixture(rows), mixture.outlier_weights(rows)
    delta = (after["dof"] + 2) / u.numpy() - after["dof"]
    np.testing.assert_allclose((r * u * torch.as_tensor(delta)).sum(), 2 * len(x), rtol=1e-5)
    if structure not in TIED:
        np.testing.assert_allclose((r * u * torch.as_tensor(delta)).sum(0), 2 * r.sum(0), rtol=1e-4)
        np.testing.assert_allclose((r * u).sum(0), r.sum(0), rtol=1e-4)

    def slope(name, direction, step=1e-4):
        values = []
        for sign in (1, -1):
            moved = {**after, name: after[name] + sign * step * direction}
            moved["weights"] = moved["weights"] / moved["weights"].sum()
            values.append(naive.log_likelihood(x, naive.Model(**moved)) / len(x))
        return (values[0] - values[1]) / (2 * step)

    first = np.eye(2)[0]
    directions = {
        "weights": [first],
        "means": [np.outer(first, e) for e in np.eye(2)],
        "scales": [(np.ones(2) if structure in TIED else first)[:, None, None] * e for e in basis(structure)],
        "dof": {False: [], "shared": [np.ones(2)], "component": list(np.eye(2))}[learn_dof],
    }  # fmt: skip
    for name, several in directions.items():
        for direction in several:
            assert slope(name, direction) == pytest.approx(0, abs=2e-6), name


def basis(structure):
    """Directions in which a symmetric 2 × 2 matrix can change within the structure."""
    all_of_them = np.diag([1.0, 0.0]), np.diag([0.0, 1.0]), np.array([[0.0, 1.0], [1.0, 0.0]])
    if structure == "lowrank":  # one factor and noise of two features are any matrix
        return all_of_them
    return [naive.within((np.eye(2) + 0.5 * e)[None], structure)[0] - np.eye(2) for e in all_of_them]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_one_huge_outlier_leaves_the_fit_unchanged(structure, dtype):
    truth = naive.random_model(3, 4, structure, dof=6.0, spread=8.0)
    x = naive.draw(truth, 1000)
    corrupt = np.concatenate([x[:500], np.full((1, 4), 1e8), x[500:]])
    clean, outlier = (
        StudentTMixture(3, 4, **of(structure), generator=0, max_iter=100, tol=1e-8, dtype=dtype).fit(rows)
        for rows in (x, corrupt)
    )
    assert outlier.n_reseeded_ == 0
    one, other = clean.means[clean.means[:, 0].argsort()], outlier.means[outlier.means[:, 0].argsort()]
    np.testing.assert_allclose(other, one, atol=0.02)
    one, other = clean.scales[clean.means[:, 0].argsort()], outlier.scales[outlier.means[:, 0].argsort()]
    np.testing.assert_allclose(other, one, atol=0.03 * float(one.max()))
    assert torch.equal(clean.predict(x).unique(return_counts=True)[1], outlier.predict(x).unique(return_counts=True)[1])
    assert float(outlier.outlier_weights(torch.tensor([[1e8] * 4], dtype=dtype)).max()) < 1e-12
