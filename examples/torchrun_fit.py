"""Fit a mixture to sharded embeddings with several processes, one per CPU socket or GPU.

Every process memory-maps its own share of the `.npy` files of a folder, so that no file is read twice and none has to
fit into memory. All processes end with the same mixture; the first one saves it. Each then writes the clusters of the
rows of its files beside them.

    torchrun --nproc-per-node 2 examples/torchrun_fit.py embeddings/ --n-components 40
"""

from __future__ import annotations

import argparse
import os
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from tmixture import StudentTMixture


def main() -> None:
    """Fit, save, predict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of .npy files, each (rows, features)")
    parser.add_argument("--n-components", type=int, default=40)
    parser.add_argument("--covariance-type", default="diag")
    parser.add_argument("--output", type=Path, default=Path("mixture.safetensors"))
    arguments = parser.parse_args()

    # A process may wait this long for the slowest one, in a pass over its files; then it gives up.
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=2))

    files = sorted(path for path in arguments.folder.glob("*.npy") if not path.stem.endswith(".clusters"))
    if not files:
        parser.error(f"{arguments.folder} holds no .npy files")
    mine = files[dist.get_rank() :: dist.get_world_size()]  # may be none: the others have rows
    mixture = StudentTMixture(
        arguments.n_components,
        np.load(files[0], mmap_mode="r").shape[1],
        covariance_type=arguments.covariance_type,
        distributed=True,
        generator=0,
        device=device,
        verbose=dist.get_rank() == 0,
    ).fit(mine)

    for path in mine:
        np.save(path.with_suffix(".clusters.npy"), mixture.predict(path).cpu().numpy())
    if dist.get_rank() == 0:
        mixture.save(arguments.output)
        print(f"{mixture.n_iter_} iterations, log-likelihood {mixture.history_[-1]:.4f}: wrote {arguments.output}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
