"""Train a CLIP model of Hugging Face with a cluster loss beside its own, in a plain loop.

The marked lines are all that is added. The data are synthetic; put your own batches in their place. Needs the
extra `huggingface`.

    python examples/huggingface_clip.py                                       # a tiny model with random weights
    python examples/huggingface_clip.py --model openai/clip-vit-base-patch32  # yours, or one to download
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from tmixture.losses import ClusterTripletLoss

N_KINDS, BATCH_SIZE, CAPTION_LENGTH = 6, 32, 8


def tiny_clip() -> CLIPModel:
    """A CLIP model small enough for a test, with random weights."""
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**size, "vocab_size": 100, "max_position_embeddings": CAPTION_LENGTH, "bos_token_id": 0, "eos_token_id": 99}
    vision = {**size, "image_size": 32, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32))


def synthetic_batches(model: CLIPModel, n_batches: int) -> Iterator[dict[str, Tensor]]:
    """Images of a few kinds, each a pattern with noise, and captions of random words with one word for the kind."""
    text, vision = model.config.text_config, model.config.vision_config
    patterns = torch.randn(N_KINDS, vision.num_channels, vision.image_size, vision.image_size)
    for _ in range(n_batches):
        kind = torch.randint(N_KINDS, (BATCH_SIZE,))
        captions = torch.randint(10, text.vocab_size - 10, (BATCH_SIZE, CAPTION_LENGTH))
        captions[:, 1], captions[:, -1] = kind, text.eos_token_id
        yield {"pixel_values": patterns[kind] + torch.randn(BATCH_SIZE, *patterns.shape[1:]), "input_ids": captions}


def main() -> None:
    """Train for some steps, and print what the loss tells of its clusters."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="name or folder of a CLIP model; a tiny random one by default")
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = (CLIPModel.from_pretrained(arguments.model) if arguments.model else tiny_clip()).to(device)
    # The embeddings of a new model move fast: the mixture is fitted anew to recent ones every few steps.
    width = model.config.projection_dim
    cluster_loss = ClusterTripletLoss(n_components=N_KINDS, embedding_size=width, refit=5, memory_size=320)  # <- added
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3 if arguments.model is None else 1e-6)
    model.train()
    for step, batch in enumerate(synthetic_batches(model, arguments.steps)):
        out = model(**{name: values.to(device) for name, values in batch.items()}, return_loss=True)
        loss = out.loss + cluster_loss(out.image_embeds)  # <- added
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 9:
            numbers = ", ".join(f"{name} {value:.3g}" for name, value in cluster_loss.statistics.items())
            print(f"step {step + 1}: loss {loss.item():.3f}, {numbers}")


if __name__ == "__main__":
    main()
