"""The experiment end to end on a tiny cohort, and what a user may do wrong with it."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import cxr_cml
from cxr.reporting.results import Result, load_results
from cxr.training.arms import ARMS, MAIN, TABLE2

pytestmark = pytest.mark.slow

TINY = cxr_cml.Config(
    simulated_images=160,
    simulated_tail=0.2,
    image_size=32,
    epochs=2,
    pretrain_epochs=1,
    n_components=5,
    arms=("start", "meta", "cxr-cml", "as-released", "few-20-clusters"),
    device="cpu",
)


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """The folder that one run of the script leaves."""
    folder = tmp_path_factory.mktemp("experiment")
    cxr_cml.main(replace(TINY, output=folder))
    return folder


def test_every_arm_is_trained_tested_and_reported(output):
    results = {result.arm: result for result in load_results(output)}
    assert set(results) == set(TINY.arms)
    start, meta, cml = results["start"], results["meta"], results["cxr-cml"]
    assert np.array_equal(start.rows, meta.rows)
    assert np.array_equal(start.rows, cml.rows)
    assert not np.allclose(start.probabilities, meta.probabilities)
    assert not np.allclose(meta.probabilities, cml.probabilities)
    assert len(meta.history) == TINY.epochs
    assert (meta.clusters == -1).all()
    assert set(np.unique(cml.clusters)) <= set(range(TINY.n_components))
    assert cml.cost["flops_per_step"] >= meta.cost["flops_per_step"] > 1e6
    assert meta.cost["peak_bytes"] > 1e5
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics
    page = (output / "report.html").read_text()
    for name in TINY.arms:
        assert ARMS[name].title in page


def test_table_2_is_trained_tested_and_reported(tmp_path):
    """All systems by one name, with clusters beside one of them, with the paper's numbers; and one more arm later."""
    asked = replace(TINY, arms=("table2", "slip-cxr-cml", "medclip-decoupled", "convirt-sentences"), output=tmp_path)
    arms = cxr_cml.checked(asked).arms
    assert arms == (*MAIN, *TABLE2, "slip-cxr-cml", "medclip-decoupled", "convirt-sentences")
    assert cxr_cml.checked(replace(TINY, arms=("main", "meta"))).arms == tuple(MAIN)
    cxr_cml.main(asked)
    results = {result.arm: result for result in load_results(tmp_path)}
    assert tuple(results) == tuple(sorted(arms))
    for name in arms[1:]:
        assert not np.allclose(results[name].probabilities, results["start"].probabilities), name
        assert all(np.isfinite(entry["objective"]) for entry in results[name].history)
    assert (results["slip-cxr-cml"].clusters >= 0).all()
    assert np.isnan(results["medklip"].without_axis).all()
    assert results["medklip"].cost["flops_per_step"] > results["meta"].cost["flops_per_step"]
    page = (tmp_path / "report.html").read_text()
    for name in arms:
        assert ARMS[name].title in page
    for row in ("0.476 / 0.488 / 0.450", "0.576 / 0.574 / 0.574", "0.502 / 0.505 / 0.495"):
        assert page.count(row) == 1


def test_sentences_need_reports(output, monkeypatch):
    config = cxr_cml.checked(replace(TINY, output=output, arms=("convirt-sentences",)))
    cohort, _, _ = cxr_cml.prepare(config)
    with pytest.raises(SystemExit, match="“ConVIRT, sentences of reports” needs reports"):
        cxr_cml.training_texts(cohort, None, config, ARMS["convirt-sentences"], 0)


def test_what_an_objective_adds_learns_faster_than_a_fine_tuned_model(output):
    for rate, heads in ((1 / 300, 3e-4), (10, 3e-3)):
        rates = [g["lr"] for g in trainer(output, replace(ARMS["slip"], rate=rate)).optimizer.param_groups]
        assert rates == pytest.approx([rate * TINY.learning_rate, heads])


@pytest.mark.parametrize(
    ("settings", "rate"),
    [
        ({"model": "small-conv"}, 3e-4),
        ({"model": "open_clip:ViT-B-32-quickgelu"}, 3e-4),
        ({"model": "open_clip:ViT-B-32-quickgelu", "init": "chexzero.pt"}, 1e-6),
        ({"model": "hf:openai/clip-vit-base-patch32"}, 1e-6),
        ({"model": "openai:ViT-B/32", "learning_rate": 2e-5}, 2e-5),
    ],
)
def test_the_learning_rate_follows_from_the_weights_that_there_are(settings, rate):
    """The paper's 1e-6 moves nothing that starts at random."""
    assert cxr_cml.checked(replace(cxr_cml.PAPER_CONFIG, **settings)).learning_rate == rate


def test_without_the_papers_rare_findings_the_rarest_are_rare():
    names = ["Mass", "Edema", "gout", "Effusion"]
    labels = np.arange(100)[:, None] < [50, 20, 3, 40]
    cohort = SimpleNamespace(label_names=names, labels=labels)
    assert cxr_cml.rare_names(cohort, None) == (
        {"gout"}, "fewer than 20 images, as none of the paper's twelve is here",
    )  # fmt: skip
    assert cxr_cml.rare_names(cohort, 25)[0] == {"gout", "Edema"}
    cohort.label_names = ["Hernia", "Fibrosis", *names[2:]]
    assert cxr_cml.rare_names(cohort, None)[1].startswith("the paper's twelve")


def trainer(output, arm):
    """A trainer of the arm, from the starting point that is kept in the output folder."""
    config = replace(TINY, output=output)
    cohort, store, reports = cxr_cml.prepare(config)
    split = cxr_cml.splits(cohort, config, 0)[0]
    start = cxr_cml.starting_point(store, cohort, reports, split, config, 0, 0)
    captions = [[caption] for caption in cxr_cml.captions(cohort.labels, cohort.label_names)]
    data = cxr_cml.Data(store, cxr_cml.tokenize(start, captions), cohort.labels)
    return cxr_cml.make_trainer(start, data, cohort.label_names, split, arm, config, 0, 0, "test")


def test_of_images_without_labels_an_arm_sees_the_image_alone(output):
    few, all_labels = trainer(output, ARMS["few-20"]), trainer(output, ARMS["meta"])
    labelled = set(few.labelled.tolist())
    assert len(labelled) == round(0.2 * len(few.split.train))
    assert labelled <= set(few.split.train.tolist())
    assert set((few.texts.ids[:, 0] >= 0).nonzero()[:, 0].tolist()) <= labelled
    assert set((few.known >= 0).nonzero()[:, 0].tolist()) <= labelled
    counts = few.data.labels[sorted(labelled)].sum(0)
    for row in (few.known >= 0).nonzero()[:, 0].tolist():
        assert few.data.labels[row, few.known[row]]
        assert counts[few.known[row]] == counts[few.data.labels[row]].min()
    for batch, others in zip(few._batches(), all_labels._batches()):
        assert torch.equal(batch[-len(others) :], others)
        assert set(batch[: -len(others)].tolist()) <= labelled
        assert len(batch) == few.schedule.batch_size + len(others)


def test_a_metric_loss_that_counts_for_nothing_changes_nothing(output, tmp_path):
    """The mixture's own randomness leaves batches and augmentation alone: what is left is the arm with meta labels."""
    plain, idle = (trainer(output, arm) for arm in (ARMS["meta"], replace(ARMS["triplets-only"], metric_weight=1e-38)))
    for number, trained in enumerate((plain, idle)):
        trained.folder = tmp_path / str(number)
        trained.run("test")
    assert idle.history[0]["metric"] > 0
    for a, b in zip(plain.model.state_dict().values(), idle.model.state_dict().values()):
        assert torch.equal(a, b)


def test_a_second_run_repeats_only_what_is_missing(output, monkeypatch):
    path = Result.path(output, "cxr-cml", 0, 0)
    before = Result.load(path)
    kept = Result.path(output, "meta", 0, 0).stat().st_mtime_ns
    path.unlink()
    monkeypatch.setattr(cxr_cml, "report", lambda cohort, config: None)
    cxr_cml.main(replace(TINY, output=output))
    assert Result.path(output, "meta", 0, 0).stat().st_mtime_ns == kept
    again = Result.load(path)
    assert np.array_equal(before.probabilities, again.probabilities)


class KilledError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize(
    ("arm", "accumulate"),
    [("cxr-cml", 1), ("medklip-cxr-cml", 2), ("slip", 1), ("gloria", 1), ("medclip-decoupled", 1)],
)
def test_a_killed_training_ends_as_if_it_had_not_been_killed(output, tmp_path, monkeypatch, arm, accumulate):
    """Killed in the second epoch, right after a checkpoint within it."""

    def started(name):
        made = trainer(output, ARMS[arm])
        made.schedule = replace(made.schedule, accumulate=accumulate)
        made.folder = tmp_path / name
        return made

    whole = started("whole")
    whole.run("whole")

    monkeypatch.setattr("cxr.training.trainer.CHECKPOINT_SECONDS", 0.0)
    killed = started("killed")
    losses = killed.losses

    def dies_late(rows):
        if killed.epoch == 1 and killed.step == 2:
            raise KilledError
        return losses(rows)

    monkeypatch.setattr(killed, "losses", dies_late)
    with pytest.raises(KilledError):
        killed.run("killed")
    resumed = started("killed")
    resumed.run("resumed")
    for part in ("model", "objective"):
        states = (getattr(made, part).state_dict() for made in (whole, resumed))
        for a, b in zip(*(state.values() for state in states)):
            assert torch.equal(a, b)
    for a, b in zip(whole.history, resumed.history):
        assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": ("meta", "mata")}, "mata"),
        ({"arms": ()}, "none given"),
        ({"labels": "labels.csv"}, "belong together"),
        ({"epochs": 0}, "--epochs must be at least 1"),
        ({"simulated_images": 0}, "--simulated-images must be at least 1"),
    ],
)
def test_wrong_settings_end_with_a_message(change, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        cxr_cml.main(replace(TINY, output=tmp_path / "nothing", **change))
    assert not (tmp_path / "nothing").exists()
