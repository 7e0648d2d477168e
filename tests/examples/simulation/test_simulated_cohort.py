"""The simulated cohort: its labels, its pictures, its files."""

import json
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tests.processes import FORKED

from cxr.reporting.contact_sheet import contact_sheet
from cxr.simulation.anatomy import LEFT, RIGHT, posed, sample_anatomy, sample_view
from cxr.simulation.dictation import MENTIONED, write_report
from cxr.simulation.findings import FINDINGS, draw_case, render_chest
from cxr.simulation.prevalence import (
    CAUSES,
    HEAD,
    LABELS,
    ROWS,
    LabelModel,
    prevalences,
    sample_position,
)
from cxr.simulation.writing import simulate_cohort

SHARED_COLUMNS = ["dicom_id", "subject_id", "study_id", "ViewPosition", "ViewCodeSequence_CodeMeaning", "fpath"]


def small_cohort(root: Path, **settings: object) -> Path:
    given = {"n_images": 40, "image_size": 32, "workers": 1, "progress": False, **settings}
    return simulate_cohort(root, **given)  # type: ignore[arg-type]


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_cohort(tmp_path_factory.mktemp("cohort") / "data", n_images=240)


# --- labels ----------------------------------------------------------------------------------------------------------


def test_the_forty_labels_are_alphabetical_and_every_finding_has_a_look_and_a_name():
    assert len(LABELS) == 40
    assert list(LABELS) == sorted(LABELS)
    for name, finding in FINDINGS.items():
        assert bool(finding.paint or finding.reshape) == (name != "Normal")
        assert bool(finding.wording) == (name not in ("Normal", "Support Devices"))
        assert set(finding.causes) <= set(CAUSES)


def test_tail_one_is_the_real_distribution_and_smaller_lifts_only_the_rare_end():
    assert prevalences(1.0) == pytest.approx({name: finding.count / ROWS for name, finding in FINDINGS.items()})
    real, lifted, flat = (np.array(list(prevalences(tail).values())) for tail in (1.0, 0.4, 0.0))
    assert np.array_equal(lifted[real >= HEAD], real[real >= HEAD])
    assert np.all(lifted[real < HEAD] > real[real < HEAD])
    assert np.array_equal(np.argsort(lifted), np.argsort(real))
    assert flat.min() == pytest.approx(HEAD)
    assert 6000 * lifted.min() >= 25


@pytest.mark.parametrize("tail", [-0.1, 1.1, float("nan")])
def test_a_tail_outside_its_range_is_refused(tail: float):
    with pytest.raises(ValueError, match="tail"):
        prevalences(tail)


@pytest.fixture(scope="module")
def many_patients() -> np.ndarray:
    """Labels (patients, 2 studies, 40)."""
    model, rng = LabelModel(0.4), np.random.default_rng(0)
    return np.stack([model.sample(2, rng) for _ in range(8_000)])


def test_marginals_are_the_prevalences(many_patients: np.ndarray):
    # Patients are independent: the mean over a patient's studies gives an honest standard error.
    per_patient = many_patients.mean(1)
    error = per_patient.std(0) / np.sqrt(len(per_patient))
    z = (per_patient.mean(0) - np.array(list(prevalences(0.4).values()))) / error
    assert np.abs(z).max() < 4.0
    assert np.mean(z**2) < 2.0


def test_company_of_findings(many_patients: np.ndarray):
    y = {name: many_patients[:, 0, k] for k, name in enumerate(LABELS)}
    others = [name for name in LABELS if name not in ("Normal", "Support Devices")]
    assert not any((y["Normal"] & y[name]).any() for name in others)
    assert (y["Normal"] & y["Support Devices"]).any()
    assert y["Atelectasis"][y["Lobar Atelectasis"]].all()
    for part in ("Rib Fracture", "Clavicle Fracture"):
        assert 0.85 < y["Fracture"][y[part]].mean() <= 1

    def lift(a: str, b: str) -> float:
        return float((y[a] & y[b]).mean() / (y[a].mean() * y[b].mean()))

    for a, b in [
        ("Edema", "Cardiomegaly"),
        ("Edema", "Pleural Effusion"),
        ("Subcutaneous Emphysema", "Pneumothorax"),
        ("Pneumomediastinum", "Pneumothorax"),
        ("Tuberculosis", "Infiltration"),
        ("Tuberculosis", "Nodule"),
        ("Pneumonia", "Consolidation"),
    ]:
        assert lift(a, b) > 1.4, (a, b)


def test_lasting_findings_last_longer_than_acute_ones(many_patients: np.ndarray):
    first, second = many_patients[:, 0], many_patients[:, 1]

    def again(name: str) -> float:
        k = LABELS.index(name)
        return float(second[first[:, k], k].mean() / second[:, k].mean())

    assert again("Emphysema") > 2 * again("Infiltration") > 2
    assert again("Azygos Lobe") > 50


def test_ap_views_are_the_share_of_cxr_lt_and_go_with_devices():
    rng, rate = np.random.default_rng(0), FINDINGS["Support Devices"].count / ROWS
    with_devices, without = (np.mean([sample_position(d, rng) == "AP" for _ in range(5000)]) for d in (True, False))
    assert with_devices > without + 0.2
    assert rate * with_devices + (1 - rate) * without == pytest.approx(0.6, abs=0.03)


# --- pictures --------------------------------------------------------------------------------------------------------


def picture(
    name: str | None, *, seed: int = 0, severity: float = 0.9, side: int | None = None, size: int = 64
) -> np.ndarray:
    """The same chest, view and noise with and without a finding."""
    rng = np.random.default_rng(seed)
    patient, view = sample_anatomy(rng), sample_view("PA", rng)
    view = replace(view, exposure=0.0, contrast=1.0, x=0.0, y=0.0, roll=0.0, collimation=(0.0, 0.0, 0.0, 0.0))
    cases = []
    if name:
        case = draw_case(name, np.random.default_rng([seed, 1]))
        if FINDINGS[name].sides is not None:
            case = replace(case, side=RIGHT if side is None else side)
        cases = [replace(case, severity=severity)]
    chest = render_chest(posed(patient, view, np.random.default_rng([seed, 2])), view, cases, size)
    return chest.film(np.random.default_rng([seed, 3])).astype(float)


@pytest.mark.parametrize("name", [name for name in LABELS if name != "Normal"])
def test_every_finding_changes_the_picture_visibly_and_in_a_region(name: str):
    changes = [np.abs(picture(name, seed=seed) - picture(None, seed=seed)) for seed in range(4)]
    assert np.mean([change.max() for change in changes]) > 12
    # A region, not the whole picture: most of what changes lies in less than a third of the pixels.
    for change in changes:
        strongest = np.sort(change.ravel())[::-1]
        assert strongest[: change.size // 3].sum() > 0.8 * strongest.sum()


@pytest.mark.parametrize("name", ["Pneumonia", "Pleural Effusion", "Cardiomegaly", "Pneumothorax", "Mass"])
def test_severe_findings_change_more_than_mild_ones(name: str):
    def change(severity: float) -> float:
        return float(
            np.mean([np.abs(picture(name, seed=s, severity=severity) - picture(None, seed=s)) for s in range(6)])
        )

    assert change(0.9) > 1.3 * change(0.15)


@pytest.mark.parametrize("name", ["Mass", "Pneumothorax", "Pleural Thickening", "Consolidation"])
@pytest.mark.parametrize("side", [RIGHT, LEFT])
def test_right_is_on_the_left_of_the_image(name: str, side: int):
    change = np.mean([np.abs(picture(name, seed=s, side=side) - picture(None, seed=s)) for s in range(4)], axis=0)
    of_right, of_left = change[:, :32].sum(), change[:, 32:].sum()
    assert (of_right > 2 * of_left) if side == RIGHT else (of_left > 2 * of_right)


def test_lungs_are_dark_bone_and_abdomen_bright_and_size_only_refines():
    small = np.mean([picture(None, seed=s) for s in range(8)], axis=0)
    lung, spine, belly = small[18:32, 14:22].mean(), small[40:44, 30:34].mean(), small[58:, 24:40].mean()
    assert lung + 40 < spine
    assert lung + 60 < belly
    large = np.mean([picture(None, seed=s, size=128) for s in range(8)], axis=0)
    shrunk = large.reshape(64, 2, 64, 2).mean((1, 3))
    assert np.abs(shrunk - small).mean() < 6


def test_ap_hearts_are_larger_and_lungs_smaller():
    def measure(position: str) -> tuple[float, float]:
        rng = np.random.default_rng(0)
        views = [posed(sample_anatomy(rng), sample_view(position, rng), rng) for _ in range(200)]
        return float(np.mean([a.heart for a in views])), float(np.mean([a.span() for a in views]))

    (ap_heart, ap_span), (pa_heart, pa_span) = measure("AP"), measure("PA")
    assert ap_heart > 1.08 * pa_heart
    assert ap_span < pa_span - 0.04


# --- files -----------------------------------------------------------------------------------------------------------


def test_layout_is_that_of_mimic_cxr_jpg_and_cxr_lt(cohort: Path):
    labels = pd.read_csv(cohort / "train_labeled.csv")
    metadata = pd.read_csv(cohort / "mimic-cxr-2.0.0-metadata.csv.gz")
    reports = pd.read_csv(cohort / "reports.csv", keep_default_na=False)
    assert list(labels.columns) == [*SHARED_COLUMNS, *LABELS]
    assert len(labels) == 240
    assert labels["dicom_id"].is_unique
    for other in (metadata, reports):
        assert list(other["dicom_id"]) == list(labels["dicom_id"])
    assert list(labels["study_id"]) == [f"s{study}" for study in metadata["study_id"]]
    expected = [
        f"files/p{str(p)[:2]}/p{p}/{s}/{d}.jpg" for d, p, s in labels[SHARED_COLUMNS[:3]].itertuples(index=False)
    ]
    assert list(labels["fpath"]) == expected
    assert {str(path.relative_to(cohort)) for path in cohort.rglob("*.jpg")} == set(expected)
    with Image.open(cohort / expected[0]) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "L", (32, 32))
    assert set(np.unique(labels[list(LABELS)])) == {0, 1}
    assert labels.groupby("study_id")[list(LABELS)].nunique().eq(1).all(axis=None)
    assert metadata["study_id"].between(50_000_000, 59_999_999).all()
    assert labels.groupby("study_id")["subject_id"].nunique().eq(1).all()
    assert 3 < len(labels) / labels["subject_id"].nunique() < 6


@pytest.mark.slow
def test_same_bytes_with_one_and_two_processes(tmp_path: Path):
    one = small_cohort(tmp_path / "one", n_images=80, image_size=16, workers=1)
    two = small_cohort(tmp_path / "two", n_images=80, image_size=16, workers=2)
    assert contents(one) == contents(two)
    other_seed = small_cohort(tmp_path / "other", n_images=80, image_size=16, seed=1)
    assert contents(one).keys() & contents(other_seed).keys() == {
        "cohort.json", "mimic-cxr-2.0.0-metadata.csv.gz", "reports.csv", "train_labeled.csv"
    }  # fmt: skip


def test_fewer_images_are_the_first_of_more(tmp_path: Path, cohort: Path):
    few = small_cohort(tmp_path / "few", n_images=33)
    table = pd.read_csv(few / "train_labeled.csv")
    pd.testing.assert_frame_equal(table, pd.read_csv(cohort / "train_labeled.csv").head(33))
    for fpath in table["fpath"]:
        assert (few / fpath).read_bytes() == (cohort / fpath).read_bytes()


def test_images_of_a_patient_are_alike(cohort: Path):
    table = pd.read_csv(cohort / "train_labeled.csv")
    pictures = np.stack([np.asarray(Image.open(cohort / fpath), dtype=float) for fpath in table["fpath"]])
    flat = pictures.reshape(len(pictures), -1)
    flat = (flat - flat.mean(0)) / flat.std(0)
    alike = flat @ flat.T / flat.shape[1]
    patient = table["subject_id"].to_numpy()
    same = (patient[:, None] == patient) & ~np.eye(len(table), dtype=bool)
    assert alike[same].mean() > alike[patient[:, None] != patient].mean() + 0.05


def test_a_second_call_returns_at_once_and_other_settings_are_an_error(tmp_path: Path):
    root = small_cohort(tmp_path / "cohort")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert small_cohort(root) == root
    with pytest.raises(ValueError, match="seed"):
        small_cohort(root, seed=7)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_foreign_folders_are_left_alone(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="root"):
        small_cohort(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert (small_cohort(empty) / "cohort.json").exists()


@pytest.mark.parametrize(
    ("name", "value"), [("n_images", 0), ("image_size", 8), ("tail", 2.0), ("seed", -1), ("workers", 0)]
)
def test_settings_out_of_range_name_the_argument_and_write_nothing(tmp_path: Path, name: str, value: float):
    with pytest.raises(ValueError, match=name):
        small_cohort(tmp_path / "cohort", **{name: value})
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_a_killed_run_leaves_nothing_that_is_trusted(tmp_path: Path):
    root = tmp_path / "cohort"
    settings = {"n_images": 100_000, "image_size": 16, "workers": 1, "progress": False}
    run = FORKED.Process(target=simulate_cohort, args=(root,), kwargs=settings)
    run.start()
    try:
        deadline = time.monotonic() + 60
        while not any(tmp_path.rglob("*.jpg")):
            assert time.monotonic() < deadline
            assert run.exitcode is None
            time.sleep(0.05)
    finally:
        run.kill()
        run.join()
    assert not root.exists()
    again = small_cohort(root, image_size=16)
    assert contents(again) == contents(small_cohort(tmp_path / "fresh", image_size=16))
    assert json.loads((root / "cohort.json").read_text())["n_images"] == 40
    assert {path.name for path in tmp_path.iterdir()} == {"cohort", "fresh"}


def test_reports_name_what_is_there_and_deny_only_what_is_not():
    rng = np.random.default_rng(0)
    named = 0
    for seed in range(300):
        case = draw_case("Pneumothorax", np.random.default_rng(seed))
        report = write_report([case], rng).lower()
        sentences = [sentence for sentence in report.split(".") if "pneumothorax" in sentence]
        assert not any(word in sentence for sentence in sentences for word in ("no ", "without", "negative"))
        wrong_side = "left" if case.side == RIGHT else "right"
        assert not any(wrong_side in sentence for sentence in sentences)
        named += bool(sentences)
    assert 0.75 < named / 300 < 0.95
    assert pytest.approx(named / 300, abs=0.08) == MENTIONED
    for name, denied in [("Hydropneumothorax", "pneumothorax"), ("Rib Fracture", "fracture")]:
        texts = " ".join(write_report([draw_case(name, rng)], rng).lower() for _ in range(200))
        assert not any(f"{no} {denied}." in texts for no in ("no", "no evidence of", "negative for", "without"))
    healthy = [write_report([draw_case("Normal", rng)], rng) for _ in range(50)]
    assert len(set(healthy)) > 15


def test_contact_sheet_shows_every_label(tmp_path: Path, cohort: Path):
    path = contact_sheet(cohort, tmp_path / "sheet.png", per_label=2)
    with Image.open(path) as image:
        sheet = np.asarray(image)
    counts = pd.read_csv(cohort / "train_labeled.csv")[list(LABELS)].sum()
    # Three labels a row, each with two tiles of 96 pixels under a caption of 14.
    for i, name in enumerate(LABELS):
        tile = sheet[(i // 3) * 110 + 14 : (i // 3 + 1) * 110, (i % 3) * 200 : (i % 3) * 200 + 96]
        assert (tile.std() > 5) == (counts[name] > 0), name
