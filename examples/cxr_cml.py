"""CXR-CML end to end: zero-shot classification of long-tailed, multi-label chest X-rays with a cluster metric loss.

    python examples/cxr_cml.py                                   # a simulated cohort, minutes on a laptop
    python examples/cxr_cml.py --data-root mimic-cxr-jpg/2.1.0 --labels cxr-lt-2024/train_labeled.csv \
        --init chexzero.pt --folds 5                             # the paper's experiment

The script reads as the paper's method section: the data and its splits, the starting point, the arms that are trained
from it with the same data order, the zero-shot evaluation, the report. Its parts are the modules of `examples/cxr`.
Needs the extra `examples`.
Everything finished is kept in `--output`: run again after a kill, it goes on where it was.
"""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
import tyro

from cxr.clip import ClipModel, library_of, load_clip
from cxr.clip.zero_shot import PROMPTS
from cxr.data import READERS
from cxr.data.captions import PAPER, captions
from cxr.data.cohort import Cohort, Views, rare_findings
from cxr.data.images import ImageStore, decode_images, normalize
from cxr.data.splits import Split, holdout, k_fold
from cxr.data.texts import captions_of, tokenize, vocabulary
from cxr.reporting.contact_sheet import contact_sheet
from cxr.reporting.evaluation import evaluate
from cxr.reporting.page import result_table, write_report
from cxr.reporting.results import Result, describe, load_results
from cxr.simulation.dictation import excerpts, in_turn, sentences
from cxr.simulation.writing import simulate_cohort
from cxr.training.arms import ABLATION, ARMS, GROUPS, MAIN, VARIANTS, Arm
from cxr.training.cluster_stage import ClusterStage
from cxr.training.trainer import Data, Schedule, Trainer, step_cost
from tmixture.losses.contrastive import Duplicates


@dataclass(frozen=True)
class Config:
    """The experiment. The defaults are quick ones for the simulated cohort; with --data-root they are the paper's."""

    data_root: Path | None = None
    """Folder of MIMIC-CXR-JPG or of images laid out like it; without it a cohort is simulated."""
    labels: Path | None = None
    """Label file that belongs to the data root."""
    data_set: str = "cxr-lt"
    """What reads the two: the name of a reader in `examples/cxr/data`."""
    output: Path = Path("runs/cxr-cml")
    """Where everything goes: decoded images, checkpoints, results, report."""

    model: str = "small-conv"
    """small-conv, small, hf:NAME, open_clip:NAME, openai:NAME, the folder of a Hugging Face model, or what another
    module of `examples/cxr/clip` loads."""
    init: Path | None = None
    """Checkpoint to start from, such as CheXzero's."""
    image_size: int = 64
    """Side of the images in pixels."""
    views: Views = "AP+PA"
    """Which images take part; all-but-LL probably is the paper's choice."""
    texts: Literal["labels", "labels+reports"] = "labels"
    """What the arms read: captions from labels, or in turn those and report sentences, where reports.csv is there."""
    empty_caption: str | None = None
    """Caption of an image without findings; None leaves it without a caption loss."""
    duplicates: Duplicates = "labels"
    """What an identical or similar caption elsewhere in the batch counts as, in all arms."""

    arms: tuple[str, ...] = tuple(MAIN)
    """Names of arms; examples/cxr/training/arms/ says what each of them is. "main" are the default ones, "table2" those
    and the systems that the paper compares with."""
    ablation: bool = False
    """Add the variants, the controls and the ablations over dof, batch size and number of components."""
    epochs: int = 5
    """Passes over the training part, for every arm."""
    pretrain_epochs: int = 20
    """Epochs on report sentences that make the starting point, where reports.csv lies beside the labels."""
    batch_size: int = 32
    """Images per step."""
    accumulate: int = 1
    """Steps whose gradients are added up before the weights move."""
    learning_rate: float | None = 3e-4
    """Of AdamW, for every arm; None is the paper's 1e-6 where there are weights to start from, and 3e-4 elsewhere."""
    patience: int = 4
    """Epochs without a lower validation loss before the learning rate falls to a tenth."""
    augment: bool = True
    """Turn, shift and scale the images of training a little, in all arms."""
    n_components: int = 40
    """Components of the mixture, the paper's N."""
    dof: float = 4.0
    """Degrees of freedom of the mixture."""

    folds: int = 1
    """1 is one patient-disjoint 80:20 split, more a cross-validation."""
    seeds: int = 1
    """How many seeds; each has its own splits, initial weights and data order."""
    first_seed: int = 0
    """The first of them."""
    prompts: Literal["chexzero", "ensemble"] = "ensemble"
    """Zero-shot prompts: the mean of four wordings each of "x" and "no x", and for "normal" all findings as its
    opposite; or as in CheXzero "x" and "no x" alone, "no normal" among them."""
    rare_below: int | None = None
    """Findings with fewer positives are rare; None takes the paper's twelve, or the rarest 30 % where it knows none."""
    simulated_images: int = 4000
    """Size of the simulated cohort."""
    simulated_tail: float = 0.45
    """Exponent on the prevalences of rare findings: 1 is CXR-LT's, less lifts them."""
    cohort_seed: int = 0
    """Seed of the simulated cohort."""

    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to train."""
    tensorboard: bool = False
    """Write TensorBoard logs beside the checkpoints."""


PAPER_CONFIG = Config(
    model="open_clip:ViT-B-32-quickgelu",
    image_size=224,
    duplicates="share",
    epochs=10,
    pretrain_epochs=0,
    learning_rate=None,
    patience=2,
    augment=False,
    prompts="chexzero",
)
PRETRAINING = Arm("Pretraining on reports")
PRETRAINING_RATE = 1e-3
FINE_TUNING_RATE, SCRATCH_RATE = 1e-6, 3e-4
RARE_SHARE = 0.3  # of the findings, where none of the paper's twelve is among them: its own share


def main(config: Config) -> None:
    """Run the experiment and write the report."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = checked(config)
    cohort, store, reports = prepare(config)
    if config.texts == "labels+reports" and reports is None:
        raise SystemExit("--texts labels+reports needs reports, but no reports.csv lies beside the labels")
    for seed in range(config.first_seed, config.first_seed + config.seeds):
        for fold, split in enumerate(splits(cohort, config, seed)):
            run_fold(cohort, store, reports, split, config, seed, fold)
    report(cohort, config)


def report(cohort: Cohort, config: Config) -> None:
    """Evaluate all results in the output folder, and write the page."""
    results = load_results(config.output)
    rare, rule = rare_names(cohort, config.rare_below)
    metrics = evaluate(results, rare=rare, seed=0, cohort=cohort)
    samples = None
    if config.data_root is None:
        samples = contact_sheet(config.output / "cohort", config.output / "contact_sheet.png")
    data_set = f"{config.data_root}" if config.data_root else f"simulated cohort of {len(cohort):,} images"
    page = write_report(
        config.output,
        metrics,
        results,
        config=describe(config),
        data_set=data_set,
        rare_rule=rule,
        simulated=config.data_root is None,
        same_as_paper=config.data_root is not None and cohort.is_that_of_the_paper,
        sample_images=samples,
    )
    logging.info("report: %s", page)
    print(result_table(metrics))


def rare_names(cohort: Cohort, below: int | None) -> tuple[set[str], str]:
    """The rare findings, and in words what makes them so."""
    rule = f"fewer than {below:,} images" if below is not None else "the paper's twelve, as far as they are here"
    if below is None and not rare_findings(cohort).any():
        counts = np.sort(cohort.labels.sum(axis=0))
        below = int(counts[int(RARE_SHARE * len(counts))])
        rule = f"fewer than {below:,} images, as none of the paper's twelve is here"
    return {name for name, is_rare in zip(cohort.label_names, rare_findings(cohort, below=below)) if is_rare}, rule


def learning_rate(config: Config) -> float:
    """The one that is given, or the one for weights that were trained elsewhere or for random ones."""
    if config.learning_rate is not None:
        return config.learning_rate
    is_trained = config.init is not None or library_of(config.model)[0] in ("hf", "openai")
    return FINE_TUNING_RATE if is_trained else SCRATCH_RATE


def checked(config: Config) -> Config:
    """The configuration with all that follows from it written out; ends with a message where it cannot be run."""
    if (config.data_root is None) != (config.labels is None):
        raise SystemExit("--data-root and --labels belong together: give both, or neither for a simulated cohort")
    if config.data_set not in READERS:
        raise SystemExit(f"--data-set: {config.data_set!r} given; choose from {', '.join(READERS)}")
    named = [GROUPS.get(name, {name: None}) for name in config.arms]
    config = replace(config, arms=tuple(dict.fromkeys(name for group in named for name in group)))
    unknown = [name for name in config.arms if name not in ARMS]
    if unknown or not config.arms:
        raise SystemExit(f"--arms: {', '.join(unknown) or 'none'} given; choose from {', '.join((*GROUPS, *ARMS))}")
    for name in ("epochs", "batch_size", "accumulate", "n_components", "folds", "seeds", "simulated_images"):
        if getattr(config, name) < 1:
            raise SystemExit(f"--{name.replace('_', '-')} must be at least 1, got {getattr(config, name)}")
    if config.learning_rate is None:
        config = replace(config, learning_rate=learning_rate(config))
        logging.info("learning rate: %g, from whether there are weights to start from", config.learning_rate)
    if config.ablation:
        config = replace(config, arms=tuple(dict.fromkeys((*config.arms, *VARIANTS, *ABLATION))))
    return config


# ------------------------------------------------------------------ data


def prepare(config: Config) -> tuple[Cohort, ImageStore, list[str | None] | None]:
    """The labelled images, read or simulated, decoded once to an 8-bit memory map; and their reports, if any."""
    root, labels = config.data_root, config.labels
    if root is None or labels is None:
        root = simulate_cohort(
            config.output / "cohort",
            n_images=config.simulated_images,
            image_size=config.image_size,
            tail=config.simulated_tail,
            seed=config.cohort_seed,
        )
        labels = root / "train_labeled.csv"
    cohort = READERS[config.data_set](root, labels, views=config.views)
    store = decode_images(cohort.images, root, config.output / "images", size=config.image_size)
    cohort = cohort.subset(store.rows)
    return cohort, store, read_reports(labels.with_name("reports.csv"), cohort)


def read_reports(path: Path, cohort: Cohort) -> list[str | None] | None:
    """The impression of each image's report, None where it has none; None if there is no such file."""
    if not path.exists():
        return None
    impressions = pd.read_csv(path).set_index("dicom_id")["impression"].reindex(cohort.images["dicom_id"])
    return [text if isinstance(text, str) and text.strip() else None for text in impressions]


def splits(cohort: Cohort, config: Config, seed: int) -> list[Split]:
    """Patient-disjoint training, validation and test parts."""
    if config.folds == 1:
        return [holdout(cohort.labels, cohort.subject_ids, seed=seed)]
    return k_fold(cohort.labels, cohort.subject_ids, n_folds=config.folds, seed=seed)


# ------------------------------------------------------------------ training


def run_fold(
    cohort: Cohort,
    store: ImageStore,
    reports: list[str | None] | None,
    split: Split,
    config: Config,
    seed: int,
    fold: int,
) -> None:
    """Train and test every arm from one starting point. What is finished already is not done again."""
    waiting = [arm for arm in config.arms if not Result.path(config.output, arm, seed, fold).exists()]
    if not waiting:
        return
    start = starting_point(store, cohort, reports, split, config, seed, fold)
    data: dict[bool, Data] = {}
    for name in waiting:
        arm, model = ARMS[name], copy.deepcopy(start)
        logging.info("seed %d, fold %d: %s", seed, fold, arm.title)
        if arm.sentences not in data:
            texts = tokenize(model, training_texts(cohort, reports, config, arm, seed))
            data[arm.sentences] = Data(store, texts, cohort.labels)
        trainer = make_trainer(model, data[arm.sentences], cohort.label_names, split, arm, config, seed, fold, name)
        if arm.trained:
            trainer.run(arm.title)
        test(model, trainer, cohort, split, config, name, seed, fold).save(config.output)
        trainer.discard_checkpoint()


def training_texts(
    cohort: Cohort, reports: list[str | None] | None, config: Config, arm: Arm, seed: int
) -> list[list[str | None]]:
    """What an arm reads about each image, one text for each epoch in turn: the same for all but those for sentences."""
    if arm.sentences:
        if reports is None:
            raise SystemExit(f"--arms: “{arm.title}” needs reports, but no reports.csv lies beside the labels")
        rng = np.random.default_rng(seed)
        drawn = [sentences(report, config.epochs, rng) if report else [] for report in reports]
        return [[*texts] or [None] * config.epochs for texts in drawn]
    style = replace(PAPER, empty=config.empty_caption)
    own = captions(cohort.labels, cohort.label_names, style)
    if config.texts == "labels" or reports is None:
        return [[caption] for caption in own]
    rng = np.random.default_rng(seed)
    return [in_turn(caption, report, config.epochs, rng) for caption, report in zip(own, reports)]


def starting_point(
    store: ImageStore,
    cohort: Cohort,
    reports: list[str | None] | None,
    split: Split,
    config: Config,
    seed: int,
    fold: int,
) -> ClipModel:
    """The model that all arms start from: a checkpoint, or one pretrained on report sentences as CheXzero was."""
    model = load_clip(
        config.model, init=config.init, captions=vocabulary(), image_size=config.image_size, seed=seed
    ).to(config.device)
    check_objectives(model, cohort.label_names, config)
    if config.init is None and reports is not None and config.pretrain_epochs:
        epochs, rng = config.pretrain_epochs, np.random.default_rng(seed)
        parts = [excerpts(report, epochs, rng) if report else [None] * epochs for report in reports]
        data = Data(store, tokenize(model, parts), cohort.labels)
        pretraining = replace(config, epochs=epochs, patience=epochs, learning_rate=PRETRAINING_RATE, accumulate=1)
        names = cohort.label_names
        trainer = make_trainer(model, data, names, split, PRETRAINING, pretraining, seed, fold, "pretraining")
        trainer.run(PRETRAINING.title)
    elif config.init is None and config.model in ("small", "small-conv"):
        logging.warning("no --init and no reports to pretrain on: all arms start from random weights")
    return model


def check_objectives(model: ClipModel, label_names: Sequence[str], config: Config) -> None:
    """End with a message, before anything is trained, where a model has not what an arm's objective learns from."""
    for name in config.arms:
        try:
            ARMS[name].objective(model, label_names, duplicates=config.duplicates)
        except ValueError as error:
            raise SystemExit(f"--arms {name}: {error}") from error


def make_trainer(
    model: ClipModel,
    data: Data,
    label_names: Sequence[str],
    split: Split,
    arm: Arm,
    config: Config,
    seed: int,
    fold: int,
    name: str,
) -> Trainer:
    """The trainer of one arm, with its objective, its mixture and metric loss."""
    schedule = Schedule(
        epochs=config.epochs,
        batch_size=arm.batch_size or config.batch_size,
        learning_rate=arm.rate * learning_rate(config),
        accumulate=config.accumulate,
        patience=config.patience,
        augment=config.augment,
        seed=seed,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        objective = arm.objective(model, label_names, duplicates=config.duplicates).to(config.device)
    stage = None
    if arm.clusters or arm.released or arm.stage:
        stage = (arm.stage or ClusterStage)(
            arm,
            model.embedding_size,
            n_components=arm.n_components or (config.n_components if arm.labelled == 1 else data.labels.shape[1]),
            dof=arm.dof or config.dof,
            seed=seed,
        ).to(config.device)
    folder = config.output / "runs" / f"seed{seed}-fold{fold}" / name
    return Trainer(model, data, split, arm, objective, schedule, stage, folder, tensorboard=config.tensorboard)


# ------------------------------------------------------------------ evaluation


def test(
    model: ClipModel, trainer: Trainer, cohort: Cohort, split: Split, config: Config, name: str, seed: int, fold: int
) -> Result:
    """The test part scored as the arm's objective does it: for most of them zero-shot, as in CheXzero."""
    rows, texts, device = torch.from_numpy(split.test), trainer.data.texts, model.device
    parts = rows.split(256)
    images = (normalize(torch.from_numpy(trainer.data.store[part.numpy()])) for part in parts)
    scores = trainer.objective.scores(model, images, cohort.label_names, PROMPTS[config.prompts])
    with torch.inference_mode():
        own_texts = torch.cat([captions_of(texts, part, 0, device).embeddings(model) for part in parts])
    return Result(
        arm=name,
        seed=seed,
        fold=fold,
        label_names=list(cohort.label_names),
        rows=split.test,
        patients=cohort.subject_ids[split.test],
        labels=cohort.labels[split.test],
        probabilities=scores.probabilities,
        without_axis=scores.without_axis,
        embeddings=scores.embeddings,
        clusters=trainer.clusters(torch.from_numpy(scores.embeddings), own_texts),
        train_counts=cohort.labels[split.train].sum(axis=0),
        history=trainer.history,
        cost=step_cost(trainer) if trainer.arm.trained else {},
    )


if __name__ == "__main__":
    on_real_data = any(argument.startswith(("--data-root", "--data_root")) for argument in sys.argv)
    main(tyro.cli(Config, default=PAPER_CONFIG if on_real_data else Config(), description=__doc__))
