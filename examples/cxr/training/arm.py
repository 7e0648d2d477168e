"""An arm of the experiment: what it learns from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from cxr.training.objective import Objective
from cxr.training.objectives.clip import Clip
from cxr.training.stage import Stage


@dataclass(frozen=True)
class Arm:
    """One way to go on from the starting point. All arms share initial weights, data order and caption handling.

    Attributes:
        title: the row of the method table.
        trained: whether it is trained at all.
        objective: makes what image and text encoder learn from, from a model, the names of the findings and
            `duplicates`: an `Objective`.
        rate: factor of the configuration's learning rate.
        sentences: read a random sentence of the report in each epoch, in place of the caption, where there are reports.
        label_weights: weigh the objective by 1/√prevalence of the rarest finding present.
        cluster_weights: weigh the objective by the mixture: outlier weight 1/u, cluster mass m^(−mass_exponent).
        mass_exponent: of the cluster mass.
        metric_weight: factor of the cluster triplet loss; 0 leaves it out.
        margin: of the triplets.
        features: what the mixture clusters: image embeddings, text embeddings, or both joined.
        dof: degrees of freedom of the mixture; None is the configuration's.
        n_components: of the mixture; None is the configuration's.
        batch_size: None is the configuration's.
        labelled: share of the training images whose labels are known. The others bring no caption; every batch holds as
            many labelled images as others then.
        true_labels: upper bound: the cluster stage is told the labels of all images.
        shuffle_weights: control: the weights of a batch in random order.
        shuffle_labels: control: the pseudo-labels of a batch in random order.
        released: the loss as the authors' released code computes it, in place of the cluster triplet loss.
        compared_with: names of arms that the report compares it with, beside "+ meta labels".
        stage: makes what is added to the objective, in place of `ClusterStage` and from the same arguments: a
            `Stage`.
    """

    title: str
    trained: bool = True
    objective: Callable[..., Objective] = Clip
    rate: float = 1.0
    sentences: bool = False
    label_weights: bool = False
    cluster_weights: bool = False
    mass_exponent: float = 0.5
    metric_weight: float = 0.0
    margin: float = 0.1
    features: Literal["image", "text", "joint"] = "joint"
    dof: float | None = None
    n_components: int | None = None
    batch_size: int | None = None
    labelled: float = 1.0
    true_labels: bool = False
    shuffle_weights: bool = False
    shuffle_labels: bool = False
    released: bool = False
    compared_with: tuple[str, ...] = ()
    stage: Callable[..., Stage] | None = None

    @property
    def clusters(self) -> bool:
        """Whether the arm has a mixture."""
        return self.trained and (self.cluster_weights or self.metric_weight > 0) and not self.released
