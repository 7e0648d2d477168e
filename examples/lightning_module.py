"""A LightningModule that learns images without labels: SimCLR with a cluster loss beside it.

The loss is a part of the module: Lightning moves it, switches it to eval mode for validation, and saves its mixture
with every checkpoint. The data are synthetic. Needs the extra `lightning`.

    python examples/lightning_module.py                                      # a tiny model with random weights
    python examples/lightning_module.py --model google/vit-base-patch16-224  # yours, or one to download
"""

from __future__ import annotations

import argparse

import lightning
import torch
from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoModel, PreTrainedModel, ViTConfig, ViTModel

from tmixture.losses import ClusterTripletLoss

N_KINDS = 6


class ClusteredEncoder(lightning.LightningModule):
    """A vision transformer, trained by two views of each image and by the clusters of the images."""

    def __init__(self, encoder: PreTrainedModel, n_components: int, learning_rate: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.learning_rate = learning_rate
        self.contrastive_loss = SelfSupervisedLoss(NTXentLoss(temperature=0.2))
        self.cluster_loss = ClusterTripletLoss(
            n_components=n_components, embedding_size=encoder.config.hidden_size, refit=5, memory_size=320
        )

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings (n, d) of images."""
        return self.encoder(images).last_hidden_state[:, 0]

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        """The loss of a batch; what the cluster loss tells of its clusters goes to the log."""
        first, second = (self(batch[0] + torch.randn_like(batch[0])) for _ in range(2))
        cluster_loss = self.cluster_loss(first, ref_emb=second)  # views of one image are positives
        self.log("cluster_loss", cluster_loss)
        self.log_dict({f"cluster_{name}": value for name, value in self.cluster_loss.statistics.items()})
        return self.contrastive_loss(first, second) + cluster_loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The cluster loss has no parameters to train."""
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate)


def main() -> None:
    """Train for some steps, and print the log."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="name or folder of a vision transformer; a tiny random one by default")
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    lightning.seed_everything(0, verbose=False)
    tiny = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = ViTConfig(**tiny, image_size=32, patch_size=8)
    encoder = AutoModel.from_pretrained(arguments.model) if arguments.model else ViTModel(config)
    patterns = torch.randn(N_KINDS, 3, encoder.config.image_size, encoder.config.image_size)
    loader = DataLoader(TensorDataset(patterns.repeat(50, 1, 1, 1)), batch_size=32, shuffle=True, drop_last=True)
    module = ClusteredEncoder(encoder, N_KINDS, learning_rate=1e-3 if arguments.model is None else 1e-5)
    trainer = lightning.Trainer(max_steps=arguments.steps, log_every_n_steps=5, logger=False)
    trainer.fit(module, loader)
    print(", ".join(f"{name} {float(value):.3g}" for name, value in trainer.logged_metrics.items()))


if __name__ == "__main__":
    main()
