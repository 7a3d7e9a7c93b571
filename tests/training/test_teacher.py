import json
import shutil

import datasets
import pytest
import torch
from helpers import TINY, photo_folder, same, weights
from helpers import refused_by_train as error_of
from safetensors.torch import load_file, save_file
from transformers.modeling_outputs import ImageClassifierOutput

from hf_vit_scratch import ViTScratchForImageClassification, data
from hf_vit_scratch.exploration.cost import module_cost
from hf_vit_scratch.hub.card import write_card
from hf_vit_scratch.hub.repository import files_to_push
from hf_vit_scratch.settings.checks import TEACHER_NETWORKS
from hf_vit_scratch.settings.flags import parse_arguments
from hf_vit_scratch.training import main
from hf_vit_scratch.training.assembly import build_config, build_processor, build_trainer
from hf_vit_scratch.training.cnn import NETWORKS, PooledConvNet, StridedConvNet
from hf_vit_scratch.training.muon import WithMuon
from hf_vit_scratch.training.teacher import get_teacher
from hf_vit_scratch.training.trainer import distillation_loss


def test_the_distillation_loss_is_deits():
    logits, answers = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    q, p = (torch.exp(scores / 3) / torch.exp(scores / 3).sum(1, keepdim=True) for scores in (logits, answers))
    by_hand = 9 * (p * (p.log() - q.log())).sum() / 5
    assert distillation_loss(logits, answers, 3.0) == pytest.approx(by_hand.item(), rel=1e-5)
    assert distillation_loss(answers, answers + 4, 3.0) == pytest.approx(0, abs=1e-6)  # softmax knows no constant


def test_the_network_that_teaches_is_the_notebooks_and_takes_images_of_any_size():
    model = StridedConvNet(1, 10).eval()
    steps = [(1, 32, 3, 26), (32, 32, 3, 24), (32, 32, 5, 12), (32, 64, 3, 10), (64, 64, 3, 8), (64, 64, 5, 4)]
    steps += [(64, 128, 4, 1), (128, 10, 1, 1)]  # channels before and after, kernel, side of what comes out
    by_hand = sum(2 * before * after * size**2 * side**2 for before, after, size, side in steps)
    assert module_cost(model, (1, 28, 28))[1] == by_hand
    for height, width in ((8, 8), (28, 28), (41, 30)):
        assert model(torch.rand(2, 1, height, width)).logits.shape == (2, 10)
    small = torch.rand(2, 1, 20, 24)
    bordered = torch.zeros(2, 1, 28, 28)
    bordered[:, :, :20, :24] = small
    assert torch.equal(model(small).logits, model(bordered).logits)
    assert not torch.equal(model.train()(bordered).logits, model(bordered).logits)  # dropout


def test_the_network_for_photographs_is_airbenchs():
    """Counted by hand from arXiv 2404.00498, with 3x3 convolutions before and after each pooling."""
    model = PooledConvNet(3, 10).eval()
    convolutions = [(3, 24, 2, 31), (24, 64, 3, 31), (64, 64, 3, 15), (64, 256, 3, 15), (256, 256, 3, 7)]
    convolutions += [(256, 256, 3, 7), (256, 256, 3, 3), (256, 10, 1, 1)]
    by_hand = sum(2 * before * after * size**2 * side**2 for before, after, size, side in convolutions)
    assert module_cost(model, (3, 32, 32))[1] == pytest.approx(by_hand, rel=1e-6)
    for height, width in ((2, 3), (8, 8), (40, 50)):
        assert model(torch.rand(2, 3, height, width)).logits.shape == (2, 10)


def test_each_name_of_a_network_that_can_teach_is_one():
    assert tuple(NETWORKS) == TEACHER_NETWORKS


def test_muon_trains_the_filters_of_a_teacher_for_photographs_and_adamw_the_rest(tmp_path):
    photo_folder(tmp_path / "photos")
    told = ["--data", str(tmp_path / "photos"), *TINY, "--image_size", "16", "--patch_size", "4"]
    settings = parse_arguments([*told, "--output_dir", str(tmp_path), "--teacher_network", "pooled"])
    settings = settings.with_run(muon_learning_rate=PooledConvNet.muon_learning_rate)
    splits = data.load(tmp_path / "photos")
    model = PooledConvNet(3, 2)
    trainer = build_trainer(model, build_processor(build_config(settings, splits)), splits, settings)
    *others, muon = trainer.create_optimizer().param_groups
    filters = {name for name, parameter in model.named_parameters() if parameter.dim() == 4}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(parameter)] for parameter in muon["params"]} == filters
    assert len(filters) == 7 and sum(len(group["params"]) for group in others) == len(names) - 7


def test_a_teacher_for_photographs_learns_with_muon():
    """Two colours, in bf16 as it is trained. Without steps of the filters the loss stays at that of a guess."""
    torch.manual_seed(0)
    model, labels = PooledConvNet(3, 2), torch.arange(32) % 2
    others = torch.optim.AdamW(model.head.parameters(), 1e-9)
    optimizer = WithMuon(model.features, others, PooledConvNet.muon_learning_rate, 0.0)
    images = torch.rand(32, 3, 16, 16) + torch.stack((labels, torch.zeros(32), 1 - labels), dim=1)[:, :, None, None]
    losses = []
    for _ in range(8):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(images, labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] > 0.5 and losses[-1] < 0.2 * losses[0]


def test_a_last_batch_of_one_image_trains_the_network_that_teaches():
    """Its last convolution leaves one position, and torch refuses to normalize a single value."""
    torch.manual_seed(0)
    model = StridedConvNet(1, 10, dropout=0.0)
    model.train()(torch.rand(64, 1, 28, 28))
    image, before = torch.rand(1, 1, 28, 28), {name: tensor.clone() for name, tensor in model.named_buffers()}
    model(image, torch.tensor([3])).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    last = [name for name in before if "running" in name][-1]
    assert torch.equal(before[last], dict(model.named_buffers())[last])  # one value says nothing of the variance
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        torch.nn.BatchNorm2d(2).train()(torch.rand(1, 2, 1, 1))


def test_the_network_that_teaches_is_compiled_in_bf16_to_the_gradients_of_fp32():
    torch.manual_seed(0)
    model = StridedConvNet(1, 10, dropout=1e-6)  # hardly ever anything, but compiled in
    images, labels = torch.rand(64, 1, 28, 28), torch.arange(64) % 10

    def gradient(forward, bf16):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = forward(images, labels).loss
        loss.backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    exact, fast = gradient(model, False), gradient(torch.compile(model), True)
    assert torch.cosine_similarity(exact, fast, dim=0) > 0.95


class Mistaken(torch.nn.Module):
    """Gives each image the class after its own, which is where its bright block is."""

    def forward(self, pixel_values):
        places = torch.nn.functional.avg_pool2d(pixel_values, 7).flatten(1)[:, :10]
        return ImageClassifierOutput(logits=20 * torch.nn.functional.one_hot((places.argmax(1) + 1) % 10, 10).float())


def test_several_teachers_answer_with_the_mean_of_their_logits(digits, tmp_path):
    told = ["--data", digits, *TINY, "--teacher_epochs", "1", "--num_teachers", "3", "--torch_compile", "false"]
    told += ["--bf16", "false"]  # the Trainer leaves autocast on what it has trained
    settings = parse_arguments([*told, "--output_dir", str(tmp_path)])
    settings = settings.with_training(data_seed=settings.training.seed)
    splits = data.load(digits)
    config = build_config(settings, splits)
    teacher, _ = get_teacher(config, build_processor(config), splits["train"], settings)
    images = torch.rand(4, config.num_channels, *config.image_height_width)
    answers = [member(images).logits for member in teacher.members]
    assert len(answers) == 3 and all((one - answers[0]).abs().max() > 1e-3 for one in answers[1:])  # none is a copy
    assert torch.allclose(teacher(images).logits, sum(answers) / 3, atol=1e-5)
    again, _ = get_teacher(config, build_processor(config), splits["train"], settings, tmp_path)
    assert torch.equal(again(images).logits, teacher(images).logits)
    assert not any(parameter.requires_grad for parameter in teacher.parameters()) and not teacher.training


@pytest.mark.parametrize(("weight", "accumulated", "shift"), [(1.0, "1", 1), (0.9, "2", 1), (0.1, "1", 0)])
def test_the_weight_says_whom_the_student_believes(weight, accumulated, shift, digits, tmp_path):
    told = ["--data", digits, *TINY, "--augmentation", "none", "--num_train_epochs", "40", "--learning_rate", "1e-2"]
    told += ["--weight_decay", "0", "--eval_strategy", "no", "--save_strategy", "no", "--ema_decay", "0.9"]
    told += ["--gradient_accumulation_steps", accumulated, "--per_device_train_batch_size", "16", "--bf16", "false"]
    settings = parse_arguments([*told, "--output_dir", str(tmp_path)])
    splits = data.load(digits)
    config = build_config(settings, splits)
    torch.manual_seed(0)
    model, train = ViTScratchForImageClassification(config), datasets.DatasetDict(train=splits["train"])
    trainer = build_trainer(model, build_processor(config), train, settings)
    trainer.learn_from(Mistaken(), weight, 2.0)
    trainer.train()
    predicted = trainer.predict(trainer.train_dataset).predictions.argmax(axis=1)
    labels = data.label_array(splits["train"])
    assert (predicted == (labels + shift) % 10).mean() > 0.9


def test_a_run_with_a_teacher_says_so_and_keeps_it_to_itself(digits, tmp_path, capsys):
    told = ["--data", digits, *TINY, "--teacher_epochs", "1", "--num_teachers", "2", "--torch_compile", "false"]
    main([*told, "--output_dir", str(tmp_path / "out")])
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["teacher_parameters"] > results["parameters"] and results["teacher_runtime"] > 0
    card = (tmp_path / "out" / "README.md").read_text()
    parameters = f"{results['teacher_parameters']:,} parameters"
    assert f"the mean of 2 CNNs, each of {parameters}, trained on the same rows for 1 epochs" in card
    assert (tmp_path / "out" / "teacher.safetensors").exists()
    settings = json.loads((tmp_path / "out" / "training_args.json").read_text())
    del settings["run"]["num_teachers"]  # as a run wrote it that knew of one alone
    older = tmp_path / "older"
    older.mkdir()
    (older / "training_args.json").write_text(json.dumps(settings))
    write_card(older, ViTScratchForImageClassification.from_pretrained(tmp_path / "out").config, results)
    assert f"| a CNN of {parameters}, trained on the same rows for 1 epochs" in (older / "README.md").read_text()
    assert "teacher.safetensors" not in {file.name for file in files_to_push(tmp_path / "out")}
    model = ViTScratchForImageClassification.from_pretrained(tmp_path / "out")
    assert model.num_parameters() == results["parameters"]

    resume = ["--output_dir", str(tmp_path / "out"), "--resume_from_checkpoint", "true"]
    assert "teacher_weight 0.8, but this run has 0.5" in error_of(capsys, *told, *resume, "--teacher_weight", "0.5")
    assert "num_teachers 2, but this run has 3" in error_of(capsys, *told, *resume, "--num_teachers", "3")
    (tmp_path / "out" / "teacher.safetensors").unlink()
    assert "lacks teacher.safetensors, the teacher of the run" in error_of(capsys, *told, *resume)


def test_a_teacher_that_diverges_is_told_from_the_model(digits, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(StridedConvNet, "learning_rate", 1e30)
    told = ["--data", digits, *TINY, "--warmup_steps", "0", "--max_steps", "50", "--teacher_epochs", "1"]
    words = error_of(capsys, *told, "--output_dir", str(tmp_path / "out"))
    assert "CNN 1 of the teacher has diverged" in words and "learning_rate" not in words


def test_a_run_stopped_among_its_teachers_ends_as_if_never_stopped(digits, tmp_path, capsys):
    told = ["--data", digits, *TINY, "--teacher_epochs", "1", "--num_teachers", "2", "--torch_compile", "false"]
    main([*told, "--output_dir", str(tmp_path / "whole")])
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    shutil.copy(tmp_path / "whole" / "training_args.json", stopped)
    networks = load_file(tmp_path / "whole" / "teacher.safetensors")
    first = {name: tensor for name, tensor in networks.items() if name.startswith("members.0.")}
    assert 0 < len(first) < len(networks)
    save_file(first, stopped / "teacher.safetensors")

    told += ["--output_dir", str(stopped)]
    assert "holds a run already" in error_of(capsys, *told)
    resume = ["--resume_from_checkpoint", "true"]
    assert "num_teachers 2, but this run has 3" in error_of(capsys, *told, *resume, "--num_teachers", "3")
    assert "seed 42, but this run has 7" in error_of(capsys, *told, *resume, "--seed", "7")
    (stopped / "teacher.safetensors").rename(tmp_path / "whole.safetensors")
    assert "no complete checkpoint" in error_of(capsys, *told, *resume)
    save_file({name.removeprefix("members.0."): first[name] for name in first}, stopped / "teacher.safetensors")
    assert "is damaged, or holds networks of another kind" in error_of(capsys, *told, *resume)
    (tmp_path / "whole.safetensors").rename(stopped / "teacher.safetensors")
    main([*told, *resume])
    printed = capsys.readouterr().out
    assert "CNN 2 of 2" in printed and "CNN 1 of 2" not in printed
    assert same(networks, load_file(stopped / "teacher.safetensors"))
    assert same(weights(stopped), weights(tmp_path / "whole"))
    for checkpoint in stopped.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    assert "no complete checkpoint" in error_of(capsys, *told, *resume)  # it is finished, and nothing is to be done
