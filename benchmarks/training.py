"""The cluster stage of training beside a step of CLIP."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import cycle, islice
from statistics import median

import torch
from torch import Tensor

from benchmarks.problems import Shape, embeddings
from tmixture.losses import ClusterTripletLoss
from tmixture.losses.settings import CALLS_PER_REFIT, WINDOW_ROWS

COMPONENTS = 40
FEATURES = 512
REPEATS = 5


def cluster_stage(batch: int, device: str) -> dict[str, float]:
    """Seconds of one call of `ClusterTripletLoss` with its defaults in train mode, and of the backward pass.

    That is: normalisation and checks of the batch, its way into the memory, the pseudo-labels, the mining of semi-hard
    triplets, the loss, and its gradient in the embeddings; and the share of one call in a refit.
    """
    loss_fn = ClusterTripletLoss(n_components=COMPONENTS, embedding_size=FEATURES).to(device)
    rows = embeddings(Shape(max(WINDOW_ROWS, 3 * batch), FEATURES, COMPONENTS)).to(device)
    loss_fn(rows[:WINDOW_ROWS])  # the first fit
    batches = cycle(rows.split(batch)[:-1])

    def steps() -> None:
        for x in islice(batches, CALLS_PER_REFIT):
            loss_fn(x.clone().requires_grad_()).backward()

    seconds = _median_seconds(steps, repeats=3) / CALLS_PER_REFIT
    return {"stage": seconds, "triplets": loss_fn.statistics["tuples"]}


def clip_step(batch: int, device: str) -> float:
    """Seconds of one training step of a randomly initialised ViT-B/32 CLIP of Hugging Face, float32 and AdamW."""
    from transformers import CLIPConfig, CLIPModel

    model = CLIPModel(CLIPConfig()).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    size, length = model.config.vision_config.image_size, model.config.text_config.max_position_embeddings
    images = torch.randn(batch, 3, size, size, device=device)
    tokens = torch.randint(1, 1000, (batch, length), device=device)

    def step() -> None:
        optimizer.zero_grad()
        logits: Tensor = model(input_ids=tokens, pixel_values=images).logits_per_image
        target = torch.arange(batch, device=device)
        cross_entropy = torch.nn.functional.cross_entropy
        ((cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2).backward()
        optimizer.step()

    return _median_seconds(step, repeats=3)


def _median_seconds(step: Callable[[], None], repeats: int = REPEATS) -> float:
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    step()
    seconds = []
    for _ in range(repeats):
        wait()
        begin = time.perf_counter()
        step()
        wait()
        seconds.append(time.perf_counter() - begin)
    return median(seconds)
