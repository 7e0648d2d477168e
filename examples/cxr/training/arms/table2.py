"""The systems that the paper compares with in its Table 2 and those of its line, with and without clusters.

Factors of the learning rate are the best of three on another cohort than the reported one: docs/results/table2.md.
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
    "medclip": Arm("MedCLIP", objective=MedClip, rate=1 / 3, compared_with=("cxr-cml",)),
    "medklip": Arm("MedKLIP", objective=MedKlip, compared_with=("cxr-cml",)),
    "slip": Arm("SLIP", objective=Slip, compared_with=("cxr-cml",)),
    "convirt": Arm("ConVIRT", objective=ConVirt, rate=10 / 3, compared_with=("cxr-cml",)),
    "gloria": Arm("GLoRIA", objective=Gloria, compared_with=("cxr-cml",)),
}
"""All read the same captions, from the same start, in the same order."""

WITH_CLUSTERS: dict[str, Arm] = {
    f"{name}-cxr-cml": replace(
        MAIN["cxr-cml"], title=f"{arm.title} and CXR-CML", objective=arm.objective, rate=arm.rate, compared_with=(name,)
    )
    for name, arm in TABLE2.items()
}
"""The cluster stage of CXR-CML beside each of them."""

OPTIONS: dict[str, Arm] = {
    "slip-photographs": replace(
        TABLE2["slip"], title="SLIP, distorted as photographs", objective=partial(Slip, distortion=PHOTOGRAPHS)
    ),
    "medclip-decoupled": replace(
        TABLE2["medclip"], title="MedCLIP, decoupled", objective=partial(MedClip, decoupled=True)
    ),
    "convirt-sentences": replace(TABLE2["convirt"], title="ConVIRT, sentences of reports", sentences=True),
}
"""What the originals do that the rows above leave out, so as to be compared in all else."""

ARMS: dict[str, Arm] = {**TABLE2, **WITH_CLUSTERS, **OPTIONS}
