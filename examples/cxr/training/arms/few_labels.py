"""Arms that know the labels of few images, and see the others alone."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from cxr.training.arm import Arm
from cxr.training.cluster_stage import ClusterStage
from cxr.training.stage import Stage
from tmixture import StudentTMixture
from tmixture.losses import ClusterLoss, CoMembershipLoss
from tmixture.losses.memory import EmbeddingMemory

# Each mean is held near its labelled images as by so many rows.
ANCHOR_ROWS = 100
# What the nearest centroid is found among, as many as a mixture is fitted to.
RECENT_ROWS = 1024


class KnownLabelStage(ClusterStage):
    """A contrast by co-membership: images attract each other as far as the mixture puts them into one class.

    A component for each finding, of which images that are labelled keep the rarest that they have.
    """

    def metric_loss(self, width: int, n_components: int, dof: float, seed: int) -> ClusterLoss:
        """The contrast on the clusters of a mixture with one scale matrix."""
        mixture = StudentTMixture(
            n_components, width, dof=dof, covariance_type="tied", anchor_rows=ANCHOR_ROWS, generator=seed
        )
        return ClusterLoss(mixture, CoMembershipLoss(), shuffle=self.arm.shuffle_labels)

    def forward(self, images: Tensor, texts: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Ones (B,), and the contrast."""
        return torch.ones(len(images), device=images.device), self.metric(images, known)

    def fit(self, images: Tensor, texts: Tensor) -> None:
        """Nothing yet: the mixture is fitted to the first rows that come with their labels."""


class CentroidStage(Stage):
    """Control: the same contrast by the nearest mean of the labelled images, in place of a mixture.

    Args:
        arm: the arm.
        embedding_size: d.
        n_components: number of findings.
        dof: of no use here.
        seed: of no use here.
    """

    def __init__(self, arm: Arm, embedding_size: int, *, n_components: int, dof: float, seed: int) -> None:
        super().__init__()
        self.n_classes, self.loss = n_components, CoMembershipLoss()
        self.memory = EmbeddingMemory(RECENT_ROWS, embedding_size)

    def forward(self, images: Tensor, texts: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Ones (B,), and the contrast."""
        images = normalize(images.float(), dim=1)
        self.memory.push(images.detach(), None, known)
        p = self.memberships(images.detach(), known)
        terms = self.loss.soft_terms(images, p, images, p, apart=False)
        return torch.ones(len(images), device=images.device), self.loss.reducer(terms, images, known)

    def memberships(self, images: Tensor, known: Tensor) -> Tensor:
        """Of each row (B, d) in each class (B, C): its own, or by its distances from the means of the classes."""
        past = self.memory.content
        assert past is not None
        own = one_hot(known.clamp(min=0), self.n_classes).to(images)
        classes = past.known[past.known >= 0].unique()
        if len(classes) == 0:
            return own
        means = torch.stack([past.embeddings[past.known == label].mean(0) for label in classes])
        spread = torch.cdist(past.embeddings, means).square().amin(1).mean() / images.shape[1]
        nearest = torch.zeros_like(own)
        nearest[:, classes] = (-torch.cdist(images, means).square() / (2 * spread)).softmax(1)
        return torch.where((known >= 0)[:, None], own, nearest)


def arms(percent: int) -> dict[str, Arm]:
    """The base, the arm and its controls, with the labels of so many percent of the training images."""
    base = f"few-{percent}"
    title = f"+ {percent} % of the meta labels"
    few = Arm(title, labelled=percent / 100)
    known = replace(few, metric_weight=1.0, features="image", stage=KnownLabelStage, compared_with=(base,))
    return {
        base: few,
        f"{base}-clusters": replace(
            known, title=f"{title}, known clusters", compared_with=(base, f"{base}-centroid", f"{base}-shuffled")
        ),
        f"{base}-centroid": replace(known, title=f"{title}, control: nearest centroid", stage=CentroidStage),
        f"{base}-shuffled": replace(known, title=f"{title}, control: clusters shuffled", shuffle_labels=True),
        f"{base}-true": replace(known, title=f"{title}, control: all true labels", true_labels=True),
    }


ARMS = {**arms(1), **arms(5), **arms(20)}
