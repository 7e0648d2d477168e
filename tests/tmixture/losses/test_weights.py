"""Sample weights against their formulas."""

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses, reducers

from tmixture import StudentTMixture
from tmixture.losses import (
    ClusterLoss,
    ClusterTripletLoss,
    ClusterWeights,
    LabelWeights,
    effective_number,
    inverse,
    inverse_log,
)

from .helpers import clustered, fitted

FORMULAS = {
    "inverse": lambda n: 1 / n,
    "inverse_log": lambda n: 1 / np.log(1 + n),
    "effective_number": lambda n: (1 - 0.999) / (1 - 0.999**n),
}


@pytest.fixture
def mixture():
    """Of three clusters of 10, 30 and 160 rows."""
    x = torch.cat([clustered(4 * n, n_clusters=4)[0][k::4] for k, n in enumerate((10, 30, 160))])
    return StudentTMixture(3, 6, generator=0).fit(x)


@pytest.fixture
def x():
    return clustered(50, spread=2.0, seed=5)[0]


def test_the_square_root_of_the_inverse_mass_times_one_over_u_times_r(mixture, x):
    weights = ClusterWeights(mixture, mass=inverse(0.5), outlier=True, confidence=True)(x)
    expected = np.empty(len(x))
    for i, row in enumerate(x.double().numpy()):
        joint, u = [], []
        for k in range(3):
            scale = mixture.scales[k].double().numpy()
            delta = (row - mixture.means[k].double().numpy()) @ np.linalg.solve(
                scale, row - mixture.means[k].double().numpy()
            )
            u.append((4 + 6) / (4 + delta))
            joint.append(float(mixture.weights[k]) * np.linalg.det(scale) ** -0.5 * (1 + delta / 4) ** (-(4 + 6) / 2))
        k = int(np.argmax(joint))
        expected[i] = float(mixture.weights[k]) ** -0.5 / u[k] * joint[k] / sum(joint)
    np.testing.assert_allclose(weights.numpy(), expected / expected.mean(), rtol=1e-3)


@pytest.mark.parametrize("name", FORMULAS)
def test_mass_weights_follow_the_number_of_samples_in_the_cluster(mixture, x, name):
    counts = (mixture.weights.double() * 200)[mixture.predict(x)].numpy()
    expected = FORMULAS[name](counts)
    weights = ClusterWeights(mixture, mass=name, outlier=False)(x)
    np.testing.assert_allclose(weights.numpy(), expected / expected.mean(), rtol=1e-5)
    own = ClusterWeights(mixture, mass=lambda n: torch.from_numpy(FORMULAS[name](n.numpy())), outlier=False)(x)
    np.testing.assert_allclose(own.numpy(), weights.numpy(), rtol=1e-5)


@pytest.mark.parametrize("confidence", [False, 0.9])
def test_a_limit_holds_weights_near_their_median(mixture, x, confidence):
    """One stray row takes neither all of the weight nor, by the mean, that of the others."""
    x[0] = 1e4
    weights = ClusterWeights(mixture, mass=inverse(0.5), confidence=confidence, limit=3)(x).numpy()
    factor = ClusterWeights(mixture, mass=inverse(0.5))(x).numpy()
    # At both bounds the ratio is nine, but for the rounding of the weights to float32.
    assert factor.max() > 30 > 3 * 3 >= weights.max() / weights[weights > 0].min() * (1 - 1e-6)
    trust = 1 if confidence is False else (mixture(x).amax(1) >= confidence).numpy()
    median = np.sort(factor)[(len(x) - 1) // 2]
    expected = trust * factor.clip(median / 3, median * 3)
    np.testing.assert_allclose(weights, expected / expected.mean(), rtol=1e-5)


@pytest.mark.parametrize("limit", [None, 2.0])
def test_calibrated_weights_do_not_depend_on_the_batch(mixture, x, limit):
    """Batches get what the whole data set would have given their rows."""
    weights = ClusterWeights(mixture, mass=inverse(0.5), limit=limit)
    whole = weights(x)
    batches = torch.cat([weights(batch) for batch in x.split(7)])
    assert not torch.allclose(batches, whole, rtol=1e-2)
    assert weights.calibrate(x) is weights
    torch.testing.assert_close(torch.cat([weights(batch) for batch in x.split(7)]), whole)
    fresh = ClusterWeights(mixture, mass=inverse(0.5), limit=limit)
    fresh.load_state_dict(weights.state_dict())
    torch.testing.assert_close(fresh(x[:7]), whole[:7])
    # A loss takes them as they are.
    loss = ClusterTripletLoss(mixture, refit="external", weights=weights, normalize=False)
    torch.testing.assert_close(loss.cluster_weights(x[:7]), whole[:7])


def test_recent_weights_have_a_mean_of_one_over_the_latest_rows(mixture, x):
    """A batch of heavy rows weighs more than one; the memory is in the state, and does not move while evaluating."""
    weights = ClusterWeights(mixture, mass=inverse(0.5), recent=50)
    order = ClusterWeights(mixture, mass=inverse(0.5))(x).argsort()
    batches = x[order][-60:].split(10)
    for batch in batches:
        given = weights(batch)
    latest = x[order][-50:]
    expected = ClusterWeights(mixture, mass=inverse(0.5)).calibrate(latest)(batch)
    torch.testing.assert_close(given, expected)
    assert given.mean() > 1.1
    weights.eval()
    weights(x[:20])
    torch.testing.assert_close(weights(batch), expected)
    fresh = ClusterWeights(mixture, mass=inverse(0.5), recent=50)
    fresh.load_state_dict(weights.state_dict())
    torch.testing.assert_close(fresh.train()(batches[0]), weights.train()(batches[0]))


@pytest.mark.parametrize("limit", [1.0, 0.5, -1.0, float("nan")])
def test_a_limit_that_is_none_is_refused(mixture, limit):
    with pytest.raises(ValueError, match="limit must be larger than 1, or None, got"):
        ClusterWeights(mixture, limit=limit)


def test_an_unfitted_mixture_calibrates_nothing(x):
    weights = ClusterWeights(StudentTMixture(3, 6), limit=5)
    with pytest.raises(RuntimeError, match="not fitted"):
        weights.calibrate(x)
    assert weights(x).equal(torch.ones(len(x)))
    assert len(weights(x[:0])) == 0


def test_a_confidence_threshold_drops_what_is_below(mixture, x):
    responsibility = mixture(x).amax(1)
    threshold = float(responsibility.median())
    weights = ClusterWeights(mixture, outlier=False, confidence=threshold)(x)
    assert ((weights > 0) == (responsibility >= threshold)).all()
    assert (ClusterWeights(mixture, confidence=2.0)(x) == 0).all()


def test_cluster_weights_have_mean_one_and_outliers_weigh_more(mixture, x):
    far = mixture.means[:1] + torch.full((1, 6), 30.0)
    for settings in ({}, {"mass": "inverse"}, {"confidence": True}):
        weights = ClusterWeights(mixture, **settings)(torch.cat([x, far]))
        assert weights.mean() == pytest.approx(1, rel=1e-5)
    assert ClusterWeights(mixture)(torch.cat([x, far])).argmax() == len(x)
    gaussian = StudentTMixture(3, 6, dof=float("inf"), generator=0).fit(clustered(100)[0])
    assert (ClusterWeights(gaussian)(x) == 1).all()  # u = 1


def test_a_loss_gives_the_weights_of_its_embeddings(x):
    mixture = fitted()
    unit = torch.nn.functional.normalize(x, dim=1)
    plain = ClusterTripletLoss(mixture)
    torch.testing.assert_close(plain.cluster_weights(x), ClusterWeights(mixture)(unit))
    own = ClusterWeights(mixture, mass="effective_number")
    torch.testing.assert_close(ClusterTripletLoss(mixture, weights=own).cluster_weights(x), own(unit))


WEIGHABLE = [
    losses.TripletMarginLoss(margin=0.3),
    losses.ContrastiveLoss(),
    losses.NTXentLoss(),
    losses.SupConLoss(),
    losses.MultiSimilarityLoss(),
    losses.CircleLoss(),
    losses.TripletMarginLoss(margin=0.3, embedding_regularizer=None),
]


@pytest.mark.parametrize("loss", WEIGHABLE, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("name", ["outlier", "confidence", "inverse", "inverse_log", "effective_number"])
def test_each_term_of_a_loss_is_multiplied_by_the_weight_of_its_anchor(loss, name, x):
    loss = type(loss)(reducer=reducers.SumReducer())
    mixture = fitted()
    wrapped = ClusterLoss(mixture, loss, weights=name, refit="external")
    unit = torch.nn.functional.normalize(x, dim=1)
    labels, weights = mixture.predict(unit), wrapped.weights(unit)
    terms = loss.compute_loss(x, labels, None, x, labels)
    expected = 0.0
    for info in terms.values():
        anchors = info["indices"] if info["reduction_type"] == "element" else info["indices"][0]
        for term, anchor in zip(info["losses"].flatten().tolist(), anchors.tolist()):
            expected += term * float(weights[anchor])
    assert weights.std() > 0
    assert float(wrapped(x)) == pytest.approx(expected, rel=1e-4)


def test_regularization_is_not_weighted(x):
    from pytorch_metric_learning.regularizers import LpRegularizer

    settings = {"refit": "external", "miner": None, "embedding_regularizer": LpRegularizer()}
    mixture = fitted()
    none = ClusterWeights(mixture, outlier=False, confidence=2.0)  # all weights are zero
    loss = ClusterTripletLoss(mixture, weights=none, **settings)(x)
    torch.testing.assert_close(loss, x.norm(dim=1).mean())


def test_a_loss_that_is_one_number_for_the_batch_cannot_be_weighted():
    class Whole(losses.BaseMetricLossFunction):
        def compute_loss(self, embeddings, *_):
            return {"loss": {"losses": embeddings.sum(), "indices": None, "reduction_type": "already_reduced"}}

    with pytest.raises(ValueError, match=r"Whole cannot be used with weights, .* weights cannot be applied"):
        ClusterLoss(fitted(), Whole(), weights="outlier", refit="external")


def test_weights_of_another_mixture_are_refused():
    with pytest.raises(ValueError, match="another mixture"):
        ClusterTripletLoss(fitted(), weights=ClusterWeights(fitted()))


# -------------------------------------------------------------------- labels

LABELS = np.array([[1, 0, 0], [1, 0, 0], [1, 1, 0], [1, 0, 1], [1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize("rule", ["max", "mean", "sum"])
@pytest.mark.parametrize(
    ("frequency", "formula"),
    [
        (inverse(0.5), lambda n: n**-0.5),
        ("inverse", FORMULAS["inverse"]),
        ("inverse_log", FORMULAS["inverse_log"]),
        (effective_number(0.9), lambda n: 0.1 / (1 - 0.9**n)),
        (inverse_log(), FORMULAS["inverse_log"]),
    ],
)
def test_label_weights_join_the_weights_of_the_labels_that_are_present(rule, frequency, formula):
    per_label = formula(np.array([6.0, 2.0, 1.0]))
    unlabelled = formula(np.array(2.0))
    join = {"max": np.max, "mean": np.mean, "sum": np.sum}[rule]
    expected = np.array([join(per_label[row == 1]) if row.any() else unlabelled for row in LABELS])
    weights = LabelWeights(LABELS, frequency=frequency, rule=rule)
    np.testing.assert_allclose(weights(LABELS).numpy(), expected / expected.mean(), rtol=1e-6)
    # The mean is one over the training set, whatever a batch holds.
    np.testing.assert_allclose(
        weights(torch.from_numpy(LABELS)[2:4]).numpy(), (expected / expected.mean())[2:4], rtol=1e-6
    )


def test_the_default_is_the_square_root_of_the_rarest_label():
    np.testing.assert_array_equal(
        LabelWeights(LABELS)(LABELS), LabelWeights(LABELS, frequency=inverse(0.5), rule="max")(LABELS)
    )


def test_class_indices_are_one_label_each():
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    weights = LabelWeights(labels, frequency="inverse")(labels)
    torch.testing.assert_close(weights, torch.tensor([2 / 3, 2 / 3, 2 / 3, 2.0, 1.0, 1.0]))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.ones((2, 4)), r"0/1 vectors \(N, 3\), got .* of shape \(2, 4\)"),
        (np.full((2, 3), 0.5), "nothing but 0 and 1"),
        (np.array([0, 3]), "labels must lie in 0 … 2"),
    ],
)
def test_labels_that_cannot_be_are_named(labels, message):
    with pytest.raises(ValueError, match=message):
        LabelWeights(LABELS)(labels)


def test_settings_that_cannot_be_are_named(mixture):
    with pytest.raises(ValueError, match="rule must be"):
        LabelWeights(LABELS, rule="min")
    with pytest.raises(ValueError, match=r"mass must be one of 'inverse'.* got 'log'"):
        ClusterWeights(mixture, mass="log")
    with pytest.raises(ValueError, match="beta must lie"):
        effective_number(1.0)
