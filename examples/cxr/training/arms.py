"""The arms of the experiment: what each adds to the contrastive loss."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Arm:
    """One way to go on from the starting point. All arms share initial weights, data order and caption handling.

    Attributes:
        title: the row of the method table.
        trained: whether it is trained at all.
        label_weights: weigh the contrastive loss by 1/√prevalence of the rarest finding present.
        cluster_weights: weigh the contrastive loss by the mixture: outlier weight 1/u, cluster mass m^(−mass_exponent).
        mass_exponent: of the cluster mass.
        metric_weight: factor of the cluster triplet loss; 0 leaves it out.
        margin: of the triplets.
        features: what the mixture clusters: image embeddings, text embeddings, or both joined.
        dof: degrees of freedom of the mixture; None is the configuration's.
        n_components: of the mixture; None is the configuration's.
        batch_size: None is the configuration's.
        shuffle_weights: control: the weights of a batch in random order.
        shuffle_labels: control: the pseudo-labels of a batch in random order.
        released: the loss as the authors' released code computes it, in place of the cluster triplet loss.
    """

    title: str
    trained: bool = True
    label_weights: bool = False
    cluster_weights: bool = False
    mass_exponent: float = 0.5
    metric_weight: float = 0.0
    margin: float = 0.1
    features: Literal["image", "text", "joint"] = "joint"
    dof: float | None = None
    n_components: int | None = None
    batch_size: int | None = None
    shuffle_weights: bool = False
    shuffle_labels: bool = False
    released: bool = False

    @property
    def clusters(self) -> bool:
        """Whether the arm has a mixture."""
        return self.trained and (self.cluster_weights or self.metric_weight > 0) and not self.released


_CXR_CML = Arm("CXR-CML", cluster_weights=True, metric_weight=0.1)

MAIN: dict[str, Arm] = {
    "start": Arm("Starting point (zero-shot)", trained=False),
    "meta": Arm("+ meta labels"),
    "meta-frequency": Arm("+ meta labels, label-frequency weights", label_weights=True),
    "cxr-cml": _CXR_CML,
    "cxr-cml-frequency": replace(_CXR_CML, title="CXR-CML and label-frequency weights", label_weights=True),
}
"""The method table (the paper's Table 2)."""

VARIANTS: dict[str, Arm] = {
    "paper-literal": Arm("Paper-literal: image clusters, weight 1", metric_weight=1.0, margin=0.3, features="image"),
    "as-released": Arm("As released", metric_weight=1.0, released=True),
    "weights-only": replace(_CXR_CML, title="CXR-CML without triplets", metric_weight=0.0),
    "outlier-only": replace(_CXR_CML, title="Outlier weights only", metric_weight=0.0, mass_exponent=0.0),
    "triplets-only": replace(_CXR_CML, title="CXR-CML without weights", cluster_weights=False),
    "shuffled-weights": replace(_CXR_CML, title="Control: weights shuffled", shuffle_weights=True),
    "shuffled-labels": replace(_CXR_CML, title="Control: pseudo-labels shuffled", shuffle_labels=True),
}
"""What the parts are worth, and controls."""

ABLATION: dict[str, Arm] = {
    **{f"dof-{nu:g}": replace(_CXR_CML, title=f"ν = {nu:g}", dof=nu) for nu in (2.0, 6.0)},
    "dof-inf": replace(_CXR_CML, title="ν = ∞ (Gaussian)", dof=float("inf")),
    **{f"batch-{size}": replace(_CXR_CML, title=f"batch size {size}", batch_size=size) for size in (16, 64)},
    **{f"components-{K}": replace(_CXR_CML, title=f"N = {K}", n_components=K) for K in (10, 20, 80)},
}
"""The paper's Table 3, around the CXR-CML arm, and the number of components."""

ARMS: dict[str, Arm] = {**MAIN, **VARIANTS, **ABLATION}
