"""What each of two processes does for `test_distributed`."""

import copy
import os
import signal

import numpy as np
import torch
import torch.distributed as dist

from tmixture import Prior, StudentTMixture
from tmixture.data.chunks import Chunk
from tmixture.reservoir import draw_sample

STRUCTURES = {"full": {}, "tied": {}, "diag": {}, "spherical": {}, "lowrank": {"rank": 2}}
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


def one_sided(x, rank):
    """Batches of which one process gets all rows, the first one more often."""
    for i, batch in enumerate(x.split(20)):
        yield batch if rank in (None, min(i % 3, 1)) else batch[:0]


def files(x, rank, folder, n):
    """The rows in n `.npy` files, of which the processes take turns."""
    paths = [folder / f"{rank}-{n}-{i}.npy" for i in range(n)]
    for path, part in zip(paths, x.tensor_split(n)):
        np.save(path, part.numpy())
    return paths if rank is None else paths[rank::WORLD]


def fits(rank, dtype, folder):
    """Name and fitted mixture of everything that is compared."""
    x, weight, labels = rows(dtype)
    mine = share(x, rank)
    common = dict(distributed=rank is not None, dtype=dtype, generator=0, learn_dof="component", max_iter=15)
    for structure, its_own in STRUCTURES.items():
        if dtype == torch.float32 and structure != "full":
            continue
        settings = dict(common, covariance_type=structure, **its_own)
        known = share(torch.where(torch.arange(len(x)) % 9 < 2, labels, -1), rank)
        yield f"known rows {structure}", StudentTMixture(3, 4, anchor_rows=9, **settings).fit(mine, labels=known)
        if structure not in ("full", "lowrank"):  # a structure is its statistics, which the others share out as well
            continue
        yield f"weights {structure}", StudentTMixture(3, 4, **settings).fit(mine, share(weight, rank))
        streamed = StudentTMixture(3, 4, **settings)
        for batch in batches(x, rank):
            streamed.partial_fit(batch)
        yield f"stream {structure}", streamed
        believed = StudentTMixture(4, 4, prior=Prior(2, 3, 4), background=True, **settings).fit(mine)
        yield f"prior and background {structure}", copy.deepcopy(believed)
        believed.frozen = {"means": [True, False, False, False]}
        for batch in batches(x, rank):
            believed.partial_fit(batch)
        yield f"stream with a frozen mean {structure}", believed
        start = share(labels, rank)
        yield f"labels {structure}", StudentTMixture(3, 4, **settings).fit(mine, responsibilities=start)
        only_second = x if rank is None else x[: rank * 500]
        yield f"first without rows {structure}", StudentTMixture(3, 4, **settings).fit(only_second)
        fitted = StudentTMixture(3, 4, **settings).fit(mine)
        yield f"fit {structure}", copy.deepcopy(fitted)
        for batch in one_sided(x, rank):
            fitted.partial_fit(batch)
        yield f"fit, then one-sided stream {structure}", fitted
    if dtype == torch.float32:
        return
    for init in ("kmeans++", "random"):
        yield init, StudentTMixture(3, 4, init=init, **common).fit(mine)
    for learn_dof in (False, "shared"):
        yield f"dof {learn_dof}", StudentTMixture(3, 4, **{**common, "learn_dof": learn_dof}).fit(mine)
    yield "several starts", StudentTMixture(4, 4, n_init=3, init="random", **common).fit(mine)
    mixed = mine.double() if rank else mine
    yield "several dtypes", StudentTMixture(3, 4, **common).fit(mixed)
    given = share(torch.nn.functional.one_hot(labels, 3) * 0.5 + 1 / 6, rank)
    random = StudentTMixture(3, 4, **{**common, "generator": None})
    yield "given responsibilities", random.fit(mine, share(weight, rank), responsibilities=given)
    shards = files(x, rank, folder, 1)  # one file: the second process has none
    yield "one file", StudentTMixture(3, 4, **common).fit(shards)
    weighted = StudentTMixture(3, 4, **common)
    for batch, s in zip(batches(x, rank), batches(weight, rank)):
        weighted.partial_fit(batch, s)
    yield "weighted stream", weighted
    # In some batches one process has nothing to say; it must not keep the other waiting.
    uneven = StudentTMixture(3, 4, **common)
    silent = weight.clone()
    silent[torch.arange(500) % 20 < 7] = 0
    silent[:100] = 1.0
    for batch, s in zip(batches(x, rank), batches(silent, rank)):
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


def samples(rank):
    """100 samples of 50 of the rows 0 … 999, of which the second process holds the last 100."""
    x = torch.arange(1000.0)[:, None].split([900, 100])[rank]
    generator = torch.Generator().manual_seed(0)
    draws = [draw_sample([Chunk(x)], 50, torch.float32, generator, shared=True) for _ in range(100)]
    return torch.stack([sample.x[:, 0] for sample in draws])


def equality(rank, folder):
    """What every fit comes to."""
    results = {"samples": samples(rank)}
    for dtype in (torch.float32, torch.float64):
        mine = share(rows(dtype)[0], rank)
        results[dtype] = {name: answers(mixture, mine) for name, mixture in fits(rank, dtype, folder)}
    return results


class Loader:
    """Two batches, before the second of which something happens from the second pass on."""

    def __init__(self, x, event):
        self.x, self.event, self.passes = x, event, 0

    def __iter__(self):
        self.passes += 1
        yield self.x[:50]
        if self.passes > 1:
            self.event()
        yield self.x[50:]


def fail(error):
    raise error


def failing(rank, folder):
    """What each call raises when the second process fails in it, and whether anything has changed."""
    x = rows(torch.float32)[0][:100]
    broken = x.clone()
    broken[17, 2] = float("nan")
    second = rank == 1
    calls = {
        "NaN": lambda m: m.fit(broken if second else x),
        "width": lambda m: m.fit(x[:, :3] if second else x),
        "dtype": lambda m: m.fit(x.to(torch.complex64) if second else x),
        "path": lambda m: m.fit("nowhere.npy" if second else x),
        "weights": lambda m: m.fit(x, -torch.ones(100) if second else torch.ones(100)),
        "labels": lambda m: m.fit(x, responsibilities=torch.arange(100) if second else torch.zeros(100).long()),
        "file that ends": lambda m: m.fit(Loader(x, lambda: fail(OSError("disk on fire"))) if second else x),
        "Ctrl-C": lambda m: m.fit(Loader(x, lambda: signal.raise_signal(signal.SIGINT)) if second else x),
        "no memory": lambda m: m.fit(Loader(x, lambda: fail(MemoryError())) if second else x),
        "batch, NaN": lambda m: m.partial_fit(broken if second else x),
        "batch, width": lambda m: m.partial_fit(x[:, :3] if second else x),
        "score, NaN": lambda m: m.score(broken if second else x),
        "both, width": lambda m: m.fit(x[:, : 2 + rank]),
        "too few rows": lambda m: m.fit(x[rank : 2 * rank]),
        "no rows": lambda m: m.fit(x[:0]),
        "other settings": lambda m: StudentTMixture(3 + rank, 4, init="random", distributed=True).fit(x),
        "other call": lambda m: m.partial_fit(x) if second else m.score(x),
    }
    results = {}
    for name, call in calls.items():
        for started in (False, True):
            mixture = StudentTMixture(3, 4, distributed=True, generator=0)
            if started or "score" in name or "call" in name:
                mixture.fit(x)
            before = {key: tensor.clone() for key, tensor in mixture.state_dict().items()}
            try:
                call(mixture)
                error = "nothing was raised"
            except BaseException as raised:
                error = f"{type(raised).__name__}: {raised}"
            after = mixture.state_dict()
            same = before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
            results[name, started] = (error, same)
    return results


def lost(rank, folder):
    """What the first process raises when the second one is killed."""
    x = rows(torch.float32)[0][:100]
    mixture = StudentTMixture(3, 4, distributed=True, generator=0)
    killed = Loader(x, lambda: os.kill(os.getpid(), signal.SIGKILL))
    try:
        mixture.fit(killed if rank == 1 else x)
    except RuntimeError as error:
        return str(error), type(error.__cause__).__name__, bool(mixture.fitted)


TASKS = {"equality": equality, "failing": failing, "lost": lost}


def main(rank, folder, task):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    torch.save(TASKS[task](rank, folder), folder / f"{rank}.pt")
    if task != "lost":
        dist.barrier()
