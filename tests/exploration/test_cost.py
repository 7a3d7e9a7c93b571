import pytest
import torch
from helpers import refused_by_vit_scratch as refused
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.flop_counter import FlopCounterMode

from hf_vit_scratch import ViTScratchConfig, ViTScratchForImageClassification
from hf_vit_scratch.cli import main
from hf_vit_scratch.exploration.cost import activation_bytes, cost, training_memory

SHAPES = [
    {},
    {"pooling": "mean"},
    {"position_embedding": "sincos2d", "qkv_bias": False},
    {"stem": "conv", "num_hidden_layers": 1},
    {"stem": "conv", "stem_depth": 2, "image_size": [24, 16], "patch_size": 8, "num_channels": 3},
    {"stem": "conv", "stem_depth": 2, "stem_width": 20},
    {"patch_size": 7, "position_embedding": "none", "intermediate_size": 50, "num_attention_heads": 2},
]


@pytest.mark.parametrize("fields", SHAPES)
def test_it_is_what_the_built_model_has_and_what_torch_counts(fields):
    config = ViTScratchConfig.from_size("digits-tiny", **{"num_hidden_layers": 3, "num_labels": 7, **fields})
    config._attn_implementation = "eager"
    model = ViTScratchForImageClassification(config)
    found = cost(config)
    assert found.total_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.parameters["stem"] == sum(p.numel() for p in model.vit.embeddings.patch_embeddings.parameters())
    assert found.parameters["MLP"] == sum(p.numel() for layer in model.vit.layers for p in layer.mlp.parameters())
    pixels = torch.zeros(1, config.num_channels, *config.image_height_width)
    with FlopCounterMode(display=False, depth=4) as counter, torch.no_grad():
        model(pixels)
    assert found.total_flops == counter.get_total_flops()
    by_module = {name: sum(flops.values()) for name, flops in counter.get_flop_counts().items()}
    prefix = type(model).__name__
    assert found.flops["stem"] == by_module[f"{prefix}.vit.embeddings"]
    assert found.flops["head"] == by_module[f"{prefix}.classifier"]
    assert found.tokens == model.vit.embeddings(pixels).shape[1]


def test_activations_grow_with_the_batch_and_are_what_autograd_keeps():
    config = ViTScratchConfig.from_size("digits-tiny", num_hidden_layers=1, num_labels=10)
    eight, sixteen = activation_bytes(config, 8), activation_bytes(config, 16)
    assert 1.9 < sixteen / eight < 2.0  # the class token and the positions do not grow
    config._attn_implementation = "eager"
    model, kept = ViTScratchForImageClassification(config).train(), {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(torch.randn(8, 1, 28, 28), labels=torch.arange(8)).loss
    assert eight == pytest.approx(sum(storage.nbytes() for storage in kept.values()), rel=0.01)
    assert loss.requires_grad


def numbers(printed: str, part: str) -> list[str]:
    (line,) = [line for line in printed.splitlines() if line.startswith(part + " ")]
    return line.split()[len(part.split()) :]


def test_a_named_size_and_fields_by_hand(capsys):
    main(["size", "--size", "B/16"])
    printed = capsys.readouterr().out
    assert numbers(printed, "all")[0] == "86,567,656"  # the paper's ViT-B/16 with 1000 classes
    assert "197 tokens of width 768" in printed
    main(
        ["size", "--size", "B/16", "--hidden_size", "192", "--num_attention_heads", "3", "--intermediate_size", "768"]
    )
    assert numbers(capsys.readouterr().out, "all")[0] == "5,717,416"  # DeiT-Ti


def test_a_recipe_and_a_field_that_wins_over_it(tmp_path, capsys):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("size: digits-tiny\nstem: conv\nnum_hidden_layers: 2\nlearning_rate: 1e-3\n")
    main(["size", "--recipe", str(recipe), "--num_hidden_layers", "3", "--batch_size", "4"])
    printed = capsys.readouterr().out
    config = ViTScratchConfig.from_size("digits-tiny", stem="conv", num_hidden_layers=3, num_labels=10)
    assert numbers(printed, "all")[0] == f"{ViTScratchForImageClassification(config).num_parameters():,}"
    assert "batch of 4" in printed


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--size", "huge"], "unknown size 'huge'"),
        (["--hiden_size", "96"], "--hiden_size"),
        (["--hidden_size", "wide"], "wide"),
        (["--num_attention_heads", "5"], "num_attention_heads (5)"),
        (["--recipe", "nowhere"], "no recipe 'nowhere'"),
        (["--recipe", "{folder}/misspelt.yaml"], "unknown keys: hiden_size"),
        (["--recipe", "digits-finetune"], "fine-tunes a pre-trained model and names no size"),
        (["--num_labels", "0"], "num_labels"),
        (["--batch_size", "0"], "--batch_size must be at least 1"),
    ],
)
def test_bad_input_is_refused_in_one_line(tmp_path, capsys, argv, words):
    (tmp_path / "misspelt.yaml").write_text("size: digits-tiny\nhiden_size: 96\n")
    assert words in refused(capsys, "size", *(part.format(folder=tmp_path) for part in argv))


def test_fields_belong_to_size_alone(capsys):
    assert "unrecognized arguments: --hidden_size 96" in refused(
        capsys, "predict", "x.png", "--model", "m", "--hidden_size", "96"
    )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_memory_of_a_training_step_is_what_torch_tracks(checkpointing):
    config, images = ViTScratchConfig.from_size("S/16"), 16
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        model = ViTScratchForImageClassification(config).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    tracker = MemTracker()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        pixels = torch.empty(images, 3, 224, 224)
        # The average, and the two moments of AdamW.
        others = [torch.empty_like(parameter) for parameter in model.parameters() for _ in range(3)]
        tracker.track_external(model, pixels, *others)
        with tracker:
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(pixels, labels=torch.zeros(images, dtype=torch.long)).loss
            loss.backward()
        peak = tracker.get_tracker_snapshot("peak")
    (tracked,) = [parts["Total"] for parts in peak.values()]
    # Above it, since gradients and activations are counted as if all were there at the same time.
    assert 1 <= sum(training_memory(config, images, checkpointing=checkpointing).values()) / tracked < 1.15


def test_shards_of_all_devices_make_the_whole():
    config = ViTScratchConfig.from_size("digits-small")
    alone, shard = training_memory(config, 8), training_memory(config, 8, 2, sharded=True)
    for name in ("weights", "gradients", "AdamW", "average"):
        assert 2 * shard[name] == alone[name]
    assert shard["activations"] == alone["activations"]
    assert sum(training_memory(config, 8, 2).values()) - sum(alone.values()) == alone["gradients"]  # DDP's buckets
