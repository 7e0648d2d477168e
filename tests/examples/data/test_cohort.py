import gzip

import numpy as np
import pandas as pd
import pytest

from cxr.data.cohort import RARE_FINDINGS, Cohort, rare_findings, read_cohort

FINDINGS = ["Edema", "Fibrosis", "Mass"]


@pytest.fixture
def table():
    """The columns and conventions of CXR-LT 2024's `train_labeled.csv`, an image of every kind of view."""
    views = ["PA", "AP", "LATERAL", "LL", None]
    return pd.DataFrame(
        {
            "dicom_id": [f"d{i}" for i in range(5)],
            "subject_id": ["10000032", "10000032", "10000032", "10000050", "10000050"],
            "study_id": [f"s5000000{i}" for i in range(5)],
            "ViewPosition": views,
            "ViewCodeSequence_CodeMeaning": ["x"] * 5,
            "fpath": [f"files/p10/p10000032/s5000000{i}/d{i}.jpg" for i in range(5)],
            "Edema": ["0", "1", "", "0", "1"],
            "Fibrosis": ["1", "0", "1", "0", ""],
            "Mass": ["0", "0", "0", "1", "1"],
        }
    )


@pytest.fixture
def read(tmp_path):
    """Writes a table as the label file and reads it back as a cohort."""

    def write_and_read(table, **options):
        table.to_csv(tmp_path / "train_labeled.csv", index=False)
        return read_cohort(tmp_path, tmp_path / "train_labeled.csv", **options)

    return write_and_read


def write_metadata(folder, views):
    metadata = pd.DataFrame({"dicom_id": list(views), "subject_id": 10000032, "ViewPosition": list(views.values())})
    metadata.to_csv(folder / "mimic-cxr-2.0.0-metadata.csv.gz", index=False)


def test_frontal_images_with_their_findings(table, read):
    cohort = read(table)
    assert cohort.label_names == tuple(FINDINGS)
    assert cohort.images.to_dict("list") == {
        "dicom_id": ["d0", "d1"],
        "subject_id": [10000032, 10000032],
        "study_id": [50000000, 50000001],
        "view": ["PA", "AP"],
        "path": ["files/p10/p10000032/s50000000/d0.jpg", "files/p10/p10000032/s50000001/d1.jpg"],
    }
    np.testing.assert_array_equal(cohort.labels, [[False, True, False], [True, False, False]])
    assert cohort.view_counts == {"PA": 1, "AP": 1, "LATERAL": 1, "LL": 1, "missing": 1}


def test_all_but_left_laterals_keeps_images_of_unknown_view(table, read):
    assert list(read(table, views="all-but-LL").images["dicom_id"]) == ["d0", "d1", "d2", "d4"]


def test_metadata_tells_the_views_that_the_label_file_does_not(table, read, tmp_path):
    write_metadata(tmp_path, {"d4": "AP", "d0": "LL", "unrelated": "PA"})
    cohort = read(table)
    assert list(cohort.images["dicom_id"]) == ["d0", "d1", "d4"]  # the label file has the first word: d0 stays PA
    assert cohort.view_counts == {"PA": 1, "AP": 2, "LATERAL": 1, "LL": 1}
    without_views = read(table.drop(columns="ViewPosition"))
    assert list(without_views.images["dicom_id"]) == ["d4"]


def test_no_view_anywhere_is_an_error_that_says_so(table, read):
    with pytest.raises(ValueError, match=r"views: no image of .* is left by 'AP\+PA'; images per view: {'missing': 5}"):
        read(table.drop(columns="ViewPosition"))


def test_2023_form_and_number_forms_read_alike(table, read):
    other = table.rename(columns={"fpath": "path"}).assign(
        subject_id=["p" + s for s in table["subject_id"]],
        study_id=[s.removeprefix("s") + ".0" for s in table["study_id"]],
        Edema=["0.0", "1.0", "", "0.0", "1.0"],
    )
    other = other[["dicom_id", *FINDINGS, "path", "ViewPosition", "study_id", "subject_id"]].reset_index()
    other = other.rename(columns={"index": "Unnamed: 0"})
    expected, got = read(table), read(other)
    pd.testing.assert_frame_equal(got.images, expected.images)
    np.testing.assert_array_equal(got.labels, expected.labels)
    assert got.label_names == expected.label_names


def test_ids_keep_leading_zeros(table, read):
    assert list(read(table.assign(dicom_id=[f"000{i}" for i in range(5)])).images["dicom_id"]) == ["0000", "0001"]


def test_subset_keeps_rows_together(table, read):
    cohort = read(table, views="all-but-LL")
    part = cohort.subset(np.array([3, 0]))
    assert list(part.images["dicom_id"]) == ["d4", "d0"]
    assert list(part.images.index) == [0, 1]
    np.testing.assert_array_equal(part.labels, cohort.labels[[3, 0]])
    np.testing.assert_array_equal(part.subject_ids, [10000050, 10000032])


def test_rare_findings_by_name_or_by_count(table, read):
    cohort = read(table, views="all-but-LL")
    assert len(RARE_FINDINGS) == 12
    assert rare_findings(cohort).tolist() == [False, True, False]
    assert rare_findings(cohort, below=2).tolist() == [False, False, True]


@pytest.mark.parametrize("value", ["-1", "2", "0.5", "yes"])
def test_a_label_other_than_0_1_or_blank_is_named(table, read, value):
    table.loc[2, "Mass"] = value
    with pytest.raises(ValueError, match=f"has '{value}' in column 'Mass', row 4; need 0, 1 or blank"):
        read(table)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.iloc[:0], "has no rows, so there are no images"),
        (lambda t: t[t["ViewPosition"] == "LL"], r"no image of .* is left by 'AP\+PA'; images per view: {'LL': 1}"),
        (lambda t: t.drop(columns=["Edema", "Mass"]), r"has 1 label column\(s\) \('Fibrosis',\), need at least two"),
        (lambda t: pd.concat([t, t.iloc[[1]]]), r"names 1 dicom_id\(s\) more than once, the first of them 'd1'"),
        (lambda t: t.drop(columns="fpath"), r"lacks the column\(s\) \['fpath'\]"),
        (lambda t: t.drop(columns=["dicom_id", "study_id"]), r"lacks the column\(s\) \['dicom_id', 'study_id'\]"),
        (lambda t: t.assign(subject_id="patient 7"), "has 'patient 7' in column 'subject_id', row 2; need a number"),
        (lambda t: t.assign(fpath=None), "has nan in column 'fpath', row 2; need a name"),
    ],
)
def test_a_wrong_table_is_refused_with_its_reason(table, read, change, message):
    with pytest.raises(ValueError, match=message):
        read(change(table))


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file .*nowhere\.csv"):
        read_cohort(tmp_path, tmp_path / "nowhere.csv")
    contents = {
        "empty.csv": b"",
        "binary.csv": bytes(range(256)),
        "ragged.csv": b"a,b\n1,2\n1,2,3\n",
        "not-gzip.csv.gz": b"dicom_id,subject_id\n",
        "cut.csv.gz": gzip.compress(b"dicom_id,subject_id\n" * 1000)[:-20],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"cannot read .*{name} as CSV"):
            read_cohort(tmp_path, tmp_path / name)


def test_an_unknown_view_filter_is_refused(table, read):
    with pytest.raises(ValueError, match="views: got 'frontal', need one of"):
        read(table, views="frontal")


def test_the_papers_data_are_known_by_the_size_and_the_labels_of_their_file():
    """A large cohort of another hospital is not that of the paper, and a part of the paper's still comes from it."""
    names = tuple(f"finding {i}" for i in range(40))
    none = pd.DataFrame({"subject_id": []})
    of = {name: Cohort(none, labels, np.zeros((0, len(labels)), bool), counts) for name, labels, counts in (
        ("paper", names, {"AP": 200_000, "PA": 58_871}), ("rows", names, {"AP": 300_000}),
        ("labels", names[:26], {"AP": 200_000, "PA": 58_871}),
    )}  # fmt: skip
    assert [name for name, cohort in of.items() if cohort.is_that_of_the_paper] == ["paper"]
    assert of["paper"].subset(np.arange(0)).is_that_of_the_paper
