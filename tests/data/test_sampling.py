import pytest
import torch
from torch.utils.data import RandomSampler

from hf_vit_scratch.data.sampling import Steps, TrainingBatches


def epoch_of(num_images, batch_size, accumulation=1, num_ranks=1, epoch=2, **fields):
    """The optimizer steps of an epoch: for each the batches of all ranks, in the order in which they are made."""
    ranks = []
    for rank in range(num_ranks):
        steps = Steps(batch_size, accumulation, rank, num_ranks)
        batches = TrainingBatches(num_images, steps, seed=3, data_seed=5, **fields)
        batches.set_epoch(epoch)
        ranks.append(list(batches))
        assert len(ranks[-1]) == len(batches)
    assert len({len(rank) for rank in ranks}) == 1  # or else some would wait for the others for ever
    made = [list(step) for step in zip(*ranks, strict=True)]
    return [sum(made[start : start + accumulation], []) for start in range(0, len(made), accumulation)]


@pytest.mark.parametrize("num_images", [1, 2, 3, 31, 64, 65, 70, 97, 128, 200])
@pytest.mark.parametrize("shape", [(64, 1, 1), (32, 1, 2), (16, 2, 2), (16, 4, 1), (8, 2, 4), (1, 1, 64), (16, 1, 4)])
def test_any_number_of_processes_makes_the_same_steps(num_images, shape):
    """The same images and keys, with the same weights in the gradient: the mean over ranks and accumulated batches."""

    def content(steps):
        found = []
        for step in steps:
            share = {}
            for batch in step:
                assert len(batch.indices) == len(batch.keys) > 0  # each rank takes part
                for index, key in zip(batch.indices, batch.keys.tolist(), strict=True):
                    if batch.weight:
                        assert index not in share
                        share[index] = (key, pytest.approx(batch.weight / len(batch.indices) / len(step), rel=1e-12))
            found.append(share)
        return found

    alone, many = content(epoch_of(num_images, 64)), content(epoch_of(num_images, *shape))
    assert alone == many
    assert sorted(index for step in many for index in step) == list(range(num_images))
    for step in many:
        assert all(weight == pytest.approx(1 / len(step)) for _, weight in step.values())


def test_full_steps_have_weight_one_and_batches_of_the_given_size():
    *full, last = epoch_of(200, 16, accumulation=2, num_ranks=2)
    assert [len(batch.indices) for step in full for batch in step] == [16] * 12
    assert {batch.weight for step in full for batch in step} == {1.0}
    assert [(len(batch.indices), batch.weight) for batch in last] == [(4, 1.0), (4, 1.0)]


def test_the_order_is_accelerates_of_the_same_seed_and_another_in_each_epoch():
    """A run that an earlier version began, whose order was accelerate's, can be resumed."""
    generator = torch.Generator().manual_seed(5 + 2)
    expected = list(RandomSampler(range(70), generator=generator))
    assert [index for (batch,) in epoch_of(70, 64) for index in batch.indices] == expected
    assert [index for (batch,) in epoch_of(70, 64, epoch=3) for index in batch.indices] != expected
    assert epoch_of(70, 64, shuffle=False)[1][0].indices == list(range(64, 70))


def test_drop_last_leaves_out_the_smaller_step_on_any_number_of_processes():
    for shape in ((64, 1, 1), (32, 1, 2), (16, 2, 2), (32, 2, 1)):
        steps = epoch_of(150, *shape, drop_last=True)
        assert [sum(len(batch.indices) for batch in step) for step in steps] == [64, 64]
    with pytest.raises(ValueError, match="leaves out all of the 63 training images, since a step takes 64"):
        epoch_of(63, 16, 2, 2, drop_last=True)
