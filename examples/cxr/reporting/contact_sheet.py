"""A picture of a cohort: for each finding some of its images, to be looked at before anything is trained on them."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
from PIL import Image, ImageDraw

from cxr.simulation.prevalence import LABELS

TILE, COLUMNS, HEADER = 96, 3, 14


def contact_sheet(root: Path, path: Path, *, per_label: int = 6) -> Path:
    """Write a PNG with up to `per_label` images of each label of the cohort at `root`, the purest first.

    Args:
        root: a folder with ``train_labeled.csv`` and the images it names.
        path: the PNG to write.
        per_label: images per label, all of different patients where there are enough.

    Returns:
        `path`.
    """
    table = pd.read_csv(Path(root) / "train_labeled.csv")
    labels = [name for name in LABELS if name in table]
    if not labels:
        raise ValueError(f"root must hold labels of CXR-LT 2024, but {root}/train_labeled.csv has none of them")
    table = table.assign(n_labels=table[labels].sum(axis=1)).sort_values("n_labels", kind="stable")
    rows = -(-len(labels) // COLUMNS)
    sheet = Image.new("L", (COLUMNS * (per_label * TILE + 8), rows * (TILE + HEADER)), 30)
    pen = ImageDraw.Draw(sheet)
    for i, name in enumerate(labels):
        x, y = (i % COLUMNS) * (per_label * TILE + 8), (i // COLUMNS) * (TILE + HEADER)
        pen.text((x + 2, y + 1), f"{name} ({table[name].sum()})", 255)
        shown = table[table[name] == 1].drop_duplicates("subject_id").head(per_label)
        for j, fpath in enumerate(shown["fpath"]):
            with Image.open(Path(root) / fpath) as image:
                sheet.paste(image.convert("L").resize((TILE, TILE)), (x + j * TILE, y + HEADER))
    path = Path(path)
    temporary = path.with_name(f".{path.name}.partial")
    sheet.save(temporary, format="PNG")
    os.replace(temporary, path)
    return path
