import base64
import html
import io
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from cxr.reporting.evaluation import evaluate
from cxr.reporting.figures import (
    FINDING_GROUPS,
    NEIGHBOURS,
    ablation_points,
    enrichment_map,
    image_groups,
    neighbour_agreement,
    training_curves,
)
from cxr.reporting.metrics import RunDifference, ScoreDifference, Verdict, plain
from cxr.reporting.page import p_of, points, reading, render, result_table, span, upside_down, write_report
from cxr.reporting.results import Result
from cxr.reporting.statistics import Difference
from cxr.training.arms import ABLATION, MAIN, VARIANTS

NAMES = ["Pleural Effusion", "Normal", "Fibrosis", "Support Devices", "Kyphosis", "gout"]
RARE = {"Fibrosis", "Kyphosis"}
CONFIG = {"dof": 4.0, "n_components": 40, "batch_size": 32, "arms": ("meta", "cxr-cml"), "init": None}
VOID = {"meta", "img", "br", "link", "input", "hr"}


def simulated_result(arm, seed=0, fold=0, quality=1.0):
    shared = np.random.default_rng([seed, fold])
    patients = np.repeat(np.arange(40) + 1000 * fold, shared.integers(1, 4, 40))
    labels = shared.random((len(patients), len(NAMES))) < [0.4, 0.3, 0.15, 0.4, 0.1, 0.1]
    labels[:4], labels[4:8] = True, False
    own = np.random.default_rng([seed, fold, *arm.encode()])
    embeddings = own.normal(size=(len(patients), 8))
    has_mixture = arm.startswith("cxr-cml") or arm in VARIANTS or arm in ABLATION
    epochs = [] if arm == "start" else range(1, 4)
    return Result(
        arm=arm,
        seed=seed,
        fold=fold,
        label_names=NAMES,
        rows=np.arange(len(patients)) + 10_000 * fold + 100_000 * seed,
        patients=patients,
        labels=labels,
        probabilities=(1 / (1 + np.exp(-own.normal(size=labels.shape) - quality * labels))).astype(np.float32),
        without_axis=np.full(labels.shape, 0.5, np.float32),
        embeddings=(embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float32),
        clusters=own.integers(0, 5, len(patients)) if has_mixture else np.full(len(patients), -1),
        train_counts=4 * labels.sum(axis=0),
        history=[
            {"epoch": e, "seconds": 2.0, "objective": 2 / e, "metric": 0.1 * has_mixture, "validation": 2.5 / e,
             "learning_rate": 1e-3} | ({"perplexity": 3.0 + e} if has_mixture else {})
            for e in epochs
        ],
        cost={"seconds_per_step": 0.1, "flops_per_step": 2e9, "peak_bytes": 2**27} if epochs else {},
    )  # fmt: skip


def written(tmp_path, results, **options):
    metrics = evaluate(results, rare=RARE, n_resamples=60)
    options = {
        "config": CONFIG,
        "data_set": "simulated cohort of 80 images",
        "rare_rule": "fewer than 9 images",
        "simulated": True,
    } | options
    path = write_report(tmp_path, metrics, results, **options)
    return path.read_text(encoding="utf-8"), metrics


def rendered(results, **options):
    """The page without figures."""
    run = {"simulated": True, "same_as_paper": False, "data_set": "", "rare_rule": "", "commit": "", "date": ""}
    run |= {"versions": {}, "config": {}} | options
    return render(run, evaluate(results, rare=RARE, n_resamples=60), [], {})


def visible(page):
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", re.sub(r"(?s)<style>.*?</style>", "", page))).split())


class TagChecker(HTMLParser):
    """Collects the tags that are closed by another one than opened, and what is loaded from elsewhere."""

    def __init__(self):
        super().__init__()
        self.open, self.wrong, self.loaded = [], [], []

    def handle_starttag(self, tag, attrs):
        self.loaded += [value for name, value in attrs if name in ("src", "href") and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append((tag, self.getpos()))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A report with every section: all arms, three seeds, an arm missing in one of them."""
    output = tmp_path_factory.mktemp("full")
    arms = [*MAIN, *VARIANTS, *ABLATION]
    results = [simulated_result(arm, seed, quality=2.5 if arm == "cxr-cml" else 1) for seed in range(3) for arm in arms]
    page, metrics = written(output, results[:-1])
    return output, page, metrics


# The page


def test_the_page_is_well_formed_and_needs_nothing_else(full):
    _, page, _ = full
    checker = TagChecker()
    checker.feed(page)
    assert checker.wrong == []
    assert checker.open == []
    assert len(checker.loaded) >= 7
    assert all(source.startswith("data:image/png;base64,") for source in checker.loaded)
    assert "None" not in visible(page).replace("init None", "")
    assert "nan" not in visible(page).split()


def test_every_figure_is_a_file_and_in_the_page(full):
    output, page, _ = full
    embedded = {base64.b64decode(code) for code in re.findall(r"base64,([^\"]+)", page)}
    files = {path.name: path.read_bytes() for path in (output / "figures").iterdir()}
    assert set(files) == {
        f"{name}.png"
        for name in (
            "scores", "differences", "findings", "embeddings", "clusters", "training", "ablation",
        )
    }  # fmt: skip
    assert set(files.values()) == embedded
    for content in files.values():
        image = np.asarray(Image.open(io.BytesIO(content)).convert("L"))
        assert image.std() > 5  # something is drawn


def test_the_json_holds_the_metrics_and_how_they_came_about(full):
    output, _, metrics = full
    read = json.loads((output / "metrics.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    assert read["arms"] == json.loads(json.dumps(plain(metrics)["arms"]))
    assert read["run"]["config"]["n_components"] == 40
    assert {"torch", "tmixture", "python"} <= set(read["run"]["versions"])
    assert not list(output.glob("**/.*"))


def test_scores_and_differences_stand_in_the_page_with_their_intervals(full):
    _, page, metrics = full
    text = visible(page)
    for arm in MAIN:
        score = metrics.arms[arm].auc["rare"]
        assert f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]" in text
    (comparison,) = (c for c in metrics.comparisons if (c.a, c.b) == ("cxr-cml", "meta"))
    verdict = comparison.auc["rare"].verdict
    value, low, high = (points(v) for v in (comparison.auc["rare"].value, verdict.low, verdict.high))
    assert f"{value} points [{low}, {high}]" in text


def test_the_papers_numbers_stand_beside_ours_and_the_missing_arm_is_named(full):
    text = visible(full[1])
    assert "0.691 / 0.681 / 0.707 CheXzero + meta labels" in text
    assert "0.716 / 0.713 / 0.720" in text
    assert f"{ABLATION[list(ABLATION)[-1]].title} is in 2" in text


@pytest.mark.parametrize("same", [True, False])
def test_another_data_set_than_the_papers_is_marked(same):
    page = rendered([simulated_result("start")], same_as_paper=same)
    assert ("Not the paper's data" in page) == (not same)


@pytest.mark.parametrize("simulated", [True, False])
def test_images_of_no_patients_are_called_so_whatever_their_folder_is_called(simulated):
    page = rendered([simulated_result("start")], data_set="simulated/x-rays", simulated=simulated)
    assert ("The images are drawn by a program" in page) == simulated


def test_names_are_escaped():
    page = rendered([simulated_result("start")], data_set="<script>alert(1)</script>")
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


# What may be missing


@pytest.mark.parametrize(
    ("arms", "absent"),
    [
        (["start"], ["Table 3", "Table 4", "Differences to", "Variants and controls", "Training curves"]),
        (["start", "meta"], ["· Ablation", "Table 4", "Variants and controls", "Which findings the clusters hold"]),
        (["cxr-cml"], ["· Ablation", "Table 4", "Differences to"]),
    ],
)
def test_sections_without_numbers_are_left_out(tmp_path, arms, absent):
    page, _ = written(tmp_path, [simulated_result(arm, fold=fold) for arm in arms for fold in range(2)])
    for title in absent:
        assert title not in visible(page)
    assert "Table 2" in page
    assert ("Table 3 · Cost" in page) == (arms != ["start"])  # numbered without holes
    checker = TagChecker()
    checker.feed(page)
    assert (checker.wrong, checker.open) == ([], [])


def test_findings_without_positives_leave_gaps_and_no_error(tmp_path):
    results = [simulated_result(arm) for arm in ("start", "meta", "cxr-cml")]
    for result in results:
        result.labels[:, [2, 4]] = False  # both rare ones
    page, metrics = written(tmp_path, results)
    assert math.isnan(metrics.arms["meta"].auc["rare"].value)
    assert "4 of 6 findings, and 0 of the 2 rare ones" in visible(page)


def test_what_cannot_be_written_leaves_the_old_report(tmp_path):
    results = [simulated_result("start")]
    old, _ = written(tmp_path, results)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("**/*")}
    with pytest.raises(FileNotFoundError):
        written(tmp_path, results, data_set="another", sample_images=tmp_path / "none.png")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("**/*")} == before
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == old


# What is said


@pytest.mark.parametrize(
    ("low", "high", "p", "said"),
    [
        (0.01, 0.03, 0.001, "a gain"),
        (-0.03, -0.01, 0.001, "a loss"),
        (-0.01, 0.03, 0.2, "no difference shown"),
        (0.001, 0.03, 0.06, "no difference shown"),
        (0.0, 0.03, 0.04, "no difference shown"),
        (math.nan, math.nan, math.nan, "no difference shown"),
    ],
)
def test_a_gain_is_said_only_where_interval_and_p_agree(low, high, p, said):
    verdict = Verdict("patients", low, high, p)
    unused = Difference(0.0, low, high, p)
    runs = [RunDifference(0.0, low, high, p, seed, 0) for seed in range(2)]
    assert reading(ScoreDifference(0.0, unused, unused, unused, verdict, runs)) == said
    assert reading(ScoreDifference(0.0, unused, unused, unused, verdict, runs[:1])) == "cannot be told from one run"


@pytest.mark.parametrize(("quality", "said"), [(3.0, "a gain"), (-3.0, "a loss")])
def test_the_answer_follows_the_numbers(quality, said):
    def answer(seeds):
        results = [
            simulated_result(arm, seed=seed, quality=q)
            for seed in range(seeds)
            for arm, q in (("meta", 0.0), ("cxr-cml", quality))
        ]
        return visible(rendered(results)).split("(the paper's claim)")[1].split("A point is")[0]

    assert answer(3).count(said) == 2
    assert answer(1).count("cannot be told from one run") == 2
    assert "a single run" in answer(1)


def test_no_p_value_is_smaller_than_resamples_can_tell():
    def shown(p, test="patients", runs=1):
        unused = Difference(0.0, 0.0, 0.0, p)
        single = [RunDifference(0.0, 0.0, 0.0, p, seed, 0) for seed in range(runs)]
        return p_of(ScoreDifference(0.0, unused, unused, unused, Verdict(test, 0.0, 0.0, p), single), 1000)

    assert shown(2 / 1001) == "p ≤ 0.002"
    assert shown(4 / 1001) == "p = 0.004"
    assert shown(2 / 1001, runs=3) == "p = 0.002"
    assert shown(1e-5, test="seeds") == "p < 0.001"


def test_a_finding_that_is_ranked_the_wrong_way_round_is_marked():
    result = simulated_result("meta")
    result.probabilities[:, 0] = 1 - result.labels[:, 0]
    page = rendered([result])
    assert upside_down(evaluate([result], rare=RARE, n_resamples=2)) == {"meta": ["Pleural Effusion"]}
    assert "ranks Pleural Effusion the wrong way round" in visible(page)
    assert visible(page).count("↓") == 1


def test_the_rule_of_rarity_is_said():
    page = rendered([simulated_result("start")], rare_rule="fewer than 9 images")
    assert "of them 2 rare (fewer than 9 images)" in visible(page)


def test_numbers_as_text():
    assert [points(v) for v in (0.0123, -0.0123, -0.0002, None, math.nan)] == ["+1.2", "−1.2", "0.0", "–", "–"]
    assert [span([3, 1, 2]), span([7, 7])] == ["1 to 3", "7"]


# What the figures are made of


def test_neighbour_agreement_is_that_of_brute_force():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    groups, patients = rng.integers(0, 3, 60), rng.integers(0, 25, 60)
    shares, chances = [], []
    for i in range(60):
        others = [j for j in range(60) if patients[j] != patients[i]]
        nearest = sorted(others, key=lambda j: np.linalg.norm(x[i] - x[j]))[:NEIGHBOURS]
        shares.append(np.mean(groups[nearest] == groups[i]))
        chances += list(groups[others] == groups[i])
    agreement, half, chance = neighbour_agreement(x, groups, patients)
    assert (agreement, chance) == pytest.approx((np.mean(shares), np.mean(chances)))
    assert 0 < half < 0.5


def test_an_image_belongs_to_the_group_of_its_rarest_finding():
    result = simulated_result("start")
    expected = {
        (): "no finding",
        ("Normal",): "no finding",
        ("Support Devices",): "device only",
        ("Support Devices", "Pleural Effusion"): "heart, fluid",
        ("Pleural Effusion", "Fibrosis"): "nodule, mass, scar",
        ("Pleural Effusion", "Kyphosis"): "bone",
    }
    groups = [*FINDING_GROUPS, "other"]
    for i, present in enumerate(expected):
        result.labels[i] = [name in present for name in NAMES]
    assert [groups[g] for g in image_groups(result)[: len(expected)]] == list(expected.values())


def test_clusters_that_ignore_the_findings_have_lift_one_and_pure_clusters_more():
    result = simulated_result("cxr-cml")
    result.clusters[:] = 3
    (picture,) = enrichment_map(result).axes[0].images
    assert np.allclose(picture.get_array(), 0, atol=1e-12)
    result.clusters[:] = result.labels[:, 0]
    lift = enrichment_map(result).axes[0].images[0].get_array()
    row = list(np.argsort(-result.labels.sum(axis=0), kind="stable")).index(0)
    assert lift[row].max() > 0.5
    assert lift[row].min() < -0.5


def test_ablation_points_are_in_the_order_of_the_setting_with_the_method_among_them():
    results = [simulated_result(arm) for arm in ("cxr-cml", *ABLATION)]
    metrics = evaluate(results, rare=RARE, n_resamples=2)
    assert [value for value, _ in ablation_points(metrics, CONFIG, "dof")] == [2, 4, 6, float("inf")]
    assert (32.0, "cxr-cml") in ablation_points(metrics, CONFIG, "batch_size")
    assert ablation_points(evaluate(results[:1], rare=RARE, n_resamples=2), CONFIG, "dof") == []


@pytest.mark.parametrize(("rates", "shown"), [([1e-3, 1e-3], False), ([1e-3, 1e-4], True)])
def test_a_learning_rate_that_stays_has_no_panel(rates, shown):
    result = simulated_result("meta")
    result.history[:] = [{"epoch": i, "objective": 1.0 / (1 + i), "learning_rate": r} for i, r in enumerate(rates)]
    titles = [ax.get_title() for ax in training_curves([result], ["meta"]).axes]
    assert ("learning rate" in titles) == shown
    assert "objective, training" in titles


def test_the_console_has_the_result_table():
    metrics = evaluate([simulated_result(arm) for arm in ("start", "cxr-cml")], rare=RARE, n_resamples=20)
    title, head, *rows = result_table(metrics).split("\n")
    assert title == "Mean zero-shot AUC"
    assert len(rows) == 2
    assert len({len(line) for line in (head, *rows)}) == 1
    assert rows[1].startswith("CXR-CML ")
    assert f"{metrics.arms['cxr-cml'].auc['rare'].value:.3f} [" in rows[1]
