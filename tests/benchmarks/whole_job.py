"""One run of `train.py`, timed, and of what it is compared with. A process each: run.py starts them in turns.

    python tests/benchmarks/whole_job.py ours RECIPE WARMUP STEPS [FLAG ...]   train.py's and the bare loop's images/s
    python tests/benchmarks/whole_job.py peer RECIPE WARMUP STEPS              those of transformers' ViT and Trainer

"ours" is `train.py` (data, augmentation, moving average, logging and all) on the sample or with the flags given, and
after it, in the same process, a bare loop of forward, backward and AdamW on one batch with the very model that it
trained, compiled or not.
The peer has the size of digits-tiny and the usual way: torchvision's transforms in `with_transform`, a Trainer with
its defaults.
"""

import sys
import tempfile
import time

import torch
import transformers
from torch.nn.functional import cross_entropy


class Timer(transformers.TrainerCallback):
    """Images per second between two steps."""

    def __init__(self, warmup: int):
        self.warmup = warmup

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.warmup:
            self.start = time.perf_counter()

    def on_train_end(self, args, state, control, **kwargs):
        seconds = time.perf_counter() - self.start
        self.rate = args.per_device_train_batch_size * (state.global_step - self.warmup) / seconds


def bare_loop(trainer, warmup: int, steps: int) -> float:
    """Images per second of the trainer's model without the trainer."""
    model, size = trainer.model_wrapped, trainer.args.per_device_train_batch_size
    inputs = trainer._with_pixel_values(trainer.train_dataset.__getitems__(list(range(size))), augment=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    model.train()
    for step in range(warmup + steps):
        if step == warmup:
            start = time.perf_counter()
        with trainer.compute_loss_context_manager():
            loss = cross_entropy(model(pixel_values=inputs["pixel_values"]).logits, inputs["labels"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return size * steps / (time.perf_counter() - start)


def run_ours(recipe: str, warmup: int, steps: int, folder: str, more: list[str]) -> list[float]:
    from hf_vit_scratch.settings.flags import parse_arguments
    from hf_vit_scratch.training import assembly, train

    timer, bare = Timer(warmup), []

    class TimedTrainer(assembly.ViTScratchTrainer):
        def train(self, *args, **kwargs):
            self.add_callback(timer)
            result = super().train(*args, **kwargs)
            bare.append(bare_loop(self, warmup, steps))
            return result

    assembly.ViTScratchTrainer = TimedTrainer
    # 4,480 rows are 35 whole batches of 128: one shape to compile.
    flags = ["--validation_size", "0.104", "--max_steps", str(warmup + steps), "--eval_strategy", "no"]
    # A ratio of so short a run would log at every step.
    flags += ["--logging_steps", "10", "--save_strategy", "no", "--disable_tqdm", "true"]
    flags += ["--output_dir", f"{folder}/out"]
    train(parse_arguments(["--recipe", recipe, *flags, *more]))
    return [timer.rate, *bare]


def run_peer(recipe: str, warmup: int, steps: int, folder: str, more: list[str]) -> list[float]:
    from peers import transformers_vit
    from torchvision.transforms import v2

    from hf_vit_scratch import ViTScratchConfig, data

    transform = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomAffine(15, (0.07, 0.07), (0.85, 1.15), 10),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5], [0.5]),
        ]
    )

    def transformed(rows):
        return {"pixel_values": [transform(image) for image in rows["image"]], "labels": rows["label"]}

    def collate(rows):
        labels = torch.tensor([row["labels"] for row in rows])
        return {"pixel_values": torch.stack([row["pixel_values"] for row in rows]), "labels": labels}

    timer = Timer(warmup)
    arguments = transformers.TrainingArguments(
        folder,
        max_steps=warmup + steps,
        per_device_train_batch_size=128,
        remove_unused_columns=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    model = transformers_vit(ViTScratchConfig.from_size("digits-tiny", num_labels=10), "sdpa").model
    split = data.load("sample")["train"].with_transform(transformed)
    transformers.Trainer(model, arguments, train_dataset=split, data_collator=collate, callbacks=[timer]).train()
    return [timer.rate]


if __name__ == "__main__":
    kind, recipe, warmup, steps, *more = sys.argv[1:]
    if kind == "peer" and more:
        raise SystemExit(f"peer takes no flags of train.py, got {' '.join(more)}.")
    with tempfile.TemporaryDirectory() as folder:
        measured = {"ours": run_ours, "peer": run_peer}[kind](recipe, int(warmup), int(steps), folder, more)
    print("images/s", *measured)
