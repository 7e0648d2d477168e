"""The cluster loss as the released code of CXR-CML computes it, for comparison."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from tmixture import StudentTMixture
from tmixture.losses.rows import at_least_float32
from tmixture.losses.weights import inverse_log

DOF = 8.0
TEMPERATURE = 0.05
THRESHOLD = 0.5
LARGEST_LOG_DENSITY = 700.0
BASE_MARGIN = 0.3


class ReleasedClusterLoss(nn.Module):
    """The metric loss that the released code adds to CLIP's, as released; not the triplet loss of the paper.

    Each batch has a Gaussian mixture of its own, and one E-step with a t-distribution on its parameters. From the
    sharpened posteriors it derives which images belong together, and compares the mean image–text distance of those
    with that of the others in one hinge for the whole batch.

    It does not train: pairs of a cluster of two or more images fall below the threshold, so there are no positives, and
    without positives the hinge is zero, with zero gradient, as soon as the mean image–text distance exceeds
    0.6·exp(−temperature): 0.559 for CLIP's initial temperature. `ClusterTripletLoss` is what the paper describes.

    It needs scikit-learn (`pip install tmixture[sklearn]`).

    Args:
        seed: of the k-means that starts the mixture.
    """

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed

    def extra_repr(self) -> str:
        """Its seed."""
        return f"seed={self.seed}"

    def forward(self, image_embeddings: Tensor, text_embeddings: Tensor, temperature: Tensor | float = 0.07) -> Tensor:
        """The loss: a scalar.

        Args:
            image_embeddings: (B, d), B ≥ 2.
            text_embeddings: (B, d), row by row.
            temperature: distances are multiplied by its exponential.
        """
        images = normalize(at_least_float32(image_embeddings), dim=1)
        texts = normalize(at_least_float32(text_embeddings), dim=1)
        positives = self.positive_pairs(images.detach()).to(images)
        distances = torch.cdist(images, texts) * torch.as_tensor(temperature).exp()
        positive = (distances * positives).mean()
        negative = (distances * (1 - positives)).mean()
        return torch.relu(positive - negative + BASE_MARGIN * (1 + torch.exp(-positive)))

    @torch.no_grad()
    def positive_pairs(self, images: Tensor) -> Tensor:
        """Which images count as of one cluster: (B, d) → (B, B), bool."""
        memberships = self._memberships(images.double())
        affinity = _unit_sum(memberships @ memberships.T)
        affinity = _unit_sum(affinity * (affinity > THRESHOLD))
        return affinity > THRESHOLD

    def _memberships(self, images: Tensor) -> Tensor:
        from sklearn.mixture import GaussianMixture  # an optional dependency, of this class alone

        n_components = components_for_batch(len(images))
        gaussian = GaussianMixture(n_components, covariance_type="full", n_init=3, random_state=self.seed)
        gaussian.fit(images.cpu().numpy())
        student = StudentTMixture.from_parameters(
            gaussian.weights_, gaussian.means_, gaussian.covariances_, dof=DOF, device=images.device
        )
        joint = student.component_log_prob(images) + student.weights.log()
        posteriors = joint.clamp(max=LARGEST_LOG_DENSITY).softmax(1)
        sharpened = (posteriors / TEMPERATURE).softmax(1)
        return _unit_sum(sharpened * inverse_log()(sharpened.sum(0)))


def _unit_sum(rows: Tensor) -> Tensor:
    return normalize(rows, p=1, dim=1)


def components_for_batch(n_rows: int) -> int:
    """K for a batch of n rows, as in the released code of CXR-CML: 2 below 10, at most 5 below 50, at most 40."""
    if n_rows < 10:
        return min(2, n_rows)
    return min(5, n_rows // 3) if n_rows < 50 else min(40, n_rows // 4)
