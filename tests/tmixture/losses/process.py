"""What each of two processes does for `test_distributed`, and one alone with the joined batches."""

import torch
import torch.distributed as dist
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

from tmixture import StudentTMixture
from tmixture.losses import ClusterTripletLoss

WORLD = 2
SETTINGS = {
    "streaming": {},
    "memory": {"memory_size": 40, "miner": "hard"},
    "refit": {"window_size": 60, "refit": 3},
}


def batches(n=6, size=24):
    """Batches of overlapping clusters of unequal size."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 6, generator=generator)
    labels = torch.multinomial(torch.tensor([0.5, 0.3, 0.1, 0.1]), n * size, replacement=True, generator=generator)
    return (centres[labels] + 0.5 * torch.randn(n * size, 6, generator=generator)).split(size)


def make(**settings):
    return ClusterTripletLoss(
        StudentTMixture(4, 6, step_size=0.1, distributed=True, generator=0), **{"refit": "streaming", **settings}
    )


def train(rank, world_size, settings):
    """Steps of a linear encoder on the joined loss; what there is to compare after each."""
    layer = torch.nn.Linear(6, 6, bias=False)
    torch.nn.init.eye_(layer.weight)
    loss_fn = make(**settings)
    wrapped = DistributedLossWrapper(loss_fn) if world_size > 1 else loss_fn
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    steps = []
    for x in batches():
        optimizer.zero_grad()
        loss = wrapped(layer(x.chunk(world_size)[rank]))
        loss.backward()
        if world_size > 1:
            dist.all_reduce(layer.weight.grad)
            layer.weight.grad /= world_size  # as DistributedDataParallel does
        optimizer.step()
        steps.append({"loss": loss.detach() / world_size, "grad": layer.weight.grad.clone()})
    return {"steps": steps, "state": loss_fn.state_dict()}


def stream(rank, world_size, settings):
    """Without the wrapper: each process has a loss of its own rows, the mixture learns from all."""
    loss_fn = make(**settings)
    for x in batches():
        loss_fn(x.chunk(world_size)[rank])
    return {"state": loss_fn.state_dict()}


def known(rank, world_size, settings):
    """The same with known labels of some rows."""
    loss_fn = make(**settings)
    labels = torch.where(torch.arange(24) % 3 == 0, torch.arange(24) % 4, -1)
    for x in batches():
        loss_fn(x.chunk(world_size)[rank], labels.chunk(world_size)[rank])
    return {"state": loss_fn.state_dict()}


def uneven(rank, world_size):
    """Rows that only one process has, or that only one must skip."""
    loss_fn = make(nonfinite="skip", memory_size=50)
    for x in batches():
        rows = torch.cat([x, torch.full((3, 6), float("nan"))])
        loss_fn(rows.tensor_split([8])[rank] if world_size > 1 else rows)
    return {"state": loss_fn.state_dict()}


class Interrupted:
    """A loader at whose second batch somebody presses Ctrl-C."""

    def __iter__(self):
        yield batches()[0]
        raise KeyboardInterrupt


def failing(rank, world_size):
    """What each kind of call raises when the second process fails in it, and whether anything has changed."""
    x = batches()[0]
    calls = {
        "NaN": lambda loss_fn: loss_fn(x * float("nan") if rank else x),
        "width": lambda loss_fn: loss_fn(x[:, :4] if rank else x),
        "dimension": lambda loss_fn: loss_fn(x[0] if rank else x),
        "epoch, NaN": lambda loss_fn: loss_fn.end_epoch(x * float("nan") if rank else x),
        "epoch, width": lambda loss_fn: loss_fn.end_epoch(x[:, :4] if rank else x),
        "epoch, interrupt": lambda loss_fn: loss_fn.end_epoch(Interrupted() if rank else x),
    }
    results = {}
    for name, settings in SETTINGS.items():
        for call, action in calls.items():
            loss_fn = make(**settings)
            loss_fn(x)
            before = {name: tensor.clone() for name, tensor in loss_fn.state_dict().items()}
            try:
                action(loss_fn)
                error = "nothing was raised"
            except BaseException as raised:
                error = f"{type(raised).__name__}: {raised}"
            after = loss_fn.state_dict()
            same = before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
            results[f"{name}: {call}"] = {"error": error, "same": same}
    return results


class Encoder(torch.nn.Module):
    """A network that holds its loss, as `DistributedDataParallel` sees it."""

    def __init__(self, settings):
        super().__init__()
        self.layer, self.loss_fn = torch.nn.Linear(6, 6, bias=False), make(**settings)

    def forward(self, x):
        return self.loss_fn(self.layer(x))


def checkpoint_of_rank_zero(rank, world_size, settings):
    """A checkpoint that the first process alone has loaded, and a step of both after it."""
    before = Encoder(settings)
    torch.nn.init.eye_(before.layer.weight)
    for x in batches():
        before(x.chunk(world_size)[rank])
    module = Encoder(settings)
    if rank == 0:
        module.load_state_dict(before.state_dict())
    parallel = torch.nn.parallel.DistributedDataParallel(module)
    same = {key: torch.equal(value, module.state_dict()[key]) for key, value in before.state_dict().items()}
    parallel(batches()[0].chunk(world_size)[rank]).backward()
    return {"same": same, "state": module.state_dict(), "grad": module.layer.weight.grad}


def alone(rank, world_size):
    """A mixture that is not shared."""
    try:
        ClusterTripletLoss(StudentTMixture(4, 6))(torch.ones(2, 6))
    except RuntimeError as error:
        return {"error": str(error)}


def everything(rank, world_size):
    """The results of all that can be done alone as well."""
    results = {f"train {name}": train(rank, world_size, settings) for name, settings in SETTINGS.items()}
    results |= {f"stream {name}": stream(rank, world_size, settings) for name, settings in SETTINGS.items()}
    results |= {f"known {name}": known(rank, world_size, settings) for name, settings in SETTINGS.items()}
    return {**results, "uneven": uneven(rank, world_size)}


def main(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    results = {**everything(rank, WORLD), "failing": failing(rank, WORLD), "alone": alone(rank, WORLD)}
    for name, settings in SETTINGS.items():
        results[f"checkpoint {name}"] = checkpoint_of_rank_zero(rank, WORLD, settings)
    torch.save(results, folder / f"{rank}.pt")
    dist.barrier()
