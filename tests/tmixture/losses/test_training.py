"""The loss trains: on a long-tailed, overlapping, heavy-tailed problem it helps an encoder with the rare classes."""

import pytest
import torch
from scipy import stats
from torch import nn

import train_encoder

SEEDS = range(6)


def prepared(seed):
    data = train_encoder.LongTailedData(seed)
    torch.manual_seed(seed)
    encoder = nn.Linear(train_encoder.N_SIGNAL + train_encoder.N_NOISE, train_encoder.EMBEDDING_SIZE)
    return data, encoder, data.draw(3000)


@pytest.mark.slow
def test_an_encoder_trained_with_the_loss_is_better_for_rare_classes_than_one_without():
    gains = []
    for seed in SEEDS:
        data, untrained, train_set = prepared(seed)
        test_set = data.draw(3000)
        without = train_encoder.train(untrained, train_set[0], seed=seed, steps=150)
        added = train_encoder.weighted_cluster_loss()
        with_loss = train_encoder.train(untrained, train_set[0], seed=seed, steps=150, added_loss=added)
        scores = [train_encoder.evaluate(encoder, train_set, test_set) for encoder in (without, with_loss)]
        gains.append([b - a for a, b in zip(*scores)])
    accuracy, rand = torch.tensor(gains).T
    assert accuracy.mean() > 0.05
    assert rand.mean() > 0.03
    assert stats.ttest_1samp(accuracy, 0, alternative="greater").pvalue < 0.01
    assert stats.ttest_1samp(rand, 0, alternative="greater").pvalue < 0.05


def test_the_picture_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(train_encoder, "N_DRAWN", 200)
    data, untrained, _ = prepared(0)
    train_encoder.draw({"before": untrained}, data, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"
