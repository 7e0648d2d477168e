"""Rows per second that one device takes through one EM iteration: the measured figure of docs/scaling.md.

python benchmarks/throughput.py --device cpu
python benchmarks/throughput.py --device cuda
"""

from __future__ import annotations

import argparse
import time

import torch

from tmixture import StudentTMixture
from tmixture.em import expectation
from tmixture.initialization import uniform
from tmixture.maximization import Rules, maximization
from tmixture.scales import STRUCTURES

PROBLEMS = (
    ("diag", 40, 16384),
    ("full", 40, 16384),
    ("diag", 4096, 4096),
)  # structure, K, rows; a GPU takes 16 times as many
FEATURES = 512


def rows_per_second(structure: str, n_components: int, rows: int, device: torch.device, repeats: int) -> float:
    """On a CPU per second of one core's time, so that a busy machine does not matter."""
    generator = torch.Generator(device).manual_seed(0)
    centres = torch.randn(n_components, FEATURES, generator=generator, device=device)
    labels = torch.randint(n_components, (rows,), generator=generator, device=device)
    x = torch.nn.functional.normalize(centres[labels] + torch.randn(rows, FEATURES, generator=generator, device=device))
    mixture = StudentTMixture(n_components, FEATURES, covariance_type=structure, device=device)
    chunks = mixture.chunks(x)
    dof = torch.full((n_components,), 4.0, device=device)
    scale = STRUCTURES[structure].diagonal(torch.full((n_components, FEATURES), 0.5 / FEATURES, device=device))
    start = uniform(torch.nn.functional.normalize(centres), scale, dof)
    rules = Rules("px", False, (0.5, 200.0), torch.full((FEATURES,), 1e-8, device=device))
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    seconds = []
    for _ in range(repeats):
        begin = clock()
        maximization(expectation(chunks, start, rules, torch.float32), start, rules).means.sum().item()
        seconds.append(clock() - begin)
    return rows / min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| structure | K | rows/s per core or GPU |\n|---|---:|---:|")
    device = torch.device(arguments.device)
    for structure, n_components, rows in PROBLEMS:
        rows *= 1 if device.type == "cpu" else 16
        rate = rows_per_second(structure, n_components, rows, device, arguments.repeats)
        print(f"| {structure} | {n_components} | {rate:,.0f} |", flush=True)


if __name__ == "__main__":
    with torch.no_grad():
        main()
