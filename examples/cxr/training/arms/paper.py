"""The paper's arms: its method table, variants and controls, its ablation."""

from __future__ import annotations

from dataclasses import replace

from cxr.training.arm import Arm

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
    "text-weights": replace(_CXR_CML, title="Weights from clusters of texts", metric_weight=0.0, features="text"),
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
