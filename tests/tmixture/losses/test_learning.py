"""How a cluster loss learns its mixture: modes, warm-up, policies, memory, resuming, and input it cannot use."""

import copy
import io

import pytest
import torch
from pytorch_metric_learning.losses import TripletMarginLoss

from tmixture import StudentTMixture
from tmixture.losses import ClusterTripletLoss
from tmixture.losses.statistics import LossStatistics

from .helpers import clustered, fitted, leaf

normalize = torch.nn.functional.normalize


def make(**settings):
    return ClusterTripletLoss(n_components=4, embedding_size=6, **{"refit": "streaming", **settings})


def batches(n, size=16, spread=1.5):
    return [clustered(size, seed=seed, spread=spread)[0] for seed in range(n)]


def assert_zero_with_graph(loss_fn, x):
    x = leaf(x)
    loss = loss_fn(x)
    loss.backward()
    assert loss == 0
    assert (x.grad == 0).all()


# -------------------------------------------------------------------- modes and warm-up


def test_warm_up_gives_a_zero_with_a_graph_and_ends_with_ten_rows_per_component():
    loss_fn = make()
    for x in batches(2):
        assert_zero_with_graph(loss_fn, x)
    assert (loss_fn.cluster_weights(batches(1)[0]) == 1).all()
    assert loss_fn(batches(3)[2]) > 0  # 48 rows


def test_more_components_than_rows_seen_is_warm_up():
    assert_zero_with_graph(ClusterTripletLoss(n_components=100, embedding_size=6), batches(1)[0])


def test_train_mode_learns_and_then_labels_and_eval_mode_only_labels():
    loss_fn, reference = make(), StudentTMixture(4, 6, step_size=0.02, generator=0)
    for x in batches(5):
        loss = loss_fn(x)
        labels = reference.partial_fit(normalize(x, dim=1)).predict(normalize(x, dim=1))
    learned = dict(loss_fn.mixture.named_buffers())
    torch.testing.assert_close(learned, dict(reference.named_buffers()), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss, TripletMarginLoss(margin=0.3)(x, labels, loss_fn.miner(x, labels)))
    before = copy.deepcopy(loss_fn.state_dict())
    torch.testing.assert_close(loss_fn.eval()(x), loss)
    torch.testing.assert_close(loss_fn.state_dict(), before)


def test_embeddings_of_any_norm_are_clustered_by_their_direction():
    x = batches(1)[0]
    scale = torch.logspace(-20, 30, len(x))[:, None]
    loss_fn = ClusterTripletLoss(fitted(), refit="external")
    torch.testing.assert_close(loss_fn.predict(x * scale), loss_fn.predict(x))
    raw = ClusterTripletLoss(fitted(), refit="external", normalize=False)
    torch.testing.assert_close(raw.predict(3 * x), raw.mixture.predict(3 * x))


def test_the_mixture_is_part_of_the_module():
    loss_fn = make(memory_size=8)
    assert "mixture.means" in loss_fn.state_dict()
    assert loss_fn.double().mixture.means.dtype == torch.float64
    assert loss_fn.to("meta").mixture.means.is_meta


def test_accumulated_gradients_are_the_sum_of_those_of_the_parts():
    layer, parts = torch.nn.Linear(6, 6), batches(6)
    one, other = make(memory_size=20), make(memory_size=20)
    total = sum(one(layer(x)) for x in parts)  # nothing that autograd saved may be overwritten by a later call
    total.backward()
    accumulated = layer.weight.grad.clone()
    layer.zero_grad()
    for x in parts:
        other(layer(x)).backward()
    assert accumulated.abs().sum() > 0
    torch.testing.assert_close(layer.weight.grad, accumulated)


# -------------------------------------------------------------------- policies


def test_external_policy_leaves_the_mixture_alone():
    loss_fn = ClusterTripletLoss(StudentTMixture(4, 6, generator=0), refit="external")
    for x in batches(4):
        assert_zero_with_graph(loss_fn, x)
    assert not loss_fn.mixture.fitted
    assert loss_fn.end_epoch(torch.cat(batches(8))) == 0
    before = copy.deepcopy(loss_fn.state_dict())
    assert loss_fn(batches(1)[0]) > 0
    after = loss_fn.state_dict()
    torch.testing.assert_close(
        {k: after[k] for k in before if k != "steps"}, {k: before[k] for k in before if k != "steps"}
    )


def test_refits_to_the_memory_come_at_the_interval():
    loss_fn = make(refit=5, window_size=64)
    seen = []
    for x in batches(12):
        loss_fn(x)
        seen.append(loss_fn.mixture.means.clone())
    changed = [i for i in range(1, 12) if not torch.equal(seen[i], seen[i - 1])]
    assert changed == [2, 4, 9]  # 48 rows, then calls 5 and 10
    expected = StudentTMixture(4, 6, generator=0).fit(normalize(torch.cat(batches(10)[-4:]), dim=1))
    match = torch.cdist(seen[9], expected.means).min(0)
    # The memory holds the rows in another order, and a fit ends where it changes little, not at the very same point.
    torch.testing.assert_close(match.values, torch.zeros(4), atol=2e-3, rtol=0)


@pytest.mark.parametrize("kind", ["memory", "tensor", "loader"])
def test_clusters_keep_their_numbers_after_a_refit(kind):
    x = torch.cat(batches(20, spread=0.5))
    mixture = StudentTMixture(4, 6, generator=0).fit(normalize(x[:160], dim=1)).reorder([1, 2, 3, 0])
    loss_fn = ClusterTripletLoss(mixture, memory_size=320)
    for batch in x.split(16):
        loss_fn(batch)
    before = loss_fn.predict(x)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=50)
    churn = loss_fn.end_epoch({"memory": None, "tensor": x, "loader": loader}[kind])
    changed = (loss_fn.predict(x) != before).float().mean()
    assert churn == pytest.approx(float(changed), abs=1e-6)
    assert churn < 0.2
    assert loss_fn.statistics["churn"] == churn
    renumbered = (
        StudentTMixture(4, 6, step_size=0.02, generator=0).fit(normalize(x, dim=1)).predict(normalize(x, dim=1))
    )
    assert (renumbered != before).float().mean() > 0.3  # without the matching


def test_a_refit_without_enough_rows_is_refused():
    with pytest.raises(ValueError, match="window_size must be at least n_components=4, got 3"):
        make(refit=10, window_size=3)
    with pytest.raises(RuntimeError, match="room for 0 rows, and 0 were seen"):
        make().end_epoch()


# -------------------------------------------------------------------- memory, other features, references


def test_a_memory_adds_positives_and_negatives_with_labels_of_the_current_mixture():
    loss_fn = make(memory_size=24, miner=None)
    past = batches(4)
    for batch in past:
        loss_fn(batch)
    x = leaf(batches(6)[5])
    loss = loss_fn(x)
    loss.backward()

    y = leaf(x)
    ref = torch.cat([y, torch.cat(past)[-24:]])
    labels, ref_labels = loss_fn.predict(y), loss_fn.predict(ref)
    d = torch.cdist(normalize(y, dim=1), normalize(ref, dim=1))
    terms = [
        d[a, p] - d[a, n] + 0.3
        for a in range(16)
        for p in range(40)
        for n in range(40)
        if a != p and labels[a] == ref_labels[p] != ref_labels[n]
    ]
    terms = torch.stack(terms)
    expected = terms[terms > 0].mean()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(loss_fn.memory.embeddings, torch.cat([*past, x.detach()])[-24:])


def test_a_memory_gives_a_batch_of_one_its_triplets():
    loss_fn = make(memory_size=64)
    for x in batches(4):
        loss_fn(x)
    assert max(loss_fn(x[None]) for x in batches(5)[4]) > 0


def test_other_features_can_be_clustered_than_the_triplets_use():
    x, features = batches(1)[0][:, :3], batches(1, spread=1.0)[0]
    mixture = fitted()
    loss = ClusterTripletLoss(mixture, refit="external", memory_size=8)(x, cluster_embeddings=features)
    labels = mixture.predict(normalize(features, dim=1))
    expected = ClusterTripletLoss(mixture)(x, labels)
    torch.testing.assert_close(loss, expected)


def test_features_of_the_memory_are_clustered_too():
    loss_fn = ClusterTripletLoss(fitted(), memory_size=32, refit="external")
    for x in batches(2):
        loss_fn(x[:, :3], cluster_embeddings=x)
    x = batches(3)[2]
    loss = loss_fn.eval()(x[:, :3], cluster_embeddings=x)
    ref = torch.cat([x, *batches(2)])
    labels = loss_fn.predict(ref)
    triplets = loss_fn.miner(x[:, :3], labels[:16], ref[:, :3], labels)
    keep = triplets[0] != triplets[1]
    triplets = tuple(index[keep] for index in triplets)
    torch.testing.assert_close(loss, TripletMarginLoss(margin=0.3)(x[:, :3], labels[:16], triplets, ref[:, :3], labels))
    with pytest.raises(ValueError, match="cluster_embeddings must be given with every call"):
        loss_fn(x)


def test_cross_modal_triplets_take_their_positives_and_negatives_from_the_captions():
    images, captions = batches(2)
    loss_fn = ClusterTripletLoss(fitted(), miner=None, refit="external")
    labels = loss_fn.predict(images)
    d = torch.cdist(normalize(images, dim=1), normalize(captions, dim=1))
    terms = [
        d[a, p] - d[a, n] + 0.3
        for a in range(16)
        for p in range(16)
        for n in range(16)
        if labels[a] == labels[p] != labels[n]  # an image's own caption is a positive
    ]
    terms = torch.stack(terms)
    torch.testing.assert_close(loss_fn(images, ref_emb=captions), terms[terms > 0].mean())


def test_references_with_labels_are_like_a_memory():
    x, bank = batches(1)[0], torch.cat(batches(5)[1:])
    loss_fn = ClusterTripletLoss(fitted(), refit="external")
    labels, bank_labels = loss_fn.predict(x), loss_fn.predict(bank)
    triplets = loss_fn.miner(x, labels, bank, bank_labels)
    expected = TripletMarginLoss(margin=0.3)(x, labels, triplets, bank, bank_labels)
    torch.testing.assert_close(loss_fn(x, ref_emb=bank, ref_labels=bank_labels), expected)


# -------------------------------------------------------------------- statistics


def test_statistics_describe_the_last_call():
    loss_fn = ClusterTripletLoss(fitted(), miner=None, refit="external")
    x = batches(1)[0]
    loss_fn(x)
    labels = loss_fn.predict(x)
    share = torch.bincount(labels) / 16
    share = share[share > 0]
    statistics = loss_fn.statistics
    assert statistics["tuples"] == sum(
        1 for a in range(16) for p in range(16) for n in range(16) if a != p and labels[a] == labels[p] != labels[n]
    )
    assert statistics["active_clusters"] == len(share)
    K = loss_fn.mixture.n_components
    assert statistics["active_share"] == pytest.approx(len(share) / (K * (1 - (1 - 1 / K) ** 16)))
    assert statistics["perplexity"] == pytest.approx(float((-(share * share.log()).sum()).exp()), rel=1e-5)
    confidence = loss_fn.mixture(normalize(x, dim=1)).amax(1).mean()
    assert statistics["confidence"] == pytest.approx(float(confidence), rel=1e-5)
    assert statistics["churn"] == 0


def test_streaming_churn_is_the_share_of_the_batch_that_an_update_moves():
    mixture = fitted(step_size=0.9)
    loss_fn = ClusterTripletLoss(mixture, refit="streaming")
    x = clustered(16, spread=4.0, seed=3)[0]
    before = loss_fn.predict(x)
    loss_fn(x)
    churn = (loss_fn.predict(x) != before).float().mean()
    assert churn > 0
    assert loss_fn.statistics["churn"] == pytest.approx(float(churn))


# -------------------------------------------------------------------- saving


@pytest.mark.filterwarnings("ignore:.*started anew")
@pytest.mark.parametrize("interrupted_after", [1, 5])
@pytest.mark.parametrize("settings", [{}, {"memory_size": 40}, {"memory_size": 40, "refit": 4, "weights": "outlier"}])
def test_a_saved_training_resumes_exactly(settings, interrupted_after):
    def start():
        torch.manual_seed(1)
        model = torch.nn.ModuleDict({"encoder": torch.nn.Linear(6, 6), "loss": make(**settings)})
        return model, torch.optim.Adam(model.parameters(), lr=1e-2)

    def train(model, optimizer, some):
        values = []
        for x in some:
            loss = model["loss"](model["encoder"](x))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            values.append(float(loss.detach()))
        return values

    data = batches(12)
    uninterrupted = train(*start(), data)
    model, optimizer = start()
    train(model, optimizer, data[:interrupted_after])
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    model, optimizer = start()
    train(model, optimizer, batches(7)[6:])  # whatever was there is overwritten
    state = torch.load(file)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    assert train(model, optimizer, data[interrupted_after:]) == uninterrupted[interrupted_after:]
    assert uninterrupted[-1] > 0


def test_a_copy_and_a_pickled_loss_are_independent_and_equal():
    loss_fn = make(memory_size=20, weights="inverse")
    for x in batches(4):
        loss_fn(x)
    file = io.BytesIO()
    torch.save(loss_fn, file)
    file.seek(0)
    for other in (copy.deepcopy(loss_fn), torch.load(file, weights_only=False)):
        assert other.weights.mixture is other.mixture
        torch.testing.assert_close(other.eval()(x), copy.deepcopy(loss_fn).eval()(x))


# -------------------------------------------------------------------- input it cannot use


@pytest.mark.parametrize("refit", ["streaming", "external"])
def test_without_a_valid_triplet_the_loss_is_a_zero_with_a_graph(refit):
    loss_fn = ClusterTripletLoss(fitted(), refit=refit).eval()
    x = clustered(40)[0]
    alike = x[loss_fn.predict(x) == 1][:5]
    for some in (x[:1], alike, x[:0]):
        assert_zero_with_graph(loss_fn, some)
        assert_zero_with_graph(loss_fn, some * 1e30)


def test_huge_embeddings_give_no_nan_while_warming_up():
    assert_zero_with_graph(make(), torch.full((3, 6), torch.finfo(torch.float32).max))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("training", [True, False])
def test_values_that_are_not_finite_are_refused_before_anything_changes(bad, training):
    loss_fn = make(memory_size=20).train(training)
    for x in batches(4):
        loss_fn(x)
    x[3, 2] = bad
    before = copy.deepcopy(loss_fn.state_dict())
    with pytest.raises(ValueError, match="embeddings must be finite, but 1 rows hold NaN or infinity"):
        loss_fn(x)
    with pytest.raises(ValueError, match="must be finite"):
        loss_fn(batches(1)[0], ref_emb=x)
    torch.testing.assert_close(loss_fn.state_dict(), before)


def test_rows_that_are_not_finite_are_skipped_by_option():
    loss_fn, reference = make(nonfinite="skip", memory_size=20), make(memory_size=20)
    for clean in batches(5):
        dirty = torch.cat([clean[:5], torch.full((1, 6), float("nan")), clean[5:], torch.full((1, 6), float("inf"))])
        dirty = leaf(dirty)
        expected = reference(clean)
        loss = loss_fn(dirty)
        torch.testing.assert_close(loss, expected)
    loss.backward()
    assert dirty.grad.isfinite().all()
    assert (dirty.grad[[5, -1]] == 0).all()
    torch.testing.assert_close(loss_fn.state_dict(), reference.state_dict())
    assert_zero_with_graph(loss_fn, torch.full((2, 6), float("nan")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embeddings": torch.ones(4, 5)}, r"embeddings have shape \(4, 5\), but the mixture has n_features=6"),
        ({"embeddings": torch.ones(6)}, r"embeddings must have shape \(B, d\), got \(6,\)"),
        (
            {"embeddings": torch.ones(4, 5), "cluster_embeddings": torch.ones(3, 6)},
            "cluster_embeddings have 3 rows for 4 embeddings",
        ),
        (
            {"embeddings": torch.ones(4, 5), "cluster_embeddings": torch.ones(4, 7)},
            r"cluster_embeddings have shape \(4, 7\)",
        ),
        ({"embeddings": torch.ones(4, 6), "ref_emb": torch.ones(5, 6)}, "ref_emb has 5 rows for 4 embeddings"),
        ({"embeddings": torch.ones(4, 6), "ref_emb": torch.ones(4, 7)}, r"ref_emb must have shape \(M, 6\)"),
        ({"embeddings": torch.ones(4, 6), "ref_labels": torch.ones(4)}, "ref_labels are given without ref_emb"),
    ],
)
def test_shapes_that_do_not_fit_are_named(arguments, message):
    loss_fn = make(memory_size=8)
    before = copy.deepcopy(loss_fn.state_dict())
    with pytest.raises(ValueError, match=message):
        loss_fn(**arguments)
    torch.testing.assert_close(loss_fn.state_dict(), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "mixture must be a StudentTMixture, got NoneType; without one, give n_components"),
        ({"mixture": 40}, "mixture must be a StudentTMixture, got int"),
        ({"n_components": 4, "embedding_size": 6, "mixture": fitted()}, "leave them out"),
        ({"n_components": 4, "embedding_size": 6, "refit": "never"}, "refit must be .* got 'never'"),
        ({"n_components": 4, "embedding_size": 6, "refit": 0}, "refit must be .* got 0"),
        ({"n_components": 4, "embedding_size": 6, "weights": "mass"}, "weights must be .* got 'mass'"),
        ({"n_components": 4, "embedding_size": 6, "nonfinite": "drop"}, "nonfinite must be .* got 'drop'"),
        ({"n_components": 4, "embedding_size": 6, "memory_size": -1}, "memory_size must be .*, got -1"),
        ({"n_components": 4, "embedding_size": 6, "window_size": 2.5}, "window_size must be .*, got 2.5"),
    ],
)
def test_settings_that_cannot_be_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        ClusterTripletLoss(**settings)


@pytest.mark.parametrize("normalize", [True, False])
def test_a_generator_is_refused_at_the_end_of_an_epoch(normalize):
    loss = ClusterTripletLoss(n_components=2, embedding_size=3, normalize=normalize)
    with pytest.raises(ValueError, match="data can be iterated only once"):
        loss.end_epoch(torch.randn(10, 3) for _ in range(5))
    assert not loss.mixture.fitted


def test_clusters_of_equal_size_have_an_active_share_of_one_with_few_points_as_with_many():
    generator = torch.Generator().manual_seed(0)
    for n, n_draws in ((10, 400), (40, 100), (1000, 4)):
        draws = torch.randint(20, (n_draws, n), generator=generator)
        shares = [LossStatistics(20, labels, torch.ones(n)).read()["active_share"] for labels in draws]
        assert sum(shares) / n_draws == pytest.approx(1, abs=0.02)
