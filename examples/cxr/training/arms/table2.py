"""The systems that the paper compares with in its Table 2 and those of its line, with and without clusters.

The learning rates are the best of three on another cohort than the one reported: docs/results/table2.md.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from cxr.data.views import PHOTOGRAPHS
from cxr.training.arm import Arm
from cxr.training.arms.paper import MAIN
from cxr.training.objectives.convirt import ConVirt
from cxr.training.objectives.gloria import Gloria
from cxr.training.objectives.medclip import MedClip
from cxr.training.objectives.medklip import MedKlip
from cxr.training.objectives.slip import Slip

TABLE2: dict[str, Arm] = {
    "medclip": Arm("MedCLIP", objective=MedClip, compared_with=("cxr-cml",)),
    "medklip": Arm("MedKLIP", objective=MedKlip, compared_with=("cxr-cml",)),
    "slip": Arm("SLIP", objective=Slip, compared_with=("cxr-cml",)),
    "convirt": Arm("ConVIRT", objective=ConVirt, compared_with=("cxr-cml",)),
    "gloria": Arm("GLoRIA", objective=Gloria, compared_with=("cxr-cml",)),
}
"""All read the same captions, from the same start, in the same order."""

WITH_CLUSTERS: dict[str, Arm] = {
    f"{name}-cxr-cml": replace(
        MAIN["cxr-cml"], title=f"{arm.title} and CXR-CML", objective=arm.objective, compared_with=(name,)
    )
    for name, arm in TABLE2.items()
}
"""The cluster stage of CXR-CML beside each of them."""

OPTIONS: dict[str, Arm] = {
    "slip-photographs": Arm("SLIP, distorted as photographs", objective=partial(Slip, distortion=PHOTOGRAPHS)),
    "medclip-decoupled": Arm("MedCLIP, decoupled", objective=partial(MedClip, decoupled=True)),
    "convirt-sentences": Arm("ConVIRT, sentences of reports", objective=ConVirt, sentences=True),
}
"""What the originals do that the rows above leave out, so as to be compared in all else."""

ARMS: dict[str, Arm] = {**TABLE2, **WITH_CLUSTERS, **OPTIONS}
