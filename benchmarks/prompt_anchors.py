"""Do prompts as anchors of a mixture over unlabelled images rank findings better than zero-shot, as in TransCLIP?

A mixture with a component for each finding, whose mean is held at the embedding of the finding's prompt as by so many
images, is fitted to the embeddings of all images of a simulated cohort; no label is used. A finding's score is the
posterior of its component, or its log-density. Printed is the mean AUC over findings, beside that of the prompts.

    python examples/cxr_cml.py --cohort-seed 100 --simulated-images 6000 --image-size 48 --pretrain-epochs 30 \
        --batch-size 64 --arms start --output runs/start
    python -m benchmarks.prompt_anchors --output runs/anchors --init \
        runs/start/runs/seed0-fold0/pretraining/checkpoint.pt
"""

from __future__ import annotations

import argparse
import sys
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import cxr_cml
from cxr.clip.zero_shot import PROMPTS, encode_classes, encode_images, zero_shot_probabilities
from cxr.data.images import normalize as normalize_pixels
from cxr.reporting.statistics import class_auc
from tmixture import StudentTMixture

SETTINGS = tuple(product(("tied", "spherical", "diag"), (4.0, float("inf")), (10.0, 100.0, 10_000.0)))


def embeddings(config: cxr_cml.Config) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Of the images (N, d), of the prompts (2, C, d), and the labels (N, C)."""
    cohort, store, reports = cxr_cml.prepare(config)
    split = cxr_cml.splits(cohort, config, 0)[0]
    model = cxr_cml.starting_point(store, cohort, reports, split, config, 0, 0)
    parts = torch.arange(len(cohort)).split(256)
    images = encode_images(model, (normalize_pixels(torch.from_numpy(store[part.numpy()])) for part in parts))
    prompts = encode_classes(model, cohort.label_names, PROMPTS["ensemble"])
    return torch.from_numpy(images), prompts, cohort.labels


def table(images: Tensor, prompts: np.ndarray, labels: np.ndarray) -> list[str]:
    """Lines of Markdown: the mean AUC in points of each way to score."""

    def auc(scores: Tensor | np.ndarray) -> str:
        return f"{100 * np.nanmean(class_auc(labels, np.asarray(scores, dtype=float))):.1f}"

    positive = torch.from_numpy(prompts[0])
    lines = ["| embeddings | scores | posterior | log-density |", "|---|---|---|---|"]
    lines += [
        f"| as they are | zero-shot, against “no …” | {auc(zero_shot_probabilities(images.numpy(), prompts))} | |"
    ]
    lines += [f"| as they are | cosine with the prompt | {auc(images @ positive.T)} | |"]
    centred = [normalize(rows - rows.mean(0), dim=1) for rows in (images, positive)]  # there is no gap between these
    for name, (x, means) in {"as they are": (images, positive), "centred": centred}.items():
        for structure, dof, rows in SETTINGS:
            mixture = StudentTMixture(
                *means.shape, covariance_type=structure, dof=dof, init=means, anchor_rows=rows, generator=0
            ).fit(x)
            row = f"| {name} | {structure}, ν = {dof:g}, held as by {rows:g} images"
            lines.append(f"{row} | {auc(mixture(x))} | {auc(mixture.component_log_prob(x))} |")
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init", type=Path, help="checkpoint of the small CLIP; a new one is pretrained without")
    parser.add_argument("--output", type=Path, default=Path("runs/prompt-anchors"))
    parser.add_argument("--images", type=int, default=2400)
    parser.add_argument("--image-size", type=int, default=48)
    parser.add_argument("--pretrain-epochs", type=int, default=20)
    asked = parser.parse_args()
    config = cxr_cml.Config(
        output=asked.output,
        init=asked.init,
        cohort_seed=3,
        simulated_images=asked.images,
        image_size=asked.image_size,
        pretrain_epochs=asked.pretrain_epochs,
    )
    print("\n".join(table(*embeddings(config))))


if __name__ == "__main__":
    main()
