import numpy as np
import pytest

from cxr.data.splits import holdout, k_fold, stratify_patients


def simulated_cohort(seed, n_patients=600):
    """Long-tailed findings that a patient keeps from image to image, one to twelve images a patient."""
    rng = np.random.default_rng(seed)
    patients = rng.permutation(
        np.repeat(rng.permutation(n_patients) + 10**7, rng.geometric(0.35, n_patients).clip(max=12))
    )
    prevalence = np.geomspace(0.4, 0.01, 12)
    prone = {p: rng.random(12) < prevalence for p in np.unique(patients)}
    labels = np.array([prone[p] & (rng.random(12) < 0.8) for p in patients])
    return labels, patients


def random_grouped_part(patients, shares, rng):
    names, patient = np.unique(patients, return_inverse=True)
    return rng.choice(len(shares), len(names), p=shares)[patient]


def imbalance(labels, part, shares):
    """Largest relative error of a part's number of images, for each finding."""
    expected = np.outer(shares, labels.sum(axis=0))
    counts = np.array([labels[part == i].sum(axis=0) for i in range(len(shares))])
    return (np.abs(counts - expected) / expected).max(axis=0)


@pytest.mark.parametrize("seed", range(3))
def test_no_patient_crosses_and_every_image_is_somewhere_once(seed):
    labels, patients = simulated_cohort(seed)
    folds = k_fold(labels, patients, n_folds=5, seed=seed)
    for split in [holdout(labels, patients, seed=seed), *folds]:
        parts = (split.train, split.validation, split.test)
        assert sorted(np.concatenate(parts)) == list(range(len(labels)))
        of_part = [set(patients[rows]) for rows in parts]
        assert sum(map(len, of_part)) == len(set(patients))
    assert sorted(np.concatenate([split.test for split in folds])) == list(range(len(labels)))


def test_parts_have_their_shares_of_the_images():
    labels, patients = simulated_cohort(0)
    split = holdout(labels, patients, test=0.2, validation=0.1, seed=0)
    sizes = np.array([len(split.train), len(split.validation), len(split.test)]) / len(labels)
    np.testing.assert_allclose(sizes, [0.72, 0.08, 0.2], atol=0.005)


@pytest.mark.parametrize("shares", [(0.2,) * 5, (0.72, 0.08, 0.2)])
def test_findings_are_better_balanced_than_by_dealing_patients_at_random(shares):
    labels, patients = simulated_cohort(1)
    rare = labels.sum(axis=0) < 0.05 * len(labels)
    stratified = np.mean(
        [imbalance(labels, stratify_patients(labels, patients, shares, s), shares) for s in range(5)], axis=0
    )
    rng = np.random.default_rng(0)
    at_random = np.mean(
        [imbalance(labels, random_grouped_part(patients, shares, rng), shares) for _ in range(20)], axis=0
    )
    assert rare.sum() >= 3
    assert stratified[rare].mean() < 0.5 * at_random[rare].mean()
    assert stratified.mean() < 0.5 * at_random.mean()


def test_a_finding_of_as_many_patients_as_folds_reaches_every_fold():
    labels, patients = simulated_cohort(2)
    labels[:, -1] = False
    rows = [np.flatnonzero(patients == p)[0] for p in np.unique(patients)[:5]]
    labels[rows, -1] = True
    fold = stratify_patients(labels, patients, (0.2,) * 5, seed=0)
    assert sorted(fold[rows]) == [0, 1, 2, 3, 4]


def test_the_seed_decides():
    labels, patients = simulated_cohort(3)
    one, same, other = (stratify_patients(labels, patients, (0.8, 0.2), seed) for seed in (0, 0, 1))
    assert (one == same).all()
    assert (one != other).any()


def test_a_finding_that_nobody_has_changes_nothing():
    labels, patients = simulated_cohort(4)
    with_absent = np.column_stack([labels, np.zeros(len(labels), dtype=bool)])
    np.testing.assert_array_equal(
        stratify_patients(labels, patients, (0.8, 0.2), 0), stratify_patients(with_absent, patients, (0.8, 0.2), 0)
    )


def test_bad_arguments_are_named():
    labels, patients = np.ones((4, 2), dtype=bool), np.array([1, 1, 2, 2])
    with pytest.raises(ValueError, match=r"patients: got 2 patient\(s\), need at least 5"):
        k_fold(labels, patients, n_folds=5, seed=0)
    with pytest.raises(ValueError, match="n_folds: got 1"):
        k_fold(labels, patients, n_folds=1, seed=0)
    with pytest.raises(ValueError, match=r"shares: got \(0.5, 0.6\)"):
        stratify_patients(labels, patients, (0.5, 0.6), 0)
    with pytest.raises(ValueError, match=r"patients: got shape \(3,\)"):
        stratify_patients(labels, patients[:3], (0.5, 0.5), 0)
    with pytest.raises(ValueError, match=r"got no patient"):
        stratify_patients(labels, patients, (0.999, 0.001), 0)
