"""What a mixture, and whoever knows better, says of the classes of rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tmixture import StudentTMixture
from tmixture.losses.comembership import CoMembershipLoss


@dataclass(frozen=True)
class Assignment:
    """The labels of rows.

    A component's label is its class, or, if it has none, its number after that of all classes. A known label replaces
    what the mixture says.

    Attributes:
        labels: (n,).
        confidence: (n,), probability of that label; 1 where it is known.
        log_joint: (n, K), of the components.
        known: (n,), −1 where unknown.
        names: (K,), the label of each component.
    """

    labels: Tensor
    confidence: Tensor
    log_joint: Tensor
    known: Tensor
    names: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, mixture: StudentTMixture, features: Tensor, known: Tensor | None) -> Assignment:
        """Of rows (n, d) as the mixture takes them."""
        classes = mixture.classes
        names = torch.where(
            classes < 0, mixture.n_components + torch.arange(len(classes), device=classes.device), classes
        )
        log_joint = mixture.log_joint(features)
        if known is None:
            known = torch.full_like(log_joint[:, 0], -1, dtype=torch.long)
        confidence, labels = _by_name(log_joint.softmax(1), names).max(1)
        is_known = known >= 0
        return cls(
            torch.where(is_known, known, labels), torch.where(is_known, 1.0, confidence), log_joint, known, names
        )

    @classmethod
    def of_labels(cls, labels: Tensor, other: Assignment) -> Assignment:
        """Of rows of which only the labels (n,) are given, beside others that are assigned."""
        certain = torch.ones_like(labels, dtype=other.confidence.dtype)
        return cls(labels, certain, other.log_joint.new_zeros(len(labels), len(other.names)), labels, other.names)

    def followed_by(self, other: Assignment) -> Assignment:
        """These rows and then those."""
        return Assignment(
            labels=torch.cat([self.labels, other.labels]),
            confidence=torch.cat([self.confidence, other.confidence]),
            log_joint=torch.cat([self.log_joint, other.log_joint]),
            known=torch.cat([self.known, other.known]),
            names=self.names,
        )

    def copy(self) -> Assignment:
        """The same for other rows: where labels are one tensor, pytorch-metric-learning takes rows for the same."""
        return Assignment(self.labels.clone(), self.confidence, self.log_joint, self.known, self.names)

    def shuffled(self) -> Assignment:
        """The same for rows in random order."""
        order = torch.randperm(len(self.labels), device=self.labels.device)
        return Assignment(
            self.labels[order], self.confidence[order], self.log_joint[order], self.known[order], self.names
        )

    def memberships(self, loss: CoMembershipLoss) -> Tensor:
        """(n, C): the posterior of the labels as the loss wants it, one-hot where known."""
        soft = _by_name(loss.memberships(self.log_joint), self.names)
        one_hot = self.known[:, None] == torch.arange(soft.shape[1], device=soft.device)
        return torch.where((self.known >= 0)[:, None], one_hot.to(soft), soft)


def _by_name(posterior: Tensor, names: Tensor) -> Tensor:
    """Sums of the columns (n, K) of one name each: (n, C)."""
    return posterior.new_zeros(len(posterior), 2 * len(names)).index_add_(1, names, posterior)
