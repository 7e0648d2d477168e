"""The cluster stage of training beside a step of CLIP."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from benchmarks.problems import Shape, embeddings
from tmixture.losses import ClusterTripletLoss

COMPONENTS = 40
FEATURES = 512
REPEATS = 5


def cluster_stage(batch: int, device: str) -> dict[str, float]:
    """Seconds of one call of `ClusterTripletLoss` with its defaults in train mode, and of the backward pass.

    That is: normalisation and checks of the batch, the update of the mixture by `partial_fit`, the pseudo-labels before
    and after it, the mining of semi-hard triplets, the loss, and its gradient in the embeddings.
    """
    loss_fn = ClusterTripletLoss(n_components=COMPONENTS, embedding_size=FEATURES).to(device)
    rows = embeddings(Shape(max(20 * COMPONENTS, (REPEATS + 2) * batch), FEATURES, COMPONENTS)).to(device)
    loss_fn(rows[: 20 * COMPONENTS])  # the first fit
    batches = iter(rows.split(batch))

    def step() -> None:
        loss_fn(next(batches).clone().requires_grad_()).backward()

    return {"stage": _median_seconds(step), "triplets": loss_fn.statistics["tuples"]}


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
