"""Radiology reports for simulated studies: the impression that a reader would dictate, in varied words.

As in real reports not every finding is mentioned, some absent ones are ruled out, and some sentences are about the
technique or about nothing in particular. Captions of this kind are what a CheXzero-like starting point learns from.
"""

from __future__ import annotations

import re

import numpy as np

from cxr.simulation.anatomy import SIDE_NAMES
from cxr.simulation.findings import SIDEDNESS, Case
from cxr.simulation.hardware import choose_devices
from cxr.simulation.prevalence import LABELS

# Ways to name a finding. {s} becomes its severity and {side} its side, with a trailing blank.
WORDING: dict[str, tuple[str, ...]] = {
    "Adenopathy": ("{side}hilar adenopathy", "enlarged {side}hilar lymph nodes", "mediastinal lymphadenopathy"),
    "Atelectasis": (
        "{s}{side}basilar atelectasis",
        "{side}plate-like atelectasis",
        "{s}{side}subsegmental atelectasis",
    ),
    "Azygos Lobe": ("azygos lobe", "incidental azygos fissure", "azygos lobe, a normal variant"),
    "Calcification of the Aorta": ("calcification of the aorta", "calcified aortic arch", "aortic knob calcification"),
    "Cardiomegaly": ("{s}cardiomegaly", "{s}enlargement of the cardiac silhouette", "{s}enlarged heart"),
    "Clavicle Fracture": (
        "{side}clavicle fracture",
        "displaced fracture of the {side}clavicle",
        "{side}clavicular fracture",
    ),
    "Consolidation": ("{s}{side}consolidation", "dense {side}airspace consolidation", "{side}lung consolidation"),
    "Edema": ("{s}pulmonary edema", "{s}interstitial edema", "{s}vascular congestion and edema"),
    "Emphysema": ("{s}emphysema", "hyperinflated lungs with emphysema", "emphysematous changes"),
    "Enlarged Cardiomediastinum": (
        "enlarged cardiomediastinum",
        "widening of the mediastinum",
        "{s}widened cardiomediastinal contour",
    ),
    "Fibrosis": ("{s}pulmonary fibrosis", "reticular opacities of fibrosis", "{s}fibrotic changes at the bases"),
    "Fissure": ("fluid in the fissure", "thickened minor fissure", "{s}fissural thickening"),
    "Fracture": ("{side}shoulder fracture", "{side}proximal humeral fracture", "{side}sided fracture"),
    "Granuloma": ("calcified {side}lung granuloma", "{side}granuloma", "calcified granulomas in the {side}lung"),
    "Hernia": ("{s}hiatal hernia", "retrocardiac hiatal hernia", "{s}hernia with an air-fluid level"),
    "Hydropneumothorax": ("{s}{side}hydropneumothorax", "{side}air-fluid level of a hydropneumothorax"),
    "Infarction": ("{side}wedge-shaped opacity, infarction", "{side}pulmonary infarction", "peripheral {side}infarct"),
    "Infiltration": ("{s}{side}infiltrates", "patchy {side}infiltration", "{side}lung infiltrate"),
    "Kyphosis": ("{s}kyphosis", "kyphosis of the thoracic spine", "kyphotic patient"),
    "Lobar Atelectasis": ("{side}lobar atelectasis", "{side}lobar collapse", "collapse of a {side}lobe"),
    "Lung Lesion": ("{side}lung lesion", "cavitary {side}lung lesion", "spiculated {side}lesion"),
    "Lung Opacity": ("{s}{side}lung opacity", "hazy {side}opacity", "{s}{side}opacification"),
    "Mass": ("{side}lung mass", "large {side}mass", "{side}mass, concerning for malignancy"),
    "Nodule": ("{side}lung nodule", "{side}pulmonary nodule", "nodular opacity in the {side}lung"),
    "Pleural Effusion": (
        "{s}{side}pleural effusion",
        "{side}effusion",
        "blunting of the {side}costophrenic angle, effusion",
    ),
    "Pleural Other": ("{side}calcified pleural plaques", "{side}pleural plaques", "{side}pleural calcification"),
    "Pleural Thickening": ("{s}{side}pleural thickening", "{side}apical pleural thickening", "thickened {side}pleura"),
    "Pneumomediastinum": ("{s}pneumomediastinum", "mediastinal air", "air along the mediastinum, pneumomediastinum"),
    "Pneumonia": ("{side}pneumonia", "{side}opacity concerning for pneumonia", "{s}{side}multifocal pneumonia"),
    "Pneumoperitoneum": ("pneumoperitoneum", "free air under the diaphragm", "free intraperitoneal air"),
    "Pneumothorax": (
        "{s}{side}pneumothorax",
        "{side}apical pneumothorax",
        "{s}{side}pneumothorax with a visible pleural line",
    ),
    "Pulmonary Embolism": ("{side}oligemia, suspicious for pulmonary embolism", "{side}pulmonary embolism"),
    "Pulmonary Hypertension": (
        "pulmonary hypertension",
        "enlarged pulmonary arteries",
        "{s}pulmonary arterial hypertension",
    ),
    "Rib Fracture": ("{side}rib fracture", "{side}rib fractures", "displaced {side}sided rib fractures"),
    "Round(ed) Atelectasis": ("{side}rounded atelectasis", "{side}round atelectasis with a comet tail"),
    "Subcutaneous Emphysema": ("{s}{side}subcutaneous emphysema", "{side}chest wall subcutaneous air"),
    "Tortuous Aorta": ("tortuous aorta", "{s}tortuosity of the aorta", "unfolded, tortuous thoracic aorta"),
    "Tuberculosis": (
        "{side}upper lobe tuberculosis",
        "{side}cavitary opacities, tuberculosis",
        "findings of tuberculosis",
    ),
}
FRAMES = (
    "{}.",
    "there is {}.",
    "{} is present.",
    "findings consistent with {}.",
    "{} again noted.",
    "new {}.",
    "stable {}.",
)
DENIALS = ("no {}.", "no evidence of {}.", "there is no {}.", "negative for {}.", "without {}.")
NORMAL = (
    "no acute cardiopulmonary process.",
    "normal chest radiograph.",
    "the lungs are clear.",
    "clear lungs and normal heart size.",
    "no acute intrathoracic abnormality.",
)
RULED_OUT = ("pneumothorax", "pleural effusion", "pneumonia", "consolidation", "edema", "fracture", "pneumoperitoneum")
DEVICE_FRAMES = ("{} in place.", "{} in standard position.", "interval placement of {}.", "unchanged {}.")
NOISE = (
    "comparison is made to the prior study.",
    "low lung volumes.",
    "the patient is rotated.",
    "single portable view of the chest.",
    "clinical correlation is recommended.",
    "no prior studies for comparison.",
    "degenerative changes of the spine.",
    "findings were discussed with the referring team.",
)
# How often a finding is mentioned, one that matters is ruled out, another absent one is denied, something else is said.
MENTIONED, RULED_OUT_RATE, DENIED_RATE, NOISE_RATE = 0.85, 0.2, 0.04, 0.3
LONGEST_EXCERPT = 3  # sentences


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def describe(case: Case, rng: np.random.Generator) -> str:
    """Words for one finding, such as "small left pleural effusion"."""
    words = _pick(WORDING[case.name], rng)
    severity = ("mild ", "moderate ", "severe ")[min(2, int(3 * case.severity))] if rng.random() < 0.6 else ""
    side = ""
    if case.name in SIDEDNESS and rng.random() < 0.8:
        side = SIDE_NAMES.get(case.side, "bilateral") + " "
    return " ".join(words.format(s=severity, side=side).split())


def write_report(cases: list[Case], rng: np.random.Generator) -> str:
    """The impression of a study with these findings."""

    def fill(frames: tuple[str, ...], text: str) -> str:
        return _pick(frames, rng).format(text)

    names = {case.name for case in cases}
    sentences = [_pick(NORMAL, rng)] if "Normal" in names else []
    for case in cases:
        if case.name == "Support Devices":
            devices = choose_devices(np.random.default_rng([case.seed, 1]))
            sentences += [fill(DEVICE_FRAMES, name) for name in devices if rng.random() < MENTIONED]
        elif case.name != "Normal" and rng.random() < MENTIONED:
            sentences.append(fill(FRAMES, describe(case, rng)))
    for name in (label.lower() for label in LABELS):
        rate = RULED_OUT_RATE if name in RULED_OUT else DENIED_RATE
        # "Hydropneumothorax" forbids "no pneumothorax", and the other way round.
        related = any(name in there.lower() or there.lower() in name for there in names)
        if name != "normal" and not related and rng.random() < rate:
            sentences.append(fill(DENIALS, name))
    if rng.random() < NOISE_RATE:
        sentences.append(_pick(NOISE, rng))
    order = rng.permutation(len(sentences))
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in (sentences[i] for i in order))


def excerpts(report: str, n_excerpts: int, rng: np.random.Generator) -> list[str]:
    """One to three sentences of a report drawn at random, for one epoch of pretraining each.

    Single sentences as in ConVIRT (Zhang et al. 2022): a text encoder that only reads whole reports finds the two words
    of a prompt far from all it knows, and whole findings then come out with the wrong sign.
    """
    sentences = re.split(r"(?<=[.!?])\s+", report.strip())
    lengths = rng.integers(1, LONGEST_EXCERPT + 1, size=n_excerpts)
    return [" ".join(rng.permutation(sentences)[:length]) for length in lengths]


def in_turn(caption: str | None, report: str | None, n_epochs: int, rng: np.random.Generator) -> list[str | None]:
    """For each epoch the caption or an excerpt of the report, one as likely as the other; or the one that there is.

    Captions of findings that are present never say "no". A model that reads nothing else forgets what the negative
    prompt means, and whole findings then come out with the wrong sign.
    """
    if report is None:
        return [caption] * n_epochs
    use_caption = rng.random(n_epochs) < 0.5
    parts = excerpts(report, n_epochs, rng)
    return [caption if chosen and caption is not None else part for chosen, part in zip(use_caption, parts)]
