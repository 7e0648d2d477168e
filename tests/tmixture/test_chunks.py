"""Data of any form becomes the same chunks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.utils import data as torch_data
from torch.utils.data.distributed import DistributedSampler

from tmixture import StudentTMixture
from tmixture.data.chunks import Chunks, chunk_size, gpu_chunk_size

CPU = torch.device("cpu")


def chunks_of(data, size=4, d=2, **arguments):
    return Chunks(data, d, CPU, size, **arguments)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(batches=st.lists(st.integers(0, 9), min_size=1, max_size=8), size=st.integers(1, 12))
def test_batches_are_regrouped_without_loss(batches, size):
    """All chunks but the last have exactly `size` rows, which are those of the batches in their order."""
    rows = torch.arange(2.0 * sum(batches)).reshape(-1, 2)
    weight = torch.arange(1.0, len(rows) + 1, dtype=torch.float64)
    arguments = {} if len(rows) == 0 else {"sample_weight": weight, "responsibilities": torch.arange(len(rows)) % 3}
    data = chunks_of(list(rows.split(batches)), size, n_components=3, may_be_empty=True, **arguments)
    chunks = list(data)
    assert [len(chunk.x) for chunk in chunks[:-1]] == [size] * (len(chunks) - 1)
    if len(rows) == 0:
        assert [chunk.x.shape for chunk in chunks] == [(0, 2)]
        return
    assert 1 <= len(chunks[-1].x) <= size
    assert torch.equal(torch.cat([chunk.x for chunk in chunks]), rows)
    assert torch.equal(data.weight_unit * torch.cat([chunk.weight for chunk in chunks]), weight)
    labels = torch.cat([chunk.responsibilities for chunk in chunks])
    assert torch.equal(labels, torch.nn.functional.one_hot(torch.arange(len(rows)) % 3, 3))


def test_every_pass_gives_the_same_chunks():
    chunks = chunks_of(torch.randn(10, 2))
    first, second = ([chunk.x for chunk in chunks] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_memory_map_is_read_chunk_by_chunk(tmp_path):
    """No pass holds more than a chunk of a file."""
    np.save(tmp_path / "x.npy", np.arange(20.0).reshape(10, 2))
    chunks = chunks_of(tmp_path / "x.npy")
    assert isinstance(chunks.shards[0], np.memmap)
    assert [chunk.x.untyped_storage().nbytes() for chunk in chunks] == [64, 64, 32]


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    whole = tmp_path / "whole.npy"
    np.save(whole, np.zeros((100, 2)))
    for name in ("bad.npy", "bad.npz", "bad.safetensors"):
        bad = tmp_path / name
        for content in (b"", b"no array", whole.read_bytes()[:20], whole.read_bytes()[:500]):
            bad.write_bytes(content)
            with pytest.raises(ValueError, match=f"{name} cannot be read: ") as raised:
                chunks_of([whole, bad])
            assert "pickle" not in str(raised.value)
    for name, save in (("objects.npy", np.save), ("objects.npz", np.savez)):
        save(tmp_path / name, np.array([[None, "x"]], dtype=object), allow_pickle=True)
        with pytest.raises(ValueError, match=f"{name} cannot be read: ") as raised:
            chunks_of(tmp_path / name)
        assert "pickle" not in str(raised.value)
    np.savez(tmp_path / "several.npz", a=np.zeros((3, 2)), b=np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"several\.npz cannot be read: name one of its arrays \(--name\): a, b"):
        chunks_of(tmp_path / "several.npz")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        chunks_of(tmp_path / "nowhere.npy")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "data is empty"),
        (np.zeros(6), r"two-dimensional \(N, 2\), got shape \(6,\); one row is x\[None\]"),
        (np.zeros((2, 2, 2)), r"got shape \(2, 2, 2\)"),
        (np.zeros((3, 5)), "data has 5 features, but the mixture has n_features=2"),
        (np.zeros((3, 2), dtype=complex), "real numbers, got dtype complex128"),
        (np.array([["a", "b"]]), "real numbers, got dtype <U1"),
        (torch.zeros(3, 2, dtype=torch.complex64), "real numbers"),
        (5, "data must be a tensor, an array, .* got int"),
        (iter([torch.zeros(3, 2)]), "iterated only once"),
        ({"images": torch.zeros(3, 2)}, "a batch of data must be a tensor or an array, got str"),
    ],
)
def test_data_that_cannot_be_read_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        list(chunks_of(data))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sample_weight": [1.0, 2.0]}, "sample_weight has 2 entries, but the data has 3 rows"),
        ({"sample_weight": [[1.0], [1.0], [1.0]]}, r"sample_weight must be one-dimensional \(N,\), got shape \(3, 1\)"),
        ({"sample_weight": [1.0, -1.0, 1.0]}, r"not negative, but entry 1 is -1\.0"),
        ({"sample_weight": [1.0, 1.0, float("nan")]}, "finite .* but entry 2 is nan"),
        ({"responsibilities": [0, 1]}, "responsibilities has 2 entries, but the data has 3 rows"),
        ({"responsibilities": [0, 1, 2]}, "labels must lie in 0 … 1, got values from 0 to 2"),
        ({"responsibilities": [0, -1, 1]}, "labels must lie in 0 … 1, got values from -1 to 1"),
        ({"responsibilities": [0.0, 1.0, 1.0]}, r"integer labels \(N,\) or of shape \(N, 2\), got torch.float32"),
        ({"responsibilities": np.ones((3, 4))}, r"of shape \(N, 2\), got torch.float64 of shape \(3, 4\)"),
        ({"responsibilities": [[0.5, 0.5], [1, -1], [0, 1]]}, "responsibilities must be finite and not negative"),
    ],
    ids=str,
)
def test_companions_that_do_not_fit_the_rows_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        chunks_of(torch.zeros(3, 2), n_components=2, **arguments)


def test_a_loader_is_counted_while_it_is_read():
    batches = [(torch.zeros(3, 2), "a"), (torch.zeros(2, 2), "b")]

    class Loader:
        def __iter__(self):
            return iter(batches)

    with pytest.raises(ValueError, match="sample_weight has 4 entries, but the data has 5 rows"):
        list(chunks_of(Loader(), sample_weight=[1.0] * 4))


def test_chunks_of_large_problems_have_fewer_rows():
    sizes = [chunk_size(K, d) for K, d in ((2, 2), (40, 512), (1000, 512), (10**6, 512))]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 10 * sizes[-1] > 0
    assert sizes[2] * 1000 * 4 <= 2**25  # 32 MB of float32


def test_data_that_runs_dry_between_passes_is_an_error_and_not_a_fit_to_nothing():
    class Once:
        def __init__(self, x):
            self.batches = iter(x.split(10))

        def __iter__(self):
            yield from self.batches

    mixture = StudentTMixture(2, 3, generator=0)
    with pytest.raises(ValueError, match=r"same rows at every iteration, but it had 50 rows first and 0 now"):
        mixture.fit(Once(torch.randn(50, 3, generator=torch.Generator().manual_seed(0))))
    assert not mixture.fitted


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_files_of_named_arrays_are_read_if_they_hold_one(tmp_path, suffix):
    x, path = np.arange(20.0).reshape(10, 2), tmp_path / f"x.{suffix}"
    np.savez(path, rows=x) if suffix == "npz" else save_file({"rows": torch.as_tensor(x)}, path)
    np.testing.assert_array_equal(torch.cat([chunk.x for chunk in chunks_of([path, path])]), np.concatenate([x, x]))


SHUFFLING = {
    "shuffle": lambda x: dict(shuffle=True),
    "a random subset": lambda x: dict(sampler=torch_data.SubsetRandomSampler(range(len(x)))),
    "weighted": lambda x: dict(sampler=torch_data.WeightedRandomSampler([1.0] * len(x), len(x))),
    "once an epoch": lambda x: dict(sampler=DistributedSampler(x, num_replicas=1, rank=0, shuffle=True)),
    "batches": lambda x: dict(
        batch_sampler=torch_data.BatchSampler(torch_data.RandomSampler(x), 8, False), batch_size=1
    ),
}


@pytest.mark.parametrize("kind", SHUFFLING)
def test_weights_cannot_belong_to_the_rows_of_a_loader_that_shuffles(kind):
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    loader = torch_data.DataLoader(x, **{"batch_size": 8, **SHUFFLING[kind](x)})
    mixture = StudentTMixture(2, 2, generator=0)
    for companion in ({"sample_weight": torch.ones(40)}, {"responsibilities": torch.arange(40) % 2}):
        with pytest.raises(ValueError, match=r"brings its rows in another order every time: .* \(shuffle=False\)"):
            mixture.fit(loader, **companion)
    assert not mixture.fitted
    assert mixture.fit(loader).fitted
    with pytest.raises(ValueError, match="brings its rows in another order every time"):
        mixture.score(loader, torch.ones(40))


def test_weights_follow_the_rows_of_loaders_that_keep_an_order():
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    weight = torch.arange(40) % 3
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1)).tolist()
    expected = StudentTMixture(2, 2, generator=0).fit(x[order], weight)
    for loader in (
        torch_data.DataLoader(x, batch_size=8, sampler=order),
        torch_data.DataLoader(torch_data.Subset(x, order), batch_size=8, num_workers=0),
        torch_data.DataLoader(x, batch_sampler=[order[i : i + 8] for i in range(0, 40, 8)]),
    ):
        fitted = StudentTMixture(2, 2, generator=0).fit(loader, weight)
        assert torch.equal(fitted.means, expected.means)


def test_another_order_at_a_later_pass_is_noticed():
    """An iterable without a sampler can say nothing of its order."""

    class Shuffled:
        def __iter__(self):
            yield from x[torch.randperm(40)].split(8)

    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    mixture = StudentTMixture(2, 2, generator=0)
    with pytest.raises(ValueError, match=r"same order at every iteration, where sample_weight, .* row 0 is not"):
        mixture.fit(Shuffled(), torch.ones(40))
    assert not mixture.fitted


@pytest.mark.parametrize("gigabytes", [0.01, 1.0, 16.0, 80.0])
def test_the_chunks_of_a_gpu_follow_its_free_memory(monkeypatch, gigabytes):
    """All temporaries together stay well below it; blocks that torch keeps for itself count as free."""
    free = int(gigabytes * 1e9)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (free // 2, 100 * free))
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda device: free)
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda device: free // 2)
    rows = gpu_chunk_size(40, 512, torch.device("cuda"))
    assert rows == 256 or 4 * 10 * rows * (2 * 512 + 40) < free / 2
    assert rows == {0.01: 256, 1.0: 4096, 16.0: 65536, 80.0: 262144}[gigabytes]
