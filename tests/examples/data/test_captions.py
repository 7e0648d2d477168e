import numpy as np
import pytest

from cxr.data.captions import PAPER, RELEASED, CaptionStyle, captions

NAMES = ("Adenopathy", "Pleural Effusion", "Round(ed) Atelectasis")


def test_paper_style_is_the_papers_own_example():
    labels = np.array([[True, True, False]])
    expected = ["adenopathy is present, pulmonary effusion is present"]
    assert captions(labels, ("Adenopathy", "Pulmonary Effusion", "Mass")) == expected


def test_released_style_is_the_released_codes_expression():
    labels = np.array([[True, False, True], [False, True, False], [False, False, False]])
    expected = [" ".join(f"{name} is present." for name, on in zip(NAMES, row) if on) for row in labels]
    assert captions(labels, NAMES, RELEASED) == expected


def test_an_image_without_findings_has_no_caption_or_the_given_text():
    labels = np.array([[False, False, False], [False, False, True]])
    assert captions(labels, NAMES, PAPER) == [None, "round(ed) atelectasis is present"]
    assert captions(labels, NAMES, CaptionStyle(empty="no finding"))[0] == "no finding"


def test_every_label_vector_of_distinct_findings_has_its_own_caption():
    labels = np.array([[i & 1, i & 2, i & 4] for i in range(8)], dtype=bool)
    for style in (PAPER, RELEASED, CaptionStyle(finding="there is {}", separator=" and ")):
        assert len(set(captions(labels, NAMES, style))) == 8


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"finding: got 'present'"):
        CaptionStyle(finding="present")
    with pytest.raises(ValueError, match=r"labels: got shape \(1, 2\), need \(n_images, 3\)"):
        captions(np.ones((1, 2), dtype=bool), NAMES)
