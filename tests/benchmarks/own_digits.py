"""How many pictures of digits a model reads, of the 49 kinds of digit_pictures.py.

    python tests/benchmarks/own_digits.py --half making
    python tests/benchmarks/own_digits.py --half once nothing --model output/fold1 --data digit-recognizer.zip

Every kind is 100 pictures, drawn from a seed. The ink is a digit of scikit-learn's `load_digits`, a character of a
font or, with --data, a digit of the competition that was held out from the training of --model. The method of
`do_center_digit` was made on the kinds of the half "making"; the kinds of the half "once" were looked at once, when
it was finished. "nothing" is what holds no digit: blank pages, textures and letters. "Of the ink itself": how many
the model reads when its ink is drawn as MNIST's makers would have, with nothing lost; "right of both": of these.
"""

import argparse
import io
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from digit_pictures import FONTS, KINDS, NOTHING, PENS, Ink, encoded, from_font, from_pixels, paper
from PIL import Image
from scipy import ndimage

from hf_vit_scratch.model.digits_vit_scratch import clearest_digit
from hf_vit_scratch.model.image_processing_vit_scratch import convert_image

ROOT = Path(__file__).resolve().parents[2]


# ---- the measure


class Digit(NamedTuple):
    ink: Ink
    label: int


def handwriting(model: str, data: str | None) -> list[list[np.ndarray]]:
    """uint8 images of handwritten digits by source and label: scikit-learn's, and the held-out rows of the model."""
    from sklearn.datasets import load_digits

    small = load_digits()
    sources = [(small.images * 255 / 16, small.target)]
    if data is not None:
        from hf_vit_scratch.data.pixels import known_labels, pixel_array
        from hf_vit_scratch.output_folder import SETTINGS_NAME, read_json
        from hf_vit_scratch.settings.flags import DataArguments

        used = read_json(Path(model, SETTINGS_NAME))["data"]
        fold = {name: used[name] for name in ("fold", "num_folds", "validation_size", "split_seed")}
        rows = DataArguments(data=data, **fold).load_splits()["validation"]
        sources.append((pixel_array(rows)[..., 0], known_labels(rows)))
    return [[images[labels == label] for label in range(10)] for images, labels in sources]


def digits(kind: str, number: int, hands: list[list[np.ndarray]]) -> list[tuple[Digit, np.random.Generator]]:
    """The digits of a kind, and the random numbers that draw each: the same ones whatever is measured beside it."""
    drawn = []
    for index in range(number):
        rng = np.random.default_rng([*kind.encode(), index])
        label = index % 10
        if "printed" in kind:
            ink = from_font(str(label), FONTS[index // 10 % len(FONTS)])
        else:
            images = hands[index // 10 % len(hands)][label]
            ink = from_pixels(images[rng.integers(len(images))])
        ink = PENS.get(kind, lambda ink: ink)(ink)
        drawn.append((Digit(ink, label), rng))
    return drawn


def as_mnist(ink: Ink) -> bytes:
    """What MNIST's makers would have made of the ink, with nothing lost: the ceiling of any method."""
    size = [max(1, round(20 * side / max(ink.shape))) for side in ink.shape[::-1]]
    box = np.asarray(Image.fromarray((ink * 255).astype(np.uint8)).resize(size, Image.Resampling.BOX), float)
    page = np.zeros((60, 60))
    page[20 : 20 + box.shape[0], 20 : 20 + box.shape[1]] = box
    row, column = (round(float(one)) for one in ndimage.center_of_mass(page))
    return encoded(Image.fromarray(page[row - 14 : row + 14, column - 14 : column + 14].astype(np.uint8)))


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "model_cards/vit-scratch-digits-small"))
    parser.add_argument("--data", help="The competition's zip, from whose held-out rows half of the ink then comes.")
    parser.add_argument("--half", choices=("making", "once", "nothing"), nargs="+", default=["making"])
    parser.add_argument("--kinds", nargs="+", help="Only these kinds.")
    parser.add_argument("--number", type=int, default=100, help="Pictures of a kind (default: %(default)s).")
    parser.add_argument("--plain", action="store_true", help="With do_center_digit off: the state before it.")
    parser.add_argument("--write", type=Path, help="Folder for the pictures that are read wrongly.")
    parser.add_argument("--json", type=Path, help="File for the figures.")
    options = parser.parse_args()
    measured = Measure(options)
    rows = [row for half in options.half for row in (measured.nothing() if half == "nothing" else measured.half(half))]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


class Measure:
    """Reads the pictures of each kind with one model, and prints a line for each."""

    def __init__(self, options: argparse.Namespace):
        import torch

        from hf_vit_scratch.evaluation.classifier import load_model

        self.options, self.torch = options, torch
        self.model, self.processor = load_model(options.model, torch.device("cpu"))
        self.hands = handwriting(options.model, options.data)

    def scores(self, image: Image.Image) -> np.ndarray:
        """The probabilities of the ten digits, of an image that is prepared already."""
        with self.torch.inference_mode():
            inputs = self.processor(image, do_center_digit=False, return_tensors="pt")
            return self.model(**inputs).logits.softmax(dim=-1)[0].numpy()

    def nothing(self) -> list[dict]:
        """How many pictures without a digit are refused, and how many of the others have a score above a threshold."""
        rows, thresholds = [], (0.5, 0.8, 0.9, 0.95, 0.99)
        print(f"| no digit | refused | {' | '.join(f'above {one}' for one in thresholds)} |")
        print("| --- |" + " --- |" * (1 + len(thresholds)))
        drawn = {**NOTHING, "digit, for comparison": None}
        for name, draw in drawn.items():
            best = []
            for index in range(self.options.number):
                if draw is None:
                    digit, rng = digits("paper", index + 1, self.hands)[-1]
                    image = opened(paper(digit.ink, rng))
                else:
                    image = opened(draw(np.random.default_rng([*name.encode(), 1, index])))
                given = clearest_digit(convert_image(image, 3), 28)
                best.append(self.scores(given).max() if given.getbbox() else 0.0)
            shares = [float(np.mean(np.array(best) > one)) for one in (0.0, *thresholds)]
            rows.append(
                {"kind": name, "refused": 1 - shares[0], **dict(zip(map(str, thresholds), shares[1:], strict=True))}
            )
            print(f"| {name} | {1 - shares[0]:.0%} | {' | '.join(f'{one:.0%}' for one in shares[1:])} |", flush=True)
        return rows

    def half(self, half: str) -> list[dict]:
        """Right, right of those that are read from their ink itself, and how many were taken for blank, by kind."""
        rows = []
        print(f"| {half} | right | right of the ink itself | right of both | taken for blank |")
        print("| --- |" + " --- |" * 4)
        for name, draw in KINDS[half].items():
            if self.options.kinds and name not in self.options.kinds:
                continue
            right, best, missed = [], [], 0
            for index, (digit, rng) in enumerate(digits(name, self.options.number, self.hands)):
                image = opened(content := draw(digit.ink, rng))
                given = image if self.options.plain else clearest_digit(convert_image(image, 3), 28)
                found = self.scores(given).argmax()
                missed += given.getextrema() == (0, 0)
                right.append(found == digit.label)
                ceiling = opened(as_mnist(digit.ink))
                best.append(self.scores(ceiling).argmax() == digit.label)
                if self.options.write and not right[-1]:
                    self.options.write.mkdir(parents=True, exist_ok=True)
                    name_of_it = f"{name}-{index:03}-{digit.label}-read-as-{found}"
                    (self.options.write / f"{name_of_it}.{image.format.lower()}").write_bytes(content)
            shares = {"right": np.mean(right), "ink": np.mean(best), "of_both": np.mean(np.array(right)[best])}
            rows.append({"kind": name, **{key: float(share) for key, share in shares.items()}, "blank": missed})
            print(f"| {name} | {' | '.join(f'{share:.0%}' for share in shares.values())} | {missed} |", flush=True)
        means = [np.mean([row[key] for row in rows]) for key in ("right", "ink", "of_both")]
        print(f"| mean | {' | '.join(f'{mean:.1%}' for mean in means)} | {sum(row['blank'] for row in rows)} |")
        return rows


if __name__ == "__main__":
    main()
