"""Whether the learning rates that the study of data tunes, on all images with augmentation, are good elsewhere too.

    python tests/benchmarks/learning_rates.py --study data --data digit-recognizer.zip --recipe digits-short \
        --num_train_epochs 6 --position_embedding learned

Takes the flags of `vit-scratch explore`. Each family is trained once with each rate, on all images without
augmentation and on the fewest with and without it, and measured on the rows for choosing.
"""

import sys

from hf_vit_scratch.exploration.arguments import parse_exploration
from hf_vit_scratch.exploration.spec import Spec
from hf_vit_scratch.exploration.trial import TrialRunner


def main(argv: list[str]) -> None:
    runner = TrialRunner(*parse_exploration(argv))
    tried, fewest = runner.bounds["learning_rate"], min(runner.bounds["fraction"])
    print("| images | augmented | trained | learning rate | wrong | negative log-likelihood |")
    print("| --- | --- | --- | --- | --- | --- |")
    for fraction, augmented in ((1.0, False), (fewest, False), (fewest, True)):
        for family, fields in runner.families.items():
            for rate in tried:
                found = runner.train(Spec(family, fields, rate, fraction=fraction, augmented=augmented))
                print(
                    f"| {found['train_images']:,} | {augmented} | {family} | {rate:g} "
                    f"| {found['errors']} of {found['num_images']:,} | {found['negative_log_likelihood']:.4f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main(sys.argv[1:])
