"""Reads a CXR-LT label file into a `Cohort`: one row per frontal chest X-ray and its findings.

The files of the CXR-LT challenges (2023: `train.csv`, 26 labels; 2024: `train_labeled.csv`, 40 labels) name each image
of MIMIC-CXR-JPG by its `dicom_id`, some columns describe the image, and every other column is a finding: 1 for present,
0 or blank for absent.
"""

from __future__ import annotations

import logging
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

log = logging.getLogger(__name__)

Views = Literal["AP+PA", "all-but-LL"]

# Whatever else a CXR-LT or MIMIC-CXR-JPG table says about an image; every column not named here is a finding.
DESCRIPTION_COLUMNS = frozenset(
    {
        *("dicom_id", "subject_id", "study_id", "fpath", "path", "split"),
        *("ViewPosition", "ViewCodeSequence_CodeMeaning", "PatientOrientationCodeSequence_CodeMeaning"),
        *("PerformedProcedureStepDescription", "ProcedureCodeSequence_CodeMeaning"),
        *("Rows", "Columns", "StudyDate", "StudyTime"),
    }
)

# The twelve rare findings of CXR-CML: the eleven with fewer than 1,000 images among the 258,871 of CXR-LT 2024's
# `train_labeled.csv`, and Fibrosis (1,169 there), which is the twelfth in the list of the authors' released code.
RARE_FINDINGS = frozenset(
    {
        *("Fibrosis", "Pulmonary Hypertension", "Kyphosis", "Infarction", "Pneumomediastinum", "Hydropneumothorax"),
        *("Pleural Other", "Pneumoperitoneum", "Azygos Lobe", "Round(ed) Atelectasis", "Clavicle Fracture"),
        "Lobar Atelectasis",
    }
)


# CXR-LT 2024's `train_labeled.csv`.
PAPER_ROWS, PAPER_LABELS = 258_871, 40


@dataclass(frozen=True)
class Cohort:
    """Images and what was found on them.

    Attributes:
        images: one row per image, numbered from 0: `dicom_id`, `subject_id` (int), `study_id` (int), `view`, `path`.
        label_names: the findings, in the order of the file.
        labels: (n_images, n_labels) bool, whether the finding is present.
        view_counts: images of each view in the file, before the view filter; "missing" where nothing tells the view.
    """

    images: pd.DataFrame
    label_names: tuple[str, ...]
    labels: npt.NDArray[np.bool_]
    view_counts: dict[str, int]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    @property
    def subject_ids(self) -> npt.NDArray[np.int64]:
        """(n_images,) patient of each image."""
        return self.images["subject_id"].to_numpy(np.int64)

    @property
    def is_that_of_the_paper(self) -> bool:
        """Whether the file is CXR-LT 2024's `train_labeled.csv`, as far as its size and its labels tell."""
        return sum(self.view_counts.values()) == PAPER_ROWS and len(self.label_names) == PAPER_LABELS

    def subset(self, rows: npt.NDArray[np.integer]) -> Cohort:
        """The cohort of the given rows, in that order."""
        images = self.images.iloc[rows].reset_index(drop=True)
        return Cohort(images, self.label_names, self.labels[rows], self.view_counts)


def read_cohort(data_root: Path | str, labels: Path | str, *, views: Views = "AP+PA") -> Cohort:
    """Reads a CXR-LT label file and keeps the wanted views.

    Where the file does not tell an image's view, MIMIC-CXR-JPG's metadata table in `data_root` is asked.

    Args:
        data_root: folder of MIMIC-CXR-JPG, where `mimic-cxr-2.0.0-metadata.csv.gz` lies.
        labels: the CXR-LT label file, `.csv` or `.csv.gz`.
        views: "AP+PA" keeps the frontal images; "all-but-LL" drops the left laterals only, which leaves 234,791
            images of CXR-LT 2024, probably the paper's "234,800 frontal" ones.

    Raises:
        ValueError: the file cannot be read, lacks columns, has fewer than two findings, has a value other than 0, 1
            or blank, names an image twice, or has no image of the wanted views.
    """
    if views not in get_args(Views):
        raise ValueError(f"views: got {views!r}, need one of {get_args(Views)}")
    labels = Path(labels)
    table = _read_csv(labels)
    path_column = "path" if "path" in table else "fpath"
    _require_columns(table, ("dicom_id", "subject_id", "study_id", path_column), labels)
    if table.empty:
        raise ValueError(f"labels: {labels} has no rows, so there are no images")
    names = [str(name) for name in table.columns]
    label_names = tuple(name for name in names if name not in DESCRIPTION_COLUMNS and not name.startswith("Unnamed:"))
    if len(label_names) < 2:
        raise ValueError(f"labels: {labels} has {len(label_names)} label column(s) {label_names}, need at least two")

    images = pd.DataFrame(
        {
            "dicom_id": _text(table["dicom_id"], labels),
            "subject_id": _identifier(table["subject_id"], labels),
            "study_id": _identifier(table["study_id"], labels),
            "view": _views(table, Path(data_root)),
            "path": _text(table[path_column], labels),
        }
    )
    _refuse_duplicates(images["dicom_id"], labels)
    matrix = np.column_stack([_findings(table[name], labels) for name in label_names])

    keep = images["view"].isin(["AP", "PA"]) if views == "AP+PA" else images["view"] != "LL"
    view_counts = {str(view): int(count) for view, count in images["view"].value_counts().items()}
    if not keep.any():
        raise ValueError(f"views: no image of {labels} is left by {views!r}; images per view: {view_counts}")
    log.info(
        "%s: views=%s keeps %d of %d images; images per view: %s", labels, views, keep.sum(), len(keep), view_counts
    )
    return Cohort(images, label_names, matrix, view_counts).subset(np.flatnonzero(keep))


def rare_findings(cohort: Cohort, *, below: int | None = None) -> npt.NDArray[np.bool_]:
    """Which findings are rare: the paper's twelve by name, or those with fewer than `below` images in `cohort`.

    Args:
        cohort: for a count threshold, the training split, so that the test images do not choose the rare set.
        below: count threshold; None for the fixed list.

    Returns:
        (n_labels,) bool.
    """
    if below is None:
        return np.array([name in RARE_FINDINGS for name in cohort.label_names])
    return cohort.labels.sum(axis=0) < below


def _read_csv(path: Path) -> pd.DataFrame:
    """The table as text: ids keep their zeros, and nothing is guessed."""
    try:
        return pd.read_csv(path, dtype=str, skipinitialspace=True)
    except FileNotFoundError as error:
        raise ValueError(f"there is no file {path}") from error
    except (OSError, EOFError, zlib.error, ValueError) as error:  # pandas' own errors are ValueErrors
        raise ValueError(f"cannot read {path} as CSV: {error}") from error


def _require_columns(table: pd.DataFrame, names: tuple[str, ...], path: Path) -> None:
    missing = [name for name in names if name not in table]
    if missing:
        raise ValueError(f"{path} lacks the column(s) {missing}; it has {list(table.columns)[:8]} …")


def _refuse(column: pd.Series[str], wrong: pd.Series[bool], path: Path, need: str) -> None:
    """Raises for the first wrong value, by its row as an editor numbers it (the header is row 1)."""
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"labels: {path} has {column.iloc[row]!r} in column {column.name!r}, row {row + 2}; need {need} "
            f"({int(wrong.sum())} such value(s) in this column)"
        )


def _text(column: pd.Series[str], path: Path) -> pd.Series[str]:
    _refuse(column, column.isna(), path, "a name, not a blank")
    return column.str.strip()


def _identifier(column: pd.Series[str], path: Path) -> pd.Series[int]:
    """Numbers of "10000032", "p10000032" or "s50414267" alike: tables disagree about the letter."""
    digits = column.str.strip().str.extract(r"^[ps]?(\d+)(?:\.0)?$", expand=False)
    _refuse(column, digits.isna(), path, 'a number such as 10000032, "p10000032" or "s50414267"')
    return digits.astype(np.int64)


def _findings(column: pd.Series[str], path: Path) -> npt.NDArray[np.bool_]:
    values = pd.to_numeric(column, errors="coerce")
    _refuse(column, column.notna() & ~values.isin([0, 1]), path, "0, 1 or blank")
    return (values == 1).to_numpy(bool)


def _refuse_duplicates(dicom_ids: pd.Series[str], path: Path) -> None:
    duplicated = dicom_ids[dicom_ids.duplicated()]
    if len(duplicated):
        raise ValueError(
            f"labels: {path} names {duplicated.nunique()} dicom_id(s) more than once, "
            f"the first of them {duplicated.iloc[0]!r}; need one row per image"
        )


def _views(table: pd.DataFrame, data_root: Path) -> pd.Series[str]:
    """View of each image, from the label file or else from the metadata table; "missing" where neither tells."""
    view = table.get("ViewPosition", pd.Series(None, index=table.index, dtype="str"))
    if view.isna().any():
        tables = sorted(data_root.glob("mimic-cxr-*-metadata.csv*"))
        if tables:
            metadata = _read_csv(tables[0])
            _require_columns(metadata, ("dicom_id", "ViewPosition"), tables[0])
            known = metadata.drop_duplicates("dicom_id").set_index("dicom_id")["ViewPosition"]
            view = view.fillna(table["dicom_id"].map(known))
        else:
            log.warning(
                "%d images have no ViewPosition, and %s holds no mimic-cxr-*-metadata.csv.gz to take it from",
                view.isna().sum(),
                data_root,
            )
    return view.str.strip().str.upper().fillna("missing")


READERS = {"cxr-lt": read_cohort}
