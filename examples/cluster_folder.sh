#!/usr/bin/env bash
# Cluster a folder of embeddings that need not fit into memory, from the command line.
#
#     examples/cluster_folder.sh FOLDER [K]
#
# FOLDER holds .npy, .npz or safetensors files of rows (N, d); where there is none yet, three small ones are made up.
# Interrupted or killed, it goes on where it was when it is run again.
set -euo pipefail
folder=${1:?which folder?}
components=${2:-5}

if [ ! -d "$folder" ]; then
    mkdir -p "$folder"
    python - "$folder" <<'PYTHON'
import sys
import numpy as np

rng = np.random.default_rng(0)
centres = 4 * rng.normal(size=(5, 16))
for shard in range(3):  # as an encoder would write them, a shard at a time
    rows = centres[rng.choice(5, 2000, p=[0.4, 0.3, 0.2, 0.08, 0.02])] + rng.standard_t(4, size=(2000, 16))
    np.save(f"{sys.argv[1]}/{shard:04d}.npy", rows.astype(np.float32))
PYTHON
fi

tmixture fit "$folder" --components "$components" --learn-dof shared --output "$folder.mixture"
tmixture describe "$folder.mixture"
tmixture predict "$folder.mixture" "$folder"

# What was written: one file per shard, with a row for each of its rows, to be memory-mapped in turn.
python - "$folder" <<'PYTHON'
import sys
from pathlib import Path
import numpy as np

for path in sorted(Path(sys.argv[1]).glob("*.clusters.npy")):
    clusters = np.load(path, mmap_mode="r")
    oddest = clusters["outlier_weight"].argsort()[:3]
    print(f"{path.name}: sizes {np.bincount(clusters['label']).tolist()}, rows that fit nowhere: {oddest.tolist()}")
PYTHON
