"""open_clip's training loss with a cluster loss in it.

`ClipClusterLoss` takes the place of `open_clip.ClipLoss`: what its `create_loss` returns, `open_clip_train` calls with
the model's output, and adds up the losses by name. The loop below does the same. The data are synthetic.
Needs the extra `open-clip`.

    python examples/open_clip_loss.py                                                # a tiny model with random weights
    python examples/open_clip_loss.py --model ViT-B-32 --pretrained laion2b_s34b_b79k  # weights to download
"""

from __future__ import annotations

import argparse
from typing import Any

import open_clip
import torch
from torch import Tensor

from tmixture.losses import ClusterLoss, ClusterTripletLoss

N_KINDS, BATCH_SIZE = 6, 32


class ClipClusterLoss(open_clip.ClipLoss):
    """CLIP's loss, with its settings, and the cluster loss of the image features."""

    def __init__(self, cluster_loss: ClusterLoss, **settings: Any) -> None:
        super().__init__(**settings)
        self.cluster_loss = cluster_loss

    def forward(self, image_features: Tensor, *others: Any, output_dict: bool = False, **named: Any) -> Any:
        """The losses by name, or their sum."""
        losses = {
            "contrastive_loss": super().forward(image_features, *others, **named),
            "cluster_loss": self.cluster_loss(image_features),
        }
        return losses if output_dict else sum(losses.values())


def tiny_clip() -> open_clip.CLIP:
    """A CLIP model small enough for a test, with random weights."""
    vision = open_clip.CLIPVisionCfg(layers=2, width=32, head_width=16, patch_size=8, image_size=32)
    text = open_clip.CLIPTextCfg(context_length=8, vocab_size=100, width=32, heads=2, layers=2)
    return open_clip.CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text, output_dict=True)


def main() -> None:
    """Train for some steps, and print what the loss tells of its clusters."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="name of an open_clip model; a tiny random one by default")
    parser.add_argument("--pretrained", help="its weights, a name or a file")
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    chosen = {"model_name": arguments.model, "pretrained": arguments.pretrained, "output_dict": True}
    model = open_clip.create_model(**chosen) if arguments.model else tiny_clip()
    width = model.visual.output_dim
    cluster_loss = ClusterTripletLoss(n_components=N_KINDS, embedding_size=width, refit=5, memory_size=320)
    loss_fn = ClipClusterLoss(cluster_loss)
    patterns = torch.randn(N_KINDS, 3, *model.visual.image_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3 if arguments.model is None else 1e-6)
    for step in range(arguments.steps):
        kind = torch.randint(N_KINDS, (BATCH_SIZE,))
        texts = torch.randint(10, model.vocab_size - 1, (BATCH_SIZE, model.context_length))
        texts[:, 1], texts[:, -1] = kind, model.vocab_size - 1  # the end of a text has the highest number
        images = patterns[kind] + torch.randn(BATCH_SIZE, *patterns.shape[1:])
        losses = loss_fn(**model(images, texts), output_dict=True)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        if step % 10 == 9:
            numbers = {**{name: loss.item() for name, loss in losses.items()}, **cluster_loss.statistics}
            print(f"step {step + 1}: " + ", ".join(f"{name} {value:.3g}" for name, value in numbers.items()))


if __name__ == "__main__":
    main()
