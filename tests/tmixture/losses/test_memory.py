"""`EmbeddingMemory` as a queue, and its state."""

import torch

from tmixture.losses import EmbeddingMemory


def test_the_newest_rows_are_kept_in_order():
    memory, everything = EmbeddingMemory(10, 2), torch.arange(60.0).reshape(30, 2)
    for batch in everything.split([3, 4, 7, 1, 15]):
        memory.push(batch)
    torch.testing.assert_close(memory.embeddings, everything[-10:])
    memory.push(everything[:6])
    torch.testing.assert_close(memory.embeddings, torch.cat([everything[-4:], everything[:6]]))


def test_the_state_holds_any_number_of_rows():
    half_full, features = EmbeddingMemory(10, 2), torch.randn(4, 3)
    half_full.push(torch.ones(4, 2), features)
    restored = EmbeddingMemory(10, 2)
    restored.push(torch.zeros(9, 2), torch.zeros(9, 3))
    restored.load_state_dict(half_full.state_dict())
    torch.testing.assert_close(restored.content.embeddings, torch.ones(4, 2))
    torch.testing.assert_close(restored.content.clustered, features)
    restored.load_state_dict(EmbeddingMemory(10, 2).state_dict())
    assert len(restored) == 0
    assert restored.content is None


def test_later_changes_of_a_batch_do_not_reach_it():
    memory, x = EmbeddingMemory(4, 2), torch.ones(4, 2)
    memory.push(x)
    x.zero_()
    assert (memory.embeddings == 1).all()
