"""The mixture as an `nn.Module`: moving, copying, state, errors, interruption, memory."""

import copy
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from tests.processes import FORKED
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tmixture import StudentTMixture

from .helpers import STRUCTURES, in_turn, of


def blobs(n=600, d=3, K=3, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    centres = 6 * torch.randn(K, d, generator=generator)
    labels = torch.randint(K, (n,), generator=generator)
    return (centres[labels] + torch.randn(n, d, generator=generator)).to(dtype)


def snapshot(mixture):
    """Everything a call could change, as a copy."""
    state = {name: tensor.clone() for name, tensor in mixture.state_dict().items()}
    return state, mixture.n_iter_, mixture.converged_, list(mixture.history_), mixture.n_reseeded_


def assert_same(before, after):
    assert before[0].keys() == after[0].keys()
    for name, tensor in before[0].items():
        assert torch.equal(tensor, after[0][name]), name
        assert tensor.dtype == after[0][name].dtype, name
    assert before[1:] == after[1:]


@pytest.mark.parametrize(("structure", "dtype"), in_turn(STRUCTURES, [torch.float32, torch.float64]))
def test_a_fresh_module_takes_the_state_of_another(structure, dtype):
    x = blobs(dtype=dtype)
    settings = dict(**of(structure), learn_dof="component", dof=7.0, dtype=dtype)
    fitted = StudentTMixture(3, 3, generator=0, **settings).fit(x)
    fresh = StudentTMixture(3, 3, **settings)
    fresh.load_state_dict(fitted.state_dict())
    for name, tensor in fitted.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor), name
    assert torch.equal(fresh(x), fitted(x))
    # and shares no memory with it
    fresh.partial_fit(x[:50])
    assert not torch.equal(fresh.means, fitted.means)
    assert torch.equal(fitted.initial_dof, torch.full((3,), 7.0, dtype=dtype))


def test_it_is_saved_within_a_network():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Linear(5, 3)
            self.mixture = StudentTMixture(3, 3, generator=0)

        def forward(self, x):
            return self.mixture(self.encoder(x))

    torch.manual_seed(0)
    network, restored = Network(), Network()
    x = torch.randn(200, 5)
    network.mixture.fit(network.encoder(x).detach())
    state = network.state_dict()
    assert {"mixture.means", "mixture.weights", "mixture.whitening", "mixture.dof"} <= state.keys()
    restored.load_state_dict(state)
    assert torch.equal(restored(x), network(x))
    assert not [name for name, _ in network.named_parameters() if name.startswith("mixture")]  # buffers, not parameters
    # A state of an unfitted mixture makes a fitted one unfitted again.
    restored.load_state_dict(Network().state_dict())
    with pytest.raises(RuntimeError, match="not fitted"):
        restored(x)


def test_strict_loading_names_what_is_missing():
    state = StudentTMixture(3, 3, generator=0).fit(blobs()).state_dict()
    del state["means"]
    with pytest.raises(RuntimeError, match="means"):
        StudentTMixture(3, 3).load_state_dict(state)
    with pytest.raises(RuntimeError, match="size mismatch"):
        StudentTMixture(4, 3).load_state_dict(StudentTMixture(3, 3, generator=0).fit(blobs()).state_dict())


@pytest.mark.parametrize("broken", ["components", "structure", "missing", "all missing"])
def test_loading_a_state_that_does_not_fit_changes_nothing(broken):
    mixture = StudentTMixture(3, 3, generator=0).fit(blobs(seed=1))
    parent = nn.ModuleDict({"mixture": mixture})
    before = copy.deepcopy(parent.state_dict())
    other = StudentTMixture(
        4 if broken == "components" else 3, 3, covariance_type="full" if broken == "structure" else "diag", generator=0
    )
    state = nn.ModuleDict({"mixture": other.fit(blobs())}).state_dict()
    if broken == "missing":
        del state["mixture.means"]
    if broken == "all missing":
        assert parent.load_state_dict({}, strict=False)
    else:
        with pytest.raises(RuntimeError, match="mixture.whitening" if broken == "structure" else "mixture.means"):
            parent.load_state_dict(state)
    after = parent.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    fresh = nn.ModuleDict({"mixture": StudentTMixture(3, 3)})
    if broken != "all missing":
        with pytest.raises(RuntimeError):
            fresh.load_state_dict(state)
    with pytest.raises(RuntimeError, match="not fitted"):
        fresh["mixture"].predict(blobs())


@pytest.mark.parametrize("structure", STRUCTURES)
def test_double_gives_the_same_answers_in_float64(structure):
    x = blobs()
    single = StudentTMixture(3, 3, **of(structure), generator=0).fit(x)
    double = copy.deepcopy(single).double()
    assert {tensor.dtype for tensor in double.snapshot().tensors().values()} == {torch.float64}
    assert double(x.double()).dtype == torch.float64
    torch.testing.assert_close(double.log_prob(x.double()), single.log_prob(x).double(), rtol=1e-5, atol=1e-5)
    # The statistics of a stream never lose their precision.
    half = copy.deepcopy(single).half()
    assert half.running.scatter.dtype == torch.float64
    assert half.fitted
    torch.testing.assert_close(half.log_prob(x), single.log_prob(x), rtol=0.02, atol=0.02)


def test_to_moves_everything():
    on_meta = StudentTMixture(3, 3, generator=0).fit(blobs()).to("meta")
    assert {tensor.device.type for tensor in on_meta.state_dict().values()} == {"meta"}


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_are_complete_and_independent(duplicate):
    x = blobs()
    mixture = StudentTMixture(3, 3, learn_dof="shared", generator=0).fit(x)
    before = snapshot(mixture)
    twin = duplicate(mixture)
    assert_same(before, snapshot(twin))
    twin.partial_fit(x[:100])
    twin.fit(x + 1)
    assert_same(before, snapshot(mixture))
    # Streams go on alike from there.
    other = duplicate(mixture)
    assert_same(snapshot(mixture.partial_fit(x[:50])), snapshot(other.partial_fit(x[:50])))


def test_copies_take_the_generator_along():
    x = blobs(n=200)
    mixture = StudentTMixture(5, 3, generator=torch.Generator().manual_seed(3))
    twins = [copy.deepcopy(mixture), pickle.loads(pickle.dumps(mixture))]
    mixture.fit(x)
    for twin in twins:
        assert_same(snapshot(mixture), snapshot(twin.fit(x)))


def test_repr_says_what_it_is():
    mixture = StudentTMixture(3, 4, dof=[2.0, 3.0, 5.0], covariance_type="tied")
    assert repr(mixture) == (
        "StudentTMixture(n_components=3, n_features=4, covariance_type='tied', dof=2 … 5, not fitted)"
    )
    assert "learn_dof='shared'" in repr(StudentTMixture(3, 4, learn_dof="shared"))
    fitted = StudentTMixture(3, 3, generator=0).fit(blobs())
    assert "not fitted" not in repr(fitted)
    assert repr(fitted.running.stream.statistics) == f"SufficientStatistics(K=3, d=3, rows={len(blobs())}, weight=1)"


class Labelled(Dataset):
    """Rows with their most probable component, asked of a mixture inside the worker."""

    def __init__(self, x, mixture):
        self.x, self.mixture = x, mixture

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.mixture.predict(self.x[index : index + 1])[0]


@pytest.mark.slow
def test_workers_of_a_loader_get_it():
    x = blobs(n=64)
    mixture = StudentTMixture(3, 3, generator=0).fit(x)
    loader = DataLoader(Labelled(x, mixture), batch_size=16, num_workers=1, multiprocessing_context=FORKED)
    assert torch.equal(torch.cat(list(loader)), mixture.predict(x))


@pytest.mark.parametrize(
    "ask",
    [
        lambda m, x: m(x),
        lambda m, x: m.responsibilities(x),
        lambda m, x: m.top_responsibilities(x, 2),
        lambda m, x: m.component_log_prob(x),
        lambda m, x: m.log_prob(x),
        lambda m, x: m.outlier_weights(x),
        lambda m, x: m.predict(x),
        lambda m, x: m.score(x),
        lambda m, x: m.bic(x),
        lambda m, x: m.sample(3),
    ],
)
def test_an_unfitted_mixture_says_so(ask):
    mixture = StudentTMixture(3, 3)
    with pytest.raises(RuntimeError, match="not fitted yet: call fit or partial_fit"):
        ask(mixture, blobs())
    mixture.partial_fit(blobs()[:2])
    with pytest.raises(RuntimeError, match="2 of at least 3 rows seen"):
        ask(mixture, blobs())
    ask(mixture.partial_fit(blobs()[2:4]), blobs())


class Batches:
    """Batches of `x`; at the start of pass `when` it raises `error` after the first batch."""

    def __init__(self, x, when=None, error=KeyboardInterrupt):
        self.x, self.when, self.error, self.passes = x, when, error, 0

    def __iter__(self):
        self.passes += 1
        for index, batch in enumerate(self.x.split(100)):
            if index == 1 and self.passes == self.when:
                raise self.error
            yield batch


@pytest.mark.parametrize("when", [3, 4, 7])
def test_an_interrupt_keeps_the_parameters_reached(when):
    x = blobs() / 4  # overlapping, so that EM takes its time
    settings = dict(generator=0, tol=0.0, chunk_size=100)
    # One pass draws the sample, then there is one for each E-step: the interrupt comes in E-step number when − 1.
    interrupted = StudentTMixture(3, 3, **settings)
    with pytest.raises(KeyboardInterrupt):
        interrupted.fit(Batches(x, when))
    reached = StudentTMixture(3, 3, max_iter=when - 3, **settings) if when > 3 else None
    if reached is None:
        assert interrupted.n_iter_ == 0
        assert len(interrupted.history_) == 1
    else:
        reached.fit(Batches(x))
        assert_same(snapshot(reached), snapshot(interrupted))
    assert interrupted.log_prob(x).isfinite().all()
    # It can go on from there.
    interrupted.warm_start = True
    before = interrupted.score(x)
    assert interrupted.fit(x).score(x) > before


@pytest.mark.parametrize("when", [1, 2])
def test_an_interrupt_before_the_first_step_changes_nothing(when):
    mixture = StudentTMixture(3, 3, generator=0).fit(blobs())
    before = snapshot(mixture)
    with pytest.raises(KeyboardInterrupt):
        mixture.fit(Batches(blobs(seed=1), when))
    assert_same(before, snapshot(mixture))


def test_an_interrupt_in_a_later_start_keeps_the_better_one():
    x = blobs() / 4
    first = StudentTMixture(5, 3, generator=0, max_iter=4, tol=0.0).fit(x)
    mixture = StudentTMixture(5, 3, generator=0, max_iter=4, tol=0.0, n_init=3)
    with pytest.raises(KeyboardInterrupt):
        mixture.fit(Batches(x, 9))
    assert mixture.history_[-1] >= first.history_[-1]


@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize("when", [1, 2, 4])
def test_any_other_error_changes_nothing(when, fitted):
    mixture = StudentTMixture(3, 3, generator=0, tol=0.0)
    if fitted:
        mixture.fit(blobs())
    before = snapshot(mixture)
    with pytest.raises(OSError, match="disk"):
        mixture.fit(Batches(blobs(seed=1), when, OSError("disk")))
    assert_same(before, snapshot(mixture))


def test_progress_bar(capsys):
    StudentTMixture(3, 3, generator=0, verbose=True).fit(blobs())
    shown = capsys.readouterr().err
    assert "EM" in shown
    assert "log-likelihood" in shown
    StudentTMixture(3, 3, generator=0).fit(blobs())
    assert capsys.readouterr().err == ""


def test_fit_inside_inference_mode_no_grad_and_autocast():
    x = blobs()
    expected = StudentTMixture(3, 3, generator=0).fit(x)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        mixture = StudentTMixture(3, 3, generator=0).fit(x)
        mixture.partial_fit(x[:10])
        mixture.fit(x)
    assert_same(snapshot(expected), snapshot(mixture))
    x.requires_grad_()
    mixture.log_prob(x).sum().backward()  # the buffers are usable outside of inference mode
    assert x.grad.isfinite().all()


def test_every_kind_of_data_gives_the_same_fit(tmp_path):
    x = blobs(n=500)
    np.save(tmp_path / "a.npy", x[:200].numpy())
    np.save(tmp_path / "b.npy", x[200:].numpy())
    np.save(tmp_path / "all.npy", x.numpy())
    loader = DataLoader(TensorDataset(x, torch.arange(500)), batch_size=70)
    kinds = {
        "array": x.numpy(),
        "big-endian": x.numpy().astype(">f4"),
        "fortran": np.asfortranarray(x.numpy()),
        "strided": torch.stack([x, -x], dim=2)[..., 0],
        "memmap": np.load(tmp_path / "all.npy", mmap_mode="r"),
        "path": tmp_path / "all.npy",
        "shards": [str(tmp_path / "a.npy"), tmp_path / "b.npy"],
        "tensors": [x[:10], x[10:]],
        "loader": loader,
        "grad": x.clone().requires_grad_(),
    }
    expected = snapshot(StudentTMixture(3, 3, generator=0).fit(x))
    weight = torch.arange(500) % 3
    weighted = snapshot(StudentTMixture(3, 3, generator=0).fit(x, weight))
    for name, data in kinds.items():
        mixture = StudentTMixture(3, 3, generator=0)
        try:
            assert_same(expected, snapshot(mixture.fit(data)))
            assert_same(weighted, snapshot(mixture.fit(data, weight)))
            assert torch.equal(mixture.predict(data), mixture.predict(x))
            assert mixture.score(data, weight) == mixture.score(x, weight)
        except AssertionError as error:
            raise AssertionError(f"from {name}: {error}") from error


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data(tmp_path):
    """Peak resident memory of a fit, with one and with eight times as many rows on disk."""
    script = """
        import resource, sys
        import numpy as np
        import torch
        import tmixture.sampling
        from tmixture import StudentTMixture

        torch.set_num_threads(1)
        tmixture.sampling.SAMPLE_ELEMENTS = 2**18  # of a fixed size that would hide what grows

        class Rows:
            def __iter__(self):
                for start in range(0, int(sys.argv[2]), 1024):
                    # A new map each time: pages of an old one would count as this process's memory.
                    yield np.array(np.load(sys.argv[1], mmap_mode="r")[start : start + 1024])

        StudentTMixture(8, 64, max_iter=2, chunk_size=1024, generator=0).fit(Rows())
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """
    path = tmp_path / "data.npy"
    np.save(path, np.random.default_rng(0).normal(size=(131_072, 64)).astype(np.float32))  # 32 MB
    kilobytes = []
    for rows in (16_384, 131_072):
        command = [sys.executable, "-c", textwrap.dedent(script), str(path), str(rows)]
        kilobytes.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert kilobytes[1] - kilobytes[0] < 8_000  # for 28 MB more data
