"""Two processes with a share of the data each end with the parameters of one process with all of it."""

import os
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tmixture import StudentTMixture

STRUCTURES = ["full", "tied", "diag", "spherical"]
WORLD = 2
SPLIT = 170  # rows of the first process; the second has more


def rows(dtype):
    generator = torch.Generator().manual_seed(0)
    centres = 5 * torch.randn(3, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (500,), generator=generator)
    weight = torch.rand(500, generator=generator)
    weight[::7] = 0
    return (centres[labels] + torch.randn(500, 4, generator=generator, dtype=torch.float64)).to(dtype), weight, labels


def share(tensor, rank):
    """What one process holds of all rows, or everything for rank None."""
    return tensor if rank is None else (tensor[:SPLIT], tensor[SPLIT:])[rank]


def batches(x, rank):
    """A stream of 25 batches of 20 rows, of which the first process sees 7 and the second 13."""
    for batch in x.split(20):
        yield batch if rank is None else (batch[:7], batch[7:])[rank]


def scenarios(rank, dtype):
    """Name and fitted mixture of everything that is compared."""
    x, weight, labels = rows(dtype)
    mine = share(x, rank)
    common = dict(distributed=rank is not None, dtype=dtype, generator=0, learn_dof="component", max_iter=15)
    for structure in STRUCTURES:
        settings = dict(common, covariance_type=structure)
        yield f"fit {structure}", StudentTMixture(3, 4, **settings).fit(mine)
        yield f"weights {structure}", StudentTMixture(3, 4, **settings).fit(mine, share(weight, rank))
        start = share(labels, rank)
        yield f"labels {structure}", StudentTMixture(3, 4, **settings).fit(mine, responsibilities=start)
        streamed = StudentTMixture(3, 4, **settings)
        for batch in batches(x, rank):
            streamed.partial_fit(batch)
        yield f"stream {structure}", streamed
        fitted = StudentTMixture(3, 4, **settings).fit(mine)
        for batch in batches(x, rank):
            fitted.partial_fit(batch)
        yield f"fit, then stream {structure}", fitted
    for init in ("kmeans++", "random"):
        yield init, StudentTMixture(3, 4, init=init, **common).fit(mine)
    weighted = StudentTMixture(3, 4, **common)
    for batch, s in zip(batches(x, rank), batches(weight, rank)):
        weighted.partial_fit(batch, s)
    yield "weighted stream", weighted
    # In some batches one process has nothing to say; it must not keep the other waiting.
    uneven = StudentTMixture(3, 4, **common)
    one_sided = weight.clone()
    one_sided[torch.arange(500) % 20 < 7] = 0
    one_sided[:100] = 1.0
    for batch, s in zip(batches(x, rank), batches(one_sided, rank)):
        uneven.partial_fit(batch, s)
    yield "uneven stream", uneven
    # Far too many components: some die and are re-seeded from rows that only one process may hold.
    many = StudentTMixture(60, 4, dof=float("inf"), **{**common, "learn_dof": False}).fit(mine)
    assert many.n_reseeded_ > 0
    yield "many components", many


def answers(mixture, mine):
    result = {name: tensor.numpy() for name, tensor in mixture.state_dict().items() if tensor.is_floating_point()}
    result["history"] = np.array(mixture.history_)
    result["criteria"] = np.array([mixture.score(mine), mixture.bic(mine), mixture.icl(mine)])
    result["counts"] = np.array([mixture.n_iter_, mixture.n_reseeded_])
    return result


def run_process(rank, port, folder):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    results = {}
    for dtype in (torch.float32, torch.float64):
        mine = share(rows(dtype)[0], rank)
        results[dtype] = {name: answers(mixture, mine) for name, mixture in scenarios(rank, dtype)}
    torch.save(results, f"{folder}/{rank}")
    try:
        dist.barrier()
    finally:
        # Gloo's threads may outlive the group for a moment, and then abort an interpreter that is shutting down.
        os._exit(0)


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """The results of every process."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(run_process, args=(port, str(folder)), nprocs=WORLD)
    return [torch.load(folder / str(rank), weights_only=False) for rank in range(WORLD)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_processes_are_one(processes, dtype):
    first, second = (results[dtype] for results in processes)
    x = rows(dtype)[0]
    tolerance = 1e-6 if dtype == torch.float32 else 1e-10
    for name, mixture in scenarios(None, dtype):
        alone = answers(mixture, x)
        assert first[name].keys() == second[name].keys() == alone.keys(), name
        for key, value in alone.items():
            np.testing.assert_array_equal(first[name][key], second[name][key], err_msg=f"{name}: {key} differs by rank")
            if name == "many components":  # which rows re-seed it is drawn otherwise; the rest of it still has to hold
                continue
            size = max(float(np.abs(value).max(initial=0)), 0.1)  # small values are differences of numbers like 1
            np.testing.assert_allclose(
                first[name][key], value, rtol=tolerance, atol=tolerance * size, err_msg=f"{name}: {key}"
            )
        assert np.isfinite(first[name]["means"]).all()


def test_without_a_process_group_nothing_is_waited_for():
    x = rows(torch.float32)[0]
    one = StudentTMixture(3, 4, distributed=True, generator=0).fit(x).partial_fit(x[:50])
    other = StudentTMixture(3, 4, generator=0).fit(x).partial_fit(x[:50])
    assert torch.equal(one.means, other.means)
    assert one.score(x) == other.score(x)
