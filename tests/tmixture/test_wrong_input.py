"""Wrong input: what is refused, in which words, and that nothing has changed."""

import math

import numpy as np
import pytest
import torch

from tmixture import PowerDecay, StudentTMixture

from .helpers import in_turn

INF = float("inf")


def rows(n=200, d=3, seed=0, dtype=torch.float32):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class Batches:
    def __init__(self, x, size=40):
        self.x, self.size = x, size

    def __iter__(self):
        return iter(self.x.split(self.size))


def call_every_learner(data, message, *arguments):
    """Fit and stream, fresh and fitted: the error is right, and nothing has changed after it."""
    for fitted in (False, True):
        mixture = StudentTMixture(3, 3, generator=0)
        if fitted:
            mixture.fit(rows())
        before = {name: tensor.clone() for name, tensor in mixture.state_dict().items()}
        history = list(mixture.history_)
        for learn in (mixture.fit, mixture.partial_fit):
            with pytest.raises(ValueError, match=message):
                learn(data, *arguments)
            after = mixture.state_dict()
            assert before.keys() == after.keys()
            assert all(torch.equal(before[name], after[name]) for name in before)
            assert mixture.history_ == history


@pytest.mark.parametrize(("bad", "row"), in_turn([math.nan, INF, -INF, 1e30], [0, 123, 199]))
def test_values_that_are_not_finite_are_named(bad, row, tmp_path):
    x = rows()
    x[row, 1] = bad
    if row < 150:
        x[row + 50, 0] = bad  # a later one, which is not the one to name
    message = f"row {row} holds (nan|inf|-inf|1.0*e\\+30|1e\\+30|1\\.00000001.*e\\+30|9\\.99.*e\\+29).* in column 1"
    call_every_learner(x, message)
    call_every_learner(x.numpy(), message)
    np.save(tmp_path / "a.npy", x[:70].numpy())
    np.save(tmp_path / "b.npy", x[70:].numpy())
    mixture = StudentTMixture(3, 3, generator=0, chunk_size=32)
    for data in (Batches(x), [tmp_path / "a.npy", tmp_path / "b.npy"], [x[:10], x[10:]]):
        with pytest.raises(ValueError, match=message):
            mixture.fit(data)
        assert not mixture.fitted
    fitted = StudentTMixture(3, 3, generator=0, chunk_size=32).fit(rows())
    for ask in (fitted.predict, fitted.score, fitted.bic):
        with pytest.raises(ValueError, match=message):
            ask(Batches(x))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(0, 3), "data is empty: at least one row"),
        (np.zeros((0, 3)), "data is empty: at least one row"),
        (torch.zeros(9), r"data must be two-dimensional \(N, 3\), got shape \(9,\); one row is x"),
        (np.zeros(9), r"data must be two-dimensional \(N, 3\), got shape \(9,\); one row is x"),
        (torch.zeros(9, 3, 1), r"data must be two-dimensional \(N, 3\), got shape \(9, 3, 1\)"),
        (torch.zeros(9, 4), "data has 4 features, but the mixture has n_features=3"),
        (np.zeros((9, 2)), "data has 2 features, but the mixture has n_features=3"),
        (torch.zeros(9, 3, dtype=torch.complex64), "data must hold real numbers, got dtype torch.complex64"),
        (np.array([["a", "b", "c"]] * 9), "data must hold real numbers, got dtype"),
        (np.array([[None, 1, 2]] * 9), "data must hold real numbers, got dtype object"),
        ([], "data is empty: at least one row"),
        (7, "data must be a tensor, an array"),
        (None, "data must be a tensor, an array"),
    ],
)
def test_data_of_the_wrong_shape_or_kind(data, message):
    call_every_learner(data, message)


def test_data_that_can_be_read_only_once():
    mixture = StudentTMixture(3, 3)
    for data in ((batch for batch in [rows()]), iter([rows()]), map(torch.clone, [rows()])):
        with pytest.raises(ValueError, match=r"iterated only once.*partial_fit"):
            mixture.fit(data)
    with pytest.raises(ValueError, match="data is empty"):
        mixture.fit(Batches(torch.zeros(0, 3)))
    with pytest.raises(ValueError, match="batch of data must be a tensor or an array, got str"):
        mixture.fit({"image": rows()})
    with pytest.raises(FileNotFoundError):
        mixture.fit("nowhere.npy")
    assert not mixture.fitted


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.cat([torch.ones(199), torch.tensor([-1.0])]), "sample_weight must be .* entry 199 is -1.0"),
        (torch.cat([torch.tensor([math.nan]), torch.ones(199)]), "sample_weight must be .* entry 0 is nan"),
        (torch.full((200,), INF), "sample_weight must be .* entry 0 is inf"),
        (torch.ones(199), "sample_weight has 199 entries, but the data has 200 rows"),
        (torch.ones(200, 1), r"sample_weight must be one-dimensional \(N,\), got shape \(200, 1\)"),
        (np.ones(201), "sample_weight has 201 entries, but the data has 200 rows"),
    ],
)
def test_wrong_weights(weight, message):
    call_every_learner(rows(), message, weight)


def test_weights_that_are_all_zero():
    with pytest.raises(ValueError, match="sample_weight is zero for every row"):
        StudentTMixture(3, 3).fit(rows(), torch.zeros(200))
    with pytest.raises(ValueError, match="sample_weight is zero for every row"):
        StudentTMixture(3, 3).fit(rows()).score(rows(), torch.zeros(200))
    with pytest.raises(ValueError, match="sample_weight has 300 entries, but the data has 200 rows"):
        StudentTMixture(3, 3).fit(Batches(rows()), torch.ones(300))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.full((200,), 3), r"labels must lie in 0 … 2, got values from 3 to 3"),
        (torch.full((200,), -1), r"labels must lie in 0 … 2, got values from -1 to -1"),
        (torch.zeros(199, dtype=torch.long), "responsibilities has 199 entries, but the data has 200 rows"),
        (torch.ones(200), r"integer labels \(N,\) or of shape \(N, 3\)"),
        (torch.ones(200, 4), r"integer labels \(N,\) or of shape \(N, 3\)"),
        (-torch.ones(200, 3), "responsibilities must be finite and not negative"),
    ],
)
def test_wrong_responsibilities(given, message):
    mixture = StudentTMixture(3, 3)
    with pytest.raises(ValueError, match=message):
        mixture.fit(rows(), responsibilities=given)
    assert not mixture.fitted


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3), r"x must have shape \(N, 3\), got \(3,\); one row is x\[None\]"),
        (torch.zeros(5, 4), r"x must have shape \(N, 3\), got \(5, 4\)"),
        (torch.zeros(5, 3, dtype=torch.complex64), "x must hold real numbers"),
    ],
)
def test_wrong_queries(x, message):
    mixture = StudentTMixture(3, 3, generator=0).fit(rows())
    for query in (mixture, mixture.log_prob, mixture.component_log_prob, mixture.outlier_weights):
        with pytest.raises(ValueError, match=message):
            query(x)


def test_an_empty_query_has_an_empty_answer():
    mixture = StudentTMixture(3, 3, generator=0).fit(rows())
    nothing = torch.zeros(0, 3)
    assert mixture(nothing).shape == mixture.outlier_weights(nothing).shape == (0, 3)
    assert mixture.log_prob(nothing).shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_components": 0}, "n_components must be a positive integer, got 0"),
        ({"n_components": 2.0}, "n_components must be a positive integer, got 2.0"),
        ({"n_components": True}, "n_components must be a positive integer, got True"),
        ({"n_features": -3}, "n_features must be a positive integer, got -3"),
        ({"n_features": "3"}, "n_features must be a positive integer, got '3'"),
        ({"dof": 0.0}, "dof must be positive, got 0.0"),
        ({"dof": math.nan}, "dof must be positive, got nan"),
        ({"dof": [1.0, 2.0]}, r"dof must be a number or one per component \(3\), got shape \(2,\)"),
        ({"dof": "many"}, "dof must be a number or one per component"),
        ({"dof": None}, "dof must be a number or one per component"),
        ({"dof": INF, "learn_dof": "shared"}, "dof must be finite to be learned"),
        ({"dof": [1.0, 2.0, 3.0], "learn_dof": "shared"}, "dof must be one number when learn_dof='shared'"),
        ({"learn_dof": True}, "learn_dof must be one of False, 'shared', 'component', got True"),
        ({"learn_dof": "each"}, "learn_dof must be one of .*, got 'each'"),
        ({"covariance_type": "round"}, "covariance_type must be one of 'diag', 'full', .*, got 'round'"),
        ({"covariance_type": None}, "covariance_type must be one of .*, got None"),
        ({"reg_covar": -1.0}, "reg_covar must be .*not negative, got -1.0"),
        ({"reg_covar": "some"}, "reg_covar must be .*, got 'some'"),
        ({"reg_covar": None}, "reg_covar must be .*, got None"),
        ({"init": "best"}, "init must be one of 'kmeans', 'kmeans\\+\\+', 'random', got 'best'"),
        ({"init": torch.zeros(2, 3)}, r"init must be one of .* shape \(3, 3\), got .*\(2, 3\)"),
        ({"init": torch.full((3, 3), math.nan)}, "init must be one of .* finite means"),
        ({"init": None}, "init must be one of"),
        ({"n_init": 0}, "n_init must be a positive integer, got 0"),
        ({"max_iter": -1}, "max_iter must be an integer that is not negative, got -1"),
        ({"max_iter": 1e3}, "max_iter must be an integer that is not negative, got 1000.0"),
        ({"tol": -1e-3}, "tol must be a finite number that is not negative, got -0.001"),
        ({"tol": None}, "tol must be a finite number that is not negative, got None"),
        ({"tol": math.nan}, "tol must be a finite number that is not negative, got nan"),
        ({"scale_update": "fast"}, "scale_update must be one of 'px', 'classic', got 'fast'"),
        ({"dof_bounds": (0.0, 10.0)}, r"dof_bounds must be a pair 0 < low < high < inf, got \(0.0, 10.0\)"),
        ({"dof_bounds": (5.0, 1.0)}, "dof_bounds must be a pair"),
        ({"dof_bounds": (1.0, INF)}, "dof_bounds must be a pair"),
        ({"dof_bounds": 3.0}, "dof_bounds must be a pair 0 < low < high < inf, got 3.0"),
        ({"dof_bounds": ("a", "b")}, "dof_bounds must be a pair"),
        ({"step_size": 0.0}, r"step_size must lie in \(0, 1\] or be a function .*, got 0.0"),
        ({"step_size": 1.5}, "step_size must lie in"),
        ({"step_size": "slow"}, "step_size must lie in"),
        ({"chunk_size": 0}, "chunk_size must be a positive integer, got 0"),
        ({"generator": "zero"}, "generator must be a torch.Generator, a seed or None, got 'zero'"),
        ({"generator": 1.5}, "generator must be a torch.Generator, a seed or None, got 1.5"),
        ({"dtype": torch.int32}, "dtype must be a floating-point dtype, got torch.int32"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        StudentTMixture(**{"n_components": 3, "n_features": 3, **arguments})


def test_unknown_settings_are_refused():
    with pytest.raises(TypeError, match="n_iter"):
        StudentTMixture(3, 3, n_iter=5)
    with pytest.raises(TypeError, match="n_iter"):
        StudentTMixture.from_parameters([1.0], torch.zeros(1, 1), torch.ones(1, 1, 1), n_iter=5)


@pytest.mark.parametrize(
    "arguments", [{"exponent": 0.5}, {"exponent": 1.1}, {"exponent": math.nan}, {"offset": -1.0}, {"offset": INF}]
)
def test_wrong_step_sizes(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"{name} must"):
        PowerDecay(**arguments)
