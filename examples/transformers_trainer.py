"""Train a CLIP model with the Trainer of Hugging Face and a cluster loss.

The loss becomes a part of the model: checkpoints hold its mixture. The data are synthetic; put yours in their place.
With --model NAME, real weights take the place of a tiny random model. Needs the extra `huggingface`.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, Trainer, TrainingArguments

from tmixture.losses import ClusterTripletLoss

N_KINDS, CAPTION_LENGTH = 6, 8


def tiny_clip() -> CLIPModel:
    """A CLIP model with random weights, small enough for a test."""
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**size, "vocab_size": 100, "max_position_embeddings": CAPTION_LENGTH, "bos_token_id": 0, "eos_token_id": 99}
    vision = {**size, "image_size": 32, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32))


def synthetic_pairs(model: CLIPModel, n: int) -> list[dict[str, Tensor]]:
    """Images, each the pattern of its kind with noise, and captions of random words with one word for the kind."""
    text, vision = model.config.text_config, model.config.vision_config
    patterns = torch.randn(N_KINDS, vision.num_channels, vision.image_size, vision.image_size)
    captions = torch.randint(10, text.vocab_size - 10, (n, CAPTION_LENGTH))
    captions[:, 1], captions[:, -1] = torch.arange(n) % N_KINDS, text.eos_token_id
    images = [patterns[i % N_KINDS] + torch.randn(patterns.shape[1:]) for i in range(n)]
    return [{"pixel_values": image, "input_ids": caption} for image, caption in zip(images, captions)]


class ClusterTrainer(Trainer):
    """A Trainer that adds the cluster loss of the model, and logs what it tells of its clusters."""

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any) -> Any:
        """CLIP's loss plus the cluster loss of the image embeddings."""
        out = model(**inputs, return_loss=True)
        loss = out.loss + self.accelerator.unwrap_model(model).cluster_loss(out.image_embeds)
        return (loss, out) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the statistics of the clusters."""
        statistics = self.model.cluster_loss.statistics
        super().log({**logs, **{f"cluster_{name}": value for name, value in statistics.items()}}, *args, **kwargs)


def main() -> None:
    """Train for some steps; the Trainer prints its log."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="name or folder of a CLIP model")
    parser.add_argument("--output", default="runs/transformers_trainer", help="folder for checkpoints")
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = CLIPModel.from_pretrained(arguments.model) if arguments.model else tiny_clip()
    width = model.config.projection_dim
    model.cluster_loss = ClusterTripletLoss(n_components=N_KINDS, embedding_size=width, refit=5, memory_size=320)
    training = TrainingArguments(
        arguments.output,
        max_steps=arguments.steps,
        per_device_train_batch_size=32,
        learning_rate=1e-3 if arguments.model is None else 1e-6,
        logging_steps=10,
        save_steps=10,
        report_to="none",
    )
    ClusterTrainer(model=model, args=training, train_dataset=synthetic_pairs(model, 320)).train()


if __name__ == "__main__":
    main()
