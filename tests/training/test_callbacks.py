import torch
from torch import nn
from transformers import TrainerState

from hf_vit_scratch.data.augmentation import DigitAugmentation
from hf_vit_scratch.training.callbacks import MildEnd, WeightAverage


def test_the_average_follows_its_closed_form():
    model = nn.Linear(3, 2)
    average = WeightAverage(model, decay=0.6)
    expected = model.weight.detach().clone()
    state = type("State", (), {})()
    for step in range(1, 8):
        with torch.no_grad():
            model.weight.add_(step)
        state.global_step = step
        average.on_step_end(None, state, None)
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    raw = model.weight.detach().clone()
    with average.in_place():
        torch.testing.assert_close(model.weight.detach(), expected)
    torch.testing.assert_close(model.weight.detach(), raw, rtol=0, atol=0)


def test_the_statistics_of_a_batch_norm_are_averaged_with_the_weights():
    model = nn.BatchNorm1d(2, momentum=1.0)  # its running mean is that of the last batch
    average, state = WeightAverage(model, decay=0.25), type("State", (), {})()
    for step, mean in ((1, 3.0), (2, 5.0)):
        model(torch.full((4, 2), mean))
        state.global_step = step
        average.on_step_end(None, state, None)
    first = (1 - 2 / 11) * 3.0
    with average.in_place():
        torch.testing.assert_close(model.running_mean, torch.full((2,), 0.25 * first + 0.75 * 5.0))
        assert model.num_batches_tracked == 2
    torch.testing.assert_close(model.running_mean, torch.full((2,), 5.0))


def test_augmentation_is_mild_for_the_last_part_of_the_steps():
    augmentation = DigitAugmentation(10, 0, 0, 0, 0)
    callback, seen = MildEnd(augmentation, fraction=0.25, strength=0.4), []
    for step in range(8):
        callback.on_step_begin(None, TrainerState(global_step=step, max_steps=8), None)
        seen.append(augmentation.strength)
    assert seen == [1.0] * 6 + [0.4] * 2
