"""What a fitted mixture answers: criteria, covariances, top responsibilities, samples."""

import functools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.mixture import GaussianMixture
from torch.utils.data import DataLoader

from tmixture import StudentTMixture, state

from .helpers import IN_SCIKIT_LEARN, STRUCTURES, in_turn, of


def rows(n=400, d=3, seed=0):
    return 2 * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fit(structure, n=400, d=3, K=3, **settings):
    return StudentTMixture(K, d, **of(structure), generator=0, dtype=torch.float64, **settings).fit(rows(n, d))


@pytest.mark.parametrize("structure", IN_SCIKIT_LEARN)
@pytest.mark.parametrize(("K", "d"), [(1, 1), (1, 4), (3, 1), (4, 5)])
def test_free_parameters_are_counted_as_in_scikit_learn(structure, K, d):
    theirs = GaussianMixture(K, covariance_type=structure, tol=1e9).fit(rows(50, d).numpy())
    assert StudentTMixture(K, d, **of(structure)).n_free_parameters == theirs._n_parameters()
    shared = StudentTMixture(K, d, **of(structure), learn_dof="shared")
    assert shared.n_free_parameters == theirs._n_parameters() + 1
    each = StudentTMixture(K, d, **of(structure), learn_dof="component")
    assert each.n_free_parameters == theirs._n_parameters() + K


@pytest.mark.parametrize(("structure", "weighted"), in_turn(STRUCTURES, [False, True]))
def test_criteria_are_their_definitions(structure, weighted):
    mixture, x = fit(structure, chunk_size=64), rows(90, seed=1)
    weight = torch.arange(90) % 3 if weighted else torch.ones(90)
    log_likelihood = entropy = 0.0
    for row, s in zip(x, weight.tolist()):
        densities = [
            pi * stats.multivariate_t(mean, scale, dof).pdf(row.numpy())
            for pi, mean, scale, dof in zip(
                mixture.weights.numpy(), mixture.means, mixture.scales, mixture.dof.tolist()
            )
        ]
        total = sum(densities)
        log_likelihood += s * math.log(total)
        entropy -= s * sum(density / total * math.log(density / total) for density in densities)
    p, n = mixture.n_free_parameters, float(weight.sum())
    arguments = (x, weight) if weighted else (x,)
    assert mixture.score(*arguments) == pytest.approx(log_likelihood / n, rel=1e-9)
    assert mixture.bic(*arguments) == pytest.approx(-2 * log_likelihood + p * math.log(n), rel=1e-9)
    assert mixture.aic(*arguments) == pytest.approx(-2 * log_likelihood + 2 * p, rel=1e-9)
    assert mixture.icl(*arguments) == pytest.approx(-2 * log_likelihood + p * math.log(n) + 2 * entropy, rel=1e-9)


def test_icl_of_one_hot_responsibilities_is_bic():
    x = torch.cat([rows(100, 2), rows(100, 2) + 1e4])
    mixture = StudentTMixture(2, 2, dof=float("inf"), generator=0).fit(x)
    assert mixture.icl(x) == mixture.bic(x)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_top_responsibilities_are_the_largest_ones(structure):
    mixture, x = fit(structure, K=6), rows(seed=1)
    values, components = mixture.top_responsibilities(x, 3)
    expected = mixture(x).sort(dim=1, descending=True)
    torch.testing.assert_close(values, expected.values[:, :3])
    torch.testing.assert_close(mixture(x).gather(1, components), values)
    assert torch.equal(components[:, 0], mixture.predict(x))
    torch.testing.assert_close(mixture.top_responsibilities(x, 6)[0].sum(1), torch.ones(400, dtype=torch.float64))
    for k in (0, 7):
        with pytest.raises(ValueError, match=f"k must lie in 1 … n_components=6, got {k}"):
            mixture.top_responsibilities(x, k)


def test_covariances_exist_above_two_degrees_of_freedom():
    scales = torch.tensor([[[2.0, 0.5], [0.5, 1.0]]], dtype=torch.float64).expand(4, 2, 2)
    mixture = StudentTMixture.from_parameters(
        torch.ones(4), torch.zeros(4, 2, dtype=torch.float64), scales, dof=[1.0, 2.0, 4.0, float("inf")]
    )
    torch.testing.assert_close(mixture.scales, scales)
    covariances = mixture.covariances
    assert covariances[:2].isinf().all()
    torch.testing.assert_close(covariances[2], 2 * scales[0])
    torch.testing.assert_close(covariances[3], scales[0])
    spherical = StudentTMixture.from_parameters(
        torch.ones(2), torch.zeros(2, 2), torch.eye(2).expand(2, 2, 2), dof=[1.0, 4.0], covariance_type="spherical"
    )
    assert torch.equal(spherical.covariances[1], 2 * torch.eye(2))
    assert spherical.covariances[0].isinf().all()


@pytest.mark.parametrize("dof", [1e9, 1e15, 1e30, 1e300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_large_dof_is_nearly_gaussian(dof, dtype):
    parameters = (torch.ones(2), torch.arange(6, dtype=dtype).reshape(2, 3), torch.eye(3).expand(2, 3, 3))
    large, gaussian = (StudentTMixture.from_parameters(*parameters, dof=nu) for nu in (dof, float("inf")))
    x = rows(50, 3).to(dtype)
    for query in ("log_prob", "responsibilities", "outlier_weights"):
        torch.testing.assert_close(getattr(large, query)(x), getattr(gaussian, query)(x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(large.covariances, gaussian.covariances)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("dof", [3.0, 12.0, float("inf")])
def test_samples_have_the_distribution_of_the_mixture(structure, dof):
    n = 60_000
    mixture = StudentTMixture.from_parameters(
        [0.2, 0.8],
        torch.tensor([[0.0, 0.0, 0.0], [9.0, -3.0, 1.0]], dtype=torch.float64),
        torch.tensor([[[2.0, 0.7, 0.1], [0.7, 1.0, -0.3], [0.1, -0.3, 0.5]], (torch.eye(3) * 3).tolist()]).double(),
        dof=dof,
        **of(structure),
    )
    x, component = mixture.sample(n, generator=torch.Generator().manual_seed(0))
    assert x.shape == (n, 3)
    share = float((component == 0).double().mean())
    assert abs(share - 0.2) < 4 * math.sqrt(0.2 * 0.8 / n)
    for k in range(2):
        rows = x[component == k]
        # δ/d follows F(d, ν), whose quantiles know location, scale and tails at once.
        delta = ((rows - mixture.means[k]) @ torch.linalg.inv(mixture.scales[k]) * (rows - mixture.means[k])).sum(1)
        reference = stats.chi2(3) if math.isinf(dof) else stats.f(3, dof)
        scaled = delta if math.isinf(dof) else delta / 3
        assert stats.kstest(scaled.numpy(), reference.cdf).pvalue > 1e-4
        # The direction of the whitened rows is uniform, so no axis is favoured.
        white = torch.linalg.solve_triangular(
            torch.linalg.cholesky(mixture.scales[k]), (rows - mixture.means[k]).T, upper=False
        ).T
        directions = torch.nn.functional.normalize(white, dim=1)
        torch.testing.assert_close(directions.T @ directions / len(rows), torch.eye(3).double() / 3, atol=0.015, rtol=0)
        assert directions.mean(0).abs().max() < 0.025
        if dof > 10:
            torch.testing.assert_close(torch.cov(rows.T), mixture.covariances[k], rtol=0.05, atol=0.15)
    again, _ = mixture.sample(n, generator=torch.Generator().manual_seed(0))
    assert torch.equal(x, again)


def test_a_seed_samples_as_its_generator_does():
    mixture = fit("diag")
    expected = mixture.sample(5, generator=torch.Generator().manual_seed(3))
    assert all(torch.equal(*pair) for pair in zip(mixture.sample(5, generator=3), expected))
    with pytest.raises(ValueError, match=r"generator must be a torch\.Generator, a seed or None"):
        mixture.sample(5, generator="3")


QUESTIONS = ["forward", "responsibilities", "log_joint", "component_log_prob", "log_prob", "outlier_weights"]


@pytest.mark.parametrize("question", [*QUESTIONS, "top_responsibilities"])
def test_questions_take_whatever_fit_takes_a_chunk_at_a_time(question, tmp_path):
    mixture, x = fit("diag", chunk_size=64), rows(300, seed=1)
    ask = functools.partial(getattr(mixture, question), **({"k": 2} if question == "top_responsibilities" else {}))
    np.save(tmp_path / "x.npy", x.numpy())
    expected = ask(x)
    for data in (x.numpy(), tmp_path / "x.npy", [x[:7], x[7:]], DataLoader(x, batch_size=50), x.tolist()):
        answer = ask(data)
        for one, other in zip(answer, expected) if question == "top_responsibilities" else [(answer, expected)]:
            torch.testing.assert_close(one, other)
    assert not (answer[0] if question == "top_responsibilities" else answer).requires_grad


def test_no_more_is_held_than_is_asked_for(monkeypatch):
    """Of 300 rows by 3 components, chunks of 64 rows."""
    mixture, x = fit("diag", chunk_size=64), rows(300, seed=1)
    asked = []
    own = mixture.in_chunks(lambda rows: asked.append(len(rows)) or mixture.outlier_weights(rows).amax(1), x)
    assert asked == [64, 64, 64, 64, 44]
    torch.testing.assert_close(own, mixture.outlier_weights(x).amax(1))


def test_no_rows_have_no_answers():
    mixture, x = fit("diag"), rows(300)
    for none in (x[:0], x[:0].numpy(), []):
        assert mixture.predict(none).shape == (0,)
        assert mixture.in_chunks(mixture.log_prob, none).shape == (0,)
    assert mixture(x[:0]).shape == (0, 3)
    with pytest.raises(
        ValueError, match=r"data must be two-dimensional \(N, 3\), got shape \(3,\); one row is x\[None\]"
    ):
        mixture.predict(x[0])
    assert mixture.predict(x[0][None]).shape == (1,)


def test_sampling_checks_its_argument():
    for n in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="n must be a positive integer"):
            fit("diag").sample(n)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_from_parameters_keeps_what_the_structure_can_hold(structure):
    source = fit(structure, dof=5.0)
    rebuilt = StudentTMixture.from_parameters(
        source.weights.numpy() * 7, source.means.numpy(), source.scales.numpy(), dof=5.0, **of(structure)
    )
    x = rows(seed=2)
    atol = 1e-5 if structure == "lowrank" else 1e-7
    torch.testing.assert_close(rebuilt.log_prob(x), source.log_prob(x), rtol=1e-7, atol=atol)
    rebuilt.warm_start = True
    assert rebuilt.fit(rows()).history_[0] == pytest.approx(source.history_[-1], abs=1e-4)  # it goes on from there


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, -1.0], torch.zeros(2, 1), torch.ones(2, 1, 1)), "weights must be 2 numbers"),
        (([0.0, 0.0], torch.zeros(2, 1), torch.ones(2, 1, 1)), "weights must be 2 numbers"),
        (([1.0], torch.zeros(2, 1), torch.ones(2, 1, 1)), "weights must be 2 numbers"),
        (([1.0, 1.0], torch.zeros(2), torch.ones(2, 1, 1)), "means must have shape"),
        (([1.0, 1.0], torch.tensor([[0.0], [math.nan]]), torch.ones(2, 1, 1)), "means must be finite"),
        (([1.0, 1.0], torch.zeros(2, 1), torch.ones(2, 1)), "scales must have shape"),
        (([1.0, 1.0], torch.zeros(2, 1), torch.tensor([[[1.0]], [[-1.0]]])), "that of component 1 is not"),
        (([1.0, 1.0], torch.zeros(2, 1), torch.tensor([[[math.nan]], [[1.0]]])), "that of component 0 is not"),
    ],
)
def test_from_parameters_checks_them(arguments, message):
    with pytest.raises(ValueError, match=message):
        StudentTMixture.from_parameters(*arguments)


def test_from_parameters_takes_factors_as_they_are():
    generator = torch.Generator().manual_seed(0)
    loadings = torch.randn(2, 5, 2, generator=generator, dtype=torch.float64)
    noise = torch.rand(2, 5, generator=generator, dtype=torch.float64) + 0.1
    means = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    mixture = StudentTMixture.from_parameters([1.0, 3.0], means, loadings=loadings, noise=noise)
    assert (mixture.covariance_type, mixture.rank) == ("lowrank", 2)
    torch.testing.assert_close(mixture.loadings, loadings, rtol=0, atol=0)
    torch.testing.assert_close(mixture.scales, loadings @ loadings.mT + torch.diag_embed(noise))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either scales, or both loadings and noise must be given"),
        ({"loadings": torch.ones(2, 3, 1)}, "either scales, or both loadings and noise must be given"),
        (
            {"loadings": torch.ones(2, 3, 1), "noise": torch.ones(2, 3), "scales": torch.eye(3).repeat(2, 1, 1)},
            "either scales, or both loadings and noise must be given",
        ),
        (
            {"loadings": torch.ones(2, 4, 1), "noise": torch.ones(2, 3)},
            r"loadings must .* shape \(2, 3, q\), got shape",
        ),
        ({"loadings": torch.ones(2, 3, 1), "noise": torch.zeros(2, 3)}, r"noise must be positive, finite and"),
        ({"scales": torch.eye(3).repeat(2, 1, 1).index_fill(1, torch.tensor([0]), 0.5)}, "scales must be symmetric"),
    ],
)
def test_from_parameters_checks_factors_and_symmetry(arguments, message):
    with pytest.raises(ValueError, match=message):
        StudentTMixture.from_parameters([1.0, 1.0], torch.zeros(2, 3), **arguments)


def test_rounding_is_no_asymmetry():
    matrix = torch.tensor([[1e6, 1.0], [1.0 + 1e-6, 4e-6]], dtype=torch.float64)
    mixture = StudentTMixture.from_parameters([1.0], torch.zeros(1, 2, dtype=torch.float64), matrix[None])
    torch.testing.assert_close(mixture.scales[0], (matrix + matrix.T) / 2)


@pytest.mark.parametrize("change", ["in place", "another tensor"])
def test_the_densities_are_prepared_once_for_the_same_parameters(monkeypatch, change):
    """Asked ten times, a mixture factorises its matrices once; after a change of a buffer it does so anew."""
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    mixture = StudentTMixture(2, 3, covariance_type="full", generator=0).fit(x)
    prepared, real = [], state.working_density
    monkeypatch.setattr(state, "working_density", lambda *args: prepared.append(args) or real(*args))
    for _ in range(10):
        before = mixture.log_prob(x)
    assert prepared == []
    if change == "in place":
        mixture.means.add_(1.0)
    else:
        mixture.means = mixture.means + 1.0
    for _ in range(10):
        after = mixture.log_prob(x + 1.0)
    assert len(prepared) == 1
    torch.testing.assert_close(after, before)


# ---------------------------------------------------------------- how far out


@pytest.mark.parametrize("dof", [0.5, 4.0, math.inf, [1.0, math.inf, 30.0]], ids=str)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_tail_probabilities_of_the_mixtures_own_rows_are_uniform(structure, dof):
    means = 1e4 * torch.eye(3, 5, dtype=torch.float64)
    factor = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scales = (factor @ factor.T + torch.eye(5)).expand(3, -1, -1)
    mixture = StudentTMixture.from_parameters([0.2, 0.3, 0.5], means, scales, dof=dof, **of(structure))
    x, component = mixture.sample(3000, generator=0)
    own = mixture.tail_probability(x)[torch.arange(3000), component]
    for k in range(3):
        assert stats.kstest(own[component == k].numpy(), "uniform").pvalue > 1e-4


def test_tail_probabilities_are_those_of_scipys_distribution():
    mixture = StudentTMixture.from_parameters([1.0], [[1.0, 2.0]], [[[2.0, 0.0], [0.0, 0.5]]], dof=3.0)
    x = torch.tensor([[1.0, 2.0], [3.0, 2.0], [1.0, 1e3]])
    delta = np.array([0.0, 2.0, (1e3 - 2) ** 2 / 0.5])
    np.testing.assert_allclose(mixture.mahalanobis(x)[:, 0].numpy(), delta, rtol=1e-5)
    expected = stats.f(2, 3.0).sf(delta / 2)
    np.testing.assert_allclose(mixture.tail_probability(x)[:, 0].numpy(), expected, rtol=1e-5)


def test_the_distance_is_that_of_the_covariance_up_to_nu():
    """numpy's solve of each row; its gradient is 2·Σ⁻¹(x − μ)."""
    mixture = StudentTMixture(2, 3, covariance_type="full", generator=0, dtype=torch.float64)
    x = torch.randn(100, 3, dtype=torch.float64, requires_grad=True)
    mixture.fit(x)
    distances = mixture.mahalanobis(x)
    difference = x.detach() - mixture.means[1]
    turned = torch.linalg.solve(mixture.scales[1], difference.T).T
    torch.testing.assert_close(distances[:, 1], (difference * turned).sum(1))
    (gradient,) = torch.autograd.grad(distances[:, 1].sum(), x)
    torch.testing.assert_close(gradient, 2 * turned)


@pytest.mark.parametrize("dof", [4.0, math.inf])
def test_as_many_rows_as_asked_for_are_outliers_of_their_component(dof, tmp_path):
    means = 1e3 * torch.eye(2, 4)
    mixture = StudentTMixture.from_parameters([0.5, 0.5], means, torch.eye(4).expand(2, -1, -1), dof=dof)
    x, component = mixture.sample(20_000, generator=0)
    labels = mixture.predict(x, outliers=0.02)
    assert 0.017 < (labels == -1).float().mean() < 0.023  # six standard errors
    own = mixture.tail_probability(x).gather(1, component[:, None])[:, 0]
    assert torch.equal(labels == -1, own < 0.02)
    assert torch.equal(labels[labels >= 0], mixture.predict(x)[labels >= 0])
    np.save(tmp_path / "x.npy", x.numpy())
    mixture.chunk_size = 333
    assert torch.equal(mixture.predict(tmp_path / "x.npy", outliers=0.02), labels)


@pytest.mark.parametrize("outliers", [0, 1, -0.1, 1.5, True, "0.1", float("nan")])
def test_a_share_of_outliers_is_a_probability(outliers):
    mixture = StudentTMixture.from_parameters([1.0], [[0.0]], [[[1.0]]])
    with pytest.raises(ValueError, match="outliers must be a probability"):
        mixture.predict(torch.zeros(2, 1), outliers=outliers)
