"""Training of one arm: its objective, the cluster stage beside it, checkpoints, and what a step costs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cxr.clip import ClipModel
from cxr.data.images import ImageStore, augment, normalize
from cxr.data.splits import Split
from cxr.data.texts import Texts, captions_of
from cxr.training.arm import Arm
from cxr.training.objective import Batch, Objective
from cxr.training.stage import Stage
from tmixture.losses import LabelWeights
from tmixture.progress import progress_bar

CHECKPOINT_SECONDS = 300.0
# What an objective adds to a model begins at random, and does not learn at the rates of fine-tuning.
HEAD_RATE = 3e-4


@dataclass(frozen=True)
class Data:
    """What training reads: N images, their texts and their labels (N, C)."""

    store: ImageStore
    texts: Texts
    labels: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Schedule:
    """How long, how fast and in what portions.

    Attributes:
        epochs: passes over the training part.
        batch_size: images per step.
        accumulate: steps whose gradients are added up before the weights move.
        learning_rate: of AdamW, at the start; divided by ten when the validation loss stops falling for `patience`
            epochs.
        weight_decay: of AdamW.
        patience: in epochs.
        augment: whether the images are turned, shifted and scaled a little, see `cxr.data.images.augment`.
        seed: of the order of the images.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    accumulate: int = 1
    weight_decay: float = 1e-4
    patience: int = 2
    augment: bool = False
    seed: int = 0


class Trainer:
    """One model being trained as one arm.

    Args:
        model: the starting point; it is trained in place.
        data: images, texts and labels.
        split: which rows to train on, and which to watch.
        arm: what it is.
        objective: what image and text encoder learn from; its parameters are trained, too.
        schedule: how long and how fast.
        stage: the arm's mixture and metric loss; None for an arm without.
        folder: where the checkpoint and the TensorBoard log go.
        tensorboard: whether to write a TensorBoard log.
    """

    def __init__(
        self,
        model: ClipModel,
        data: Data,
        split: Split,
        arm: Arm,
        objective: Objective,
        schedule: Schedule,
        stage: Stage | None,
        folder: Path,
        *,
        tensorboard: bool = False,
    ) -> None:
        self.model, self.data, self.split, self.arm, self.schedule = model, data, split, arm, schedule
        self.objective, self.stage = objective, stage
        self.folder = folder
        self.labelled = labelled_rows(split.train, arm.labelled, schedule.seed)
        self.texts = data.texts if arm.labelled == 1 else data.texts.of(self.labelled)
        self.known = rarest_findings(data.labels, torch.from_numpy(split.train) if arm.true_labels else self.labelled)
        self.captioned = torch.from_numpy(split.train)[(self.texts.ids[split.train] >= 0).all(1)]
        self.label_weights = LabelWeights(data.labels[split.train].astype(np.uint8)) if arm.label_weights else None
        groups: list[dict[str, Any]] = [
            {"params": list(model.parameters())},
            {"params": list(objective.parameters()), "lr": max(schedule.learning_rate, HEAD_RATE)},
        ]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=schedule.learning_rate,
            weight_decay=schedule.weight_decay,
        )
        self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizer, factor=0.1, patience=schedule.patience
        )
        # Of its own, so that what an arm's mixture draws leaves the images of all arms the same.
        self.augmentation = torch.Generator().manual_seed(schedule.seed)
        self.epoch = self.step = 0
        self.history: list[dict[str, float]] = []
        self.sums: dict[str, float] = {}
        self.log = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.log = SummaryWriter(str(folder))

    def run(self, title: str) -> None:
        """Train to the end, from the checkpoint if there is one: killed and run again, it ends the same."""
        self._resume()
        if self.stage is not None and self.epoch == self.step == 0:
            started = time.monotonic()
            self.stage.fit(*self._embeddings())
            self.sums["seconds"] = time.monotonic() - started
        while self.epoch < self.schedule.epochs:
            self._train_epoch(f"{title}, epoch {self.epoch + 1}/{self.schedule.epochs}")
            self._finish_epoch()
        self.model.eval()
        self.objective.eval()

    def _train_epoch(self, title: str) -> None:
        self.model.train()
        self.objective.train()
        batches = self._batches()
        started = saved = time.monotonic()
        with progress_bar(
            batches, desc=title, initial=self.step, total=len(batches), unit="step", leave=False
        ) as progress:
            for rows in batches[self.step :]:
                losses = self._step(rows)
                self.step += 1
                for name, value in losses.items():
                    self.sums[name] = self.sums.get(name, 0.0) + value
                means = {name: f"{total / self.step:.3f}" for name, total in self.sums.items()}
                progress.set_postfix(means, refresh=False)
                progress.update()
                if time.monotonic() - saved > CHECKPOINT_SECONDS:
                    self.sums["seconds"] = self.sums.get("seconds", 0.0) + time.monotonic() - started
                    self._save()
                    started = saved = time.monotonic()
        self.sums["seconds"] = self.sums.get("seconds", 0.0) + time.monotonic() - started

    def _step(self, rows: Tensor) -> dict[str, float]:
        """One batch: forward, backward, and every `accumulate` batches a step of the optimizer."""
        objective, metric = self.losses(rows)
        total = objective + self.arm.metric_weight * metric
        (total / self.schedule.accumulate).backward()
        if (self.step + 1) % self.schedule.accumulate == 0 or self.step + 1 == len(self._batches()):
            self.optimizer.step()
            self.optimizer.zero_grad()
        return {"objective": float(objective.detach()), "metric": float(metric.detach())}

    def losses(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of the objective, weighted as the arm says, and the metric loss of a batch."""
        batch = self._batch(rows)
        with self._mixed_precision():
            outcome = self.objective(self.model, batch)
        terms, metric = outcome.terms, outcome.terms.new_zeros(())
        if self.label_weights is not None:
            terms = terms * self.label_weights(batch.labels.cpu()).to(terms)
        if self.stage is not None:
            weights, metric = self.stage(outcome.images, outcome.texts, self.known[rows].to(batch.device))
            terms = terms * weights
        return terms.mean(), metric

    def _batch(self, rows: Tensor) -> Batch:
        """A batch of training, its images augmented where the schedule says so."""
        pixels, others = self._pixels(rows), None
        if self.schedule.augment:
            pixels = augment(pixels[:, :1], self.augmentation)  # grey: one channel says it all
        if self.objective.draws_others:
            drawn = torch.randint(len(self.captioned), (len(rows),), generator=self.augmentation)
            elsewhere = self.captioned[drawn]
            others = captions_of(self.texts, elsewhere, self.epoch, pixels.device), self._labels(elsewhere)
        captions = captions_of(self.texts, rows, self.epoch, pixels.device)
        labelled = torch.isin(rows, self.labelled).to(pixels.device)
        return Batch(pixels, captions, self._labels(rows), labelled, self.augmentation, others)

    def _mixed_precision(self) -> torch.autocast:
        device = self.model.device.type
        return torch.autocast(device, torch.bfloat16, enabled=device == "cuda")

    @torch.no_grad()
    def _embeddings(self) -> tuple[Tensor, Tensor]:
        """Image and text embeddings (n, d) of the training part."""
        self.model.eval()
        rows, texts = torch.from_numpy(self.split.train), self.texts
        parts = rows.split(256)
        images = torch.cat([self.model.encode_image(self._pixels(part)) for part in parts])
        return images, torch.cat([captions_of(texts, part, 0, images.device).embeddings(self.model) for part in parts])

    @torch.inference_mode()
    def validation_loss(self) -> float:
        """The objective on the validation part without weights, in batches and with randomness that never change."""
        self.model.eval()
        self.objective.eval()
        total, generator = 0.0, torch.Generator().manual_seed(0)
        rows = torch.from_numpy(self.split.validation)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        for part in rows.split(self.schedule.batch_size):
            pixels = self._pixels(part)
            captions = captions_of(self.data.texts, part, 0, pixels.device)
            known = torch.ones(len(part), dtype=torch.bool, device=pixels.device)
            batch = Batch(pixels, captions, self._labels(part), known, generator)
            total += float(self.objective(self.model, batch).terms.mean()) * len(part)
        return total / len(rows)

    def _finish_epoch(self) -> None:
        """Look at the validation part, and note how the epoch went."""
        steps = len(self._batches())
        entry = {
            "epoch": self.epoch + 1.0,
            "seconds": self.sums["seconds"],
            "objective": self.sums["objective"] / steps,
            "metric": self.sums["metric"] / steps,
            "validation": self.validation_loss(),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            **(self.stage.statistics if self.stage is not None else {}),
        }
        self.scheduler.step(entry["validation"])
        self.history.append(entry)
        if self.log is not None:
            for name, value in entry.items():
                self.log.add_scalar(name, value, self.epoch + 1)
            self.log.flush()
        self.epoch, self.step, self.sums = self.epoch + 1, 0, {}
        self._save()

    def _batches(self) -> list[Tensor]:
        """The epoch's batches: an order that depends on the seed and the epoch alone, the same for every arm.

        Where few images are labelled, as many of them stand before the others of each batch.
        """
        generator = torch.Generator().manual_seed(self.schedule.seed * 100_003 + self.epoch)
        train, size = torch.from_numpy(self.split.train), self.schedule.batch_size
        batches = train[torch.randperm(len(train), generator=generator)].split(size)
        if self.arm.labelled == 1:
            return list(batches)
        rounds = -(-len(batches) * size // len(self.labelled))
        few = [self.labelled[torch.randperm(len(self.labelled), generator=generator)] for _ in range(rounds)]
        return [torch.cat(pair) for pair in zip(torch.cat(few).split(size), batches)]

    def _pixels(self, rows: Tensor) -> Tensor:
        return normalize(torch.from_numpy(self.data.store[rows.numpy()]).to(self.model.device))

    def _labels(self, rows: Tensor) -> Tensor:
        return torch.from_numpy(self.data.labels[rows.numpy()]).to(self.model.device)

    def clusters(self, images: Tensor, texts: Tensor) -> npt.NDArray[np.int64]:
        """The component of each row of image and text embeddings (n, d); -1 for an arm without a mixture."""
        if self.stage is None:
            return np.full(len(images), -1)
        return self.stage.predict(images.to(self.model.device), texts.to(self.model.device))

    def discard_checkpoint(self) -> None:
        """Free the disk once the outcome is kept elsewhere."""
        self._checkpoint.unlink(missing_ok=True)

    def _parameters(self) -> list[nn.Parameter]:
        return [*self.model.parameters(), *self.objective.parameters()]

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "objective": self.objective.state_dict(),
            "stage": None if self.stage is None else self.stage.state_dict(),
            "gradients": [parameter.grad for parameter in self._parameters()],
            "random": (torch.get_rng_state(), self.augmentation.get_state()),
            "cuda": torch.cuda.get_rng_state(device) if (device := self.model.device).type == "cuda" else None,
            "progress": (self.epoch, self.step, self.sums, self.history),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self._checkpoint.with_suffix(".part")
        torch.save(state, partial)
        os.replace(partial, self._checkpoint)

    def _resume(self) -> None:
        torch.manual_seed(self.schedule.seed)
        if not self._checkpoint.exists():
            return
        state: dict[str, Any] = torch.load(self._checkpoint, map_location=self.model.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.objective.load_state_dict(state["objective"])
        if self.stage is not None:
            self.stage.load_state_dict(state["stage"])
        for parameter, gradient in zip(self._parameters(), state["gradients"]):
            parameter.grad = gradient
        torch.set_rng_state(state["random"][0].cpu())
        self.augmentation.set_state(state["random"][1].cpu())
        if state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"].cpu(), self.model.device)
        self.epoch, self.step, self.sums, self.history = state["progress"]


def labelled_rows(train: npt.NDArray[np.int64], share: float, seed: int) -> Tensor:
    """The images (n,) whose labels are known: a share of the training part, the same for every arm."""
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    return torch.from_numpy(train)[order[: max(1, round(share * len(train)))]]


def rarest_findings(labels: npt.NDArray[np.bool_], rows: Tensor) -> Tensor:
    """Of each of N images the finding (N,) that is rarest among `rows`; -1 for other images, and for those without."""
    present = torch.from_numpy(labels)[rows]
    counts = present.sum(0)
    rarest = torch.where(present, counts, len(rows) + 1).argmin(1)
    known = torch.full((len(labels),), -1)
    known[rows] = torch.where(present.any(1), rarest, -1)
    return known


def step_cost(trainer: Trainer) -> dict[str, float]:
    """What a step of training costs: seconds, FLOPs, bytes at the peak.

    The seconds are the mean over the training, the first fit of the mixture included. FLOPs are counted by
    `torch.utils.flop_counter`, forward and backward. The bytes are those allocated during the step beyond what was
    there before it, on the GPU where there is one, else by the profiler on the CPU.
    """
    batches = trainer._batches()
    rows = batches[0]
    seconds = sum(entry["seconds"] for entry in trainer.history)

    def step() -> None:
        objective, metric = trainer.losses(rows)
        (objective + trainer.arm.metric_weight * metric).backward()
        trainer.optimizer.zero_grad()

    with FlopCounterMode(display=False) as counter:
        step()
    if trainer.model.device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        peak = torch.cuda.max_memory_allocated() - before
    else:
        with without_noise(), torch.profiler.profile(profile_memory=True) as profile:
            step()
        peak = max(running_total(profile), default=0)
    return {
        "seconds_per_step": seconds / max(1, len(batches) * len(trainer.history)),
        "flops_per_step": float(counter.get_total_flops()),
        "peak_bytes": float(peak),
    }


@contextmanager
def without_noise() -> Iterator[None]:
    """A block in which what is not Python, such as the profiler, cannot write to the console."""
    console, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(console, 2)
        os.close(console)
        os.close(nowhere)


def running_total(profile: torch.profiler.profile) -> Iterator[int]:
    """Bytes allocated so far, at every allocation that the profiler saw."""
    total = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            total += event.nbytes()  # type: ignore[union-attr]
            yield total
