"""The buffer keyed by class: a step visits chains of the labels that it is asked for, each slot at most once."""

import pytest
import torch

from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.objective.contrastive.replay_buffer import choose, choose_keyed, start


def replay(labels):
    return start(torch.zeros(len(labels), 2))._replace(labels=torch.tensor(labels))


def test_slots_hold_the_labels_asked_for_while_there_are_such():
    chains = replay([k % 4 for k in range(40)])
    wanted = torch.tensor([0, 3, 3, 1, 0, 2, 2, 2])
    slots = choose_keyed(chains, wanted, generator(0, "slots"))
    assert torch.equal(chains.labels[slots], wanted)
    assert len(slots.unique()) == len(wanted)
    mutant = choose(chains, len(wanted), generator(0, "slots"))  # blind to labels
    assert not torch.equal(chains.labels[mutant], wanted)


def test_a_class_with_too_few_chains_takes_unlabelled_ones_first_and_none_twice():
    chains = replay([0, 0, 1, 1, 1, -1, -1, 2])
    wanted = torch.tensor([0, 0, 0, 0, 0, 1])
    for k in range(20):
        slots = choose_keyed(chains, wanted, generator(0, "slots", k))
        assert len(slots.unique()) == len(wanted)
        held = chains.labels[slots]
        assert (held[:5] == 0).sum() == 2
        assert held[5] == 1
        assert {5, 6} <= set(slots[:5].tolist())


def test_all_chains_of_a_class_are_visited_equally_often():
    """20 chains, 2,000 visits of 5: each 500 times on average, within five deviations; a fixed order fails."""
    chains = replay([k % 2 for k in range(40)])
    counts = torch.zeros(40)
    for k in range(2000):
        counts[choose_keyed(chains, torch.ones(5, dtype=torch.int64), generator(0, "slots", k))] += 1
    deviation = (2000 * 0.25 * 0.75) ** 0.5
    assert counts[0::2].sum() == 0
    assert (counts[1::2] - 500).abs().max() < 5 * deviation


def test_a_buffer_smaller_than_the_batch_is_refused():
    with pytest.raises(UserError, match="buffer_size=3"):
        choose_keyed(replay([0, 1, 2]), torch.zeros(4, dtype=torch.int64), generator(0, "slots"))
