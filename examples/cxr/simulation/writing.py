"""Writes a simulated cohort of chest radiographs in the layout of MIMIC-CXR-JPG with labels as in CXR-LT 2024.

    root/files/p10/p10000032/s50414267/<dicom_id>.jpg      grey JPEGs, quality 95
    root/mimic-cxr-2.0.0-metadata.csv.gz                   one row per image
    root/train_labeled.csv                                 the 40 labels, one row per image
    root/reports.csv                                       dicom_id, impression
    root/cohort.json                                       the settings

Everything about a patient follows from (seed, patient), so the number of processes changes nothing.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from cxr.simulation.anatomy import posed, sample_anatomy, sample_view
from cxr.simulation.dictation import write_report
from cxr.simulation.findings import FINDINGS, Case, draw_case, render_chest
from cxr.simulation.prevalence import LABELS, LabelModel, prevalences, sample_position
from tmixture.progress import progress_bar

VERSION = 2  # of the simulation; a cohort written by another one is not reused
MEAN_STUDIES, SECOND_VIEW = 2.6, 0.3  # per patient (geometric), and the chance of each further image of a study
VIEW_NAMES = {"AP": "antero-posterior", "PA": "postero-anterior"}
MAX_STUDIES = 20
PATIENTS_PER_TASK = 16
IMAGES_PER_PROCESS = 500  # which take about as long as a process takes to start


@dataclass(frozen=True)
class Settings:
    """What determines every byte of a cohort."""

    n_images: int
    image_size: int
    tail: float
    seed: int
    version: int = VERSION

    def __post_init__(self) -> None:
        """Refuse settings that cannot be simulated."""
        if not 1 <= self.n_images <= 1_000_000:
            raise ValueError(f"n_images must be between 1 and 1,000,000, got {self.n_images}")
        if not 16 <= self.image_size <= 2048:
            raise ValueError(f"image_size must be between 16 and 2048 pixels, got {self.image_size}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        prevalences(self.tail)


def simulate_cohort(
    root: Path,
    *,
    n_images: int,
    image_size: int = 64,
    tail: float = 0.4,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Write a cohort to `root`, or return at once when it is already there.

    The cohort is written beside `root` and moved there when it is complete, so an interrupted run leaves no `root`.

    Args:
        root: a folder that does not exist, is empty, or holds the same cohort.
        n_images: number of images; the images of fewer are the first of more.
        image_size: side of the square images, in pixels.
        tail: exponent on the rare labels' prevalences, see `prevalence.prevalences`. 1 gives the real ones; at the
            default the rarest of the 40 findings is on about 47 of 6,000 images.
        seed: of everything.
        workers: number of processes; by default one per core, and fewer where there is little to draw.
        progress: show a progress bar.

    Returns:
        `root`.

    Raises:
        ValueError: for settings outside their range, or when `root` holds a cohort with other settings.
        FileExistsError: when `root` holds something else.
    """
    root = Path(root)
    settings = Settings(n_images, image_size, tail, seed)
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if _holds(root, settings):
        return root
    partial = root.with_name(f".{root.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tasks = list(_tasks(partial, settings))
    rows: list[dict[str, Any]] = []
    with progress_bar(total=n_images, desc="simulating radiographs", unit="image", disable=not progress) as bar:
        for done in _run(tasks, workers or min(os.cpu_count() or 1, 1 + n_images // IMAGES_PER_PROCESS)):
            rows += done
            bar.update(len(done))
    _write_tables(partial, rows, image_size)
    (partial / "cohort.json").write_text(json.dumps(asdict(settings), indent=2) + "\n")
    if root.exists():
        root.rmdir()  # empty, or `_holds` had refused it
    os.replace(partial, root)
    return root


def _holds(root: Path, settings: Settings) -> bool:
    """Whether the folder holds this cohort already; anything else in it is an error."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / "cohort.json").read_text())
    except (OSError, ValueError):
        raise FileExistsError(f"root must be a new folder or hold a simulated cohort; {root} holds neither") from None
    wanted = asdict(settings)
    if found == wanted:
        return True
    differing = {k: v for k, v in wanted.items() if found.get(k) != v}
    raise ValueError(
        f"root {root} holds a cohort with other settings: wanted {differing}, "
        f"found { {k: found.get(k) for k in differing} }; choose another folder or delete this one"
    )


@dataclass(frozen=True)
class _Task:
    """Some patients: (patient number, number of images in each of the studies)."""

    folder: Path
    settings: Settings
    patients: list[tuple[int, list[int]]]


def _tasks(folder: Path, settings: Settings) -> Iterator[_Task]:
    patients: list[tuple[int, list[int]]] = []
    missing, patient = settings.n_images, 0
    while missing > 0:
        studies = _study_sizes(settings.seed, patient)
        cut = np.diff(np.minimum(np.cumsum([0, *studies]), missing))  # the last patient may have fewer images
        patients.append((patient, cut.tolist()))
        missing -= int(cut.sum())
        patient += 1
    for start in range(0, len(patients), PATIENTS_PER_TASK):
        yield _Task(folder, settings, patients[start : start + PATIENTS_PER_TASK])


def _run(tasks: list[_Task], workers: int) -> Iterator[list[dict[str, Any]]]:
    if workers == 1 or len(tasks) == 1:
        yield from map(_simulate_patients, tasks)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_simulate_patients, tasks)


def _simulate_patients(task: _Task) -> list[dict[str, Any]]:
    return [row for patient, studies in task.patients for row in _simulate_patient(task, patient, studies)]


def _study_sizes(seed: int, patient: int) -> list[int]:
    """Number of images in each study of a patient."""
    rng = np.random.default_rng([seed, patient, 0])
    n_studies = min(int(rng.geometric(1 / MEAN_STUDIES)), MAX_STUDIES)
    return [int(n) for n in np.minimum(rng.geometric(1 - SECOND_VIEW, n_studies), 4)]


def _simulate_patient(task: _Task, patient: int, study_sizes: list[int]) -> Iterator[dict[str, Any]]:
    """Write the images of a patient, and yield a row of all the tables for each."""
    settings = task.settings
    rng = np.random.default_rng([settings.seed, patient, 1])
    anatomy = sample_anatomy(rng)
    labels = LabelModel(settings.tail).sample(len(study_sizes), rng)
    usual = {
        name: draw_case(name, rng) for name, finding in FINDINGS.items() if finding.chronic
    }  # what lasts looks the same in every study
    subject_id = _scattered(10_000_000, patient)
    for number, n_images in enumerate(study_sizes):
        # Seeded by its number and not drawn from the patient's generator: a cut study must not change the others.
        rng = np.random.default_rng([settings.seed, patient, 2, number])
        study_id = _scattered(50_000_000, MAX_STUDIES * patient + number)
        present = [name for name, there in zip(LABELS, labels[number]) if there]
        cases = [usual[name] if name in usual else draw_case(name, rng) for name in present]
        for image in range(n_images):
            rng = np.random.default_rng([settings.seed, patient, 3, number, image])
            position = sample_position("Support Devices" in present, rng)
            dicom_id = "-".join(rng.bytes(4).hex() for _ in range(5))
            fpath = f"files/p{subject_id // 1_000_000}/p{subject_id}/s{study_id}/{dicom_id}.jpg"
            view = sample_view(position, rng)
            seen = [_varied(case, rng) for case in cases]
            chest = render_chest(posed(anatomy, view, rng), view, seen, settings.image_size)
            path = task.folder / fpath
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(chest.film(rng)).save(path, quality=95)
            yield {
                "dicom_id": dicom_id,
                "subject_id": subject_id,
                "study_id": study_id,
                "ViewPosition": position,
                "fpath": fpath,
                "StudyDate": 21_800_101 + 10_000 * (number // 12) + 100 * (number % 12),
                "impression": write_report(cases, rng),
                "labels": labels[number].astype(int).tolist(),
            }


def _scattered(first: int, number: int) -> int:
    """An id from the ten million after `first`; different numbers below ten million give different ids."""
    return first + (number * 6_180_339 + 32) % 10_000_000


def _varied(case: Case, rng: np.random.Generator) -> Case:
    """A finding looks a little more or less severe from image to image."""
    return replace(case, severity=float(np.clip(case.severity + rng.normal(0, 0.06), 0.05, 1)))


def _write_tables(folder: Path, rows: list[dict[str, Any]], image_size: int) -> None:
    table = pd.DataFrame(rows)
    view_name = table["ViewPosition"].map(VIEW_NAMES)
    portable = table["ViewPosition"] == "AP"
    ids = table[["dicom_id", "subject_id", "study_id"]]
    metadata = ids.assign(
        PerformedProcedureStepDescription=np.where(portable, "CHEST (PORTABLE AP)", "CHEST (PA AND LAT)"),
        ViewPosition=table["ViewPosition"],
        Rows=image_size,
        Columns=image_size,
        StudyDate=table["StudyDate"],
        StudyTime=120000.0,
        ProcedureCodeSequence_CodeMeaning=np.where(portable, "CHEST (PORTABLE AP)", "CHEST (PA AND LAT)"),
        ViewCodeSequence_CodeMeaning=view_name,
        PatientOrientationCodeSequence_CodeMeaning=np.where(portable, "Recumbent", "Erect"),
    )
    # mtime=0: the bytes of a gzip file must not depend on when it was written
    gzip = {"method": "gzip", "mtime": 0}
    metadata.to_csv(folder / "mimic-cxr-2.0.0-metadata.csv.gz", index=False, compression=gzip)
    named = ids.assign(
        study_id="s" + ids["study_id"].astype(str),
        ViewPosition=table["ViewPosition"],
        ViewCodeSequence_CodeMeaning=view_name,
        fpath=table["fpath"],
    )
    labels = pd.DataFrame(np.array(table["labels"].tolist()), columns=list(LABELS))
    pd.concat([named, labels], axis=1).to_csv(folder / "train_labeled.csv", index=False)
    table[["dicom_id", "impression"]].to_csv(folder / "reports.csv", index=False)
