"""Radiology reports for simulated studies: the impression that a reader would dictate, in varied words.

As in real reports not every finding is mentioned, some absent ones are ruled out, and some sentences are about the
technique or about nothing in particular. Captions of this kind are what a CheXzero-like starting point learns from.
"""

from __future__ import annotations

import re

import numpy as np

from cxr.simulation.anatomy import SIDE_NAMES
from cxr.simulation.findings import FINDINGS, Case
from cxr.simulation.hardware import choose_devices

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
    words = _pick(FINDINGS[case.name].wording, rng)
    severity = ("mild ", "moderate ", "severe ")[min(2, int(3 * case.severity))] if rng.random() < 0.6 else ""
    side = ""
    if FINDINGS[case.name].sides is not None and rng.random() < 0.8:
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
    for name in (label.lower() for label in FINDINGS):
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
    lengths = rng.integers(1, LONGEST_EXCERPT + 1, size=n_excerpts)
    return [" ".join(rng.permutation(split(report))[:length]) for length in lengths]


def sentences(report: str, n: int, rng: np.random.Generator) -> list[str]:
    """So many sentences of a report drawn at random, as ConVIRT reads them."""
    return [str(sentence) for sentence in rng.choice(split(report), size=n)]


def split(report: str) -> list[str]:
    """The sentences of a report."""
    return re.split(r"(?<=[.!?])\s+", report.strip())


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
