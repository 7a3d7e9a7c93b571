"""What the names of splits, classes and files say, and how messages list names."""

import os
import re
import unicodedata
from collections.abc import Collection

# The words for each split, the usual one first. All readers know the same.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval", "evaluation"),
    "test": ("test", "testing", "holdout"),
}
# Words that say nothing beside one of those, or as the name of a folder.
PLAIN_WORDS = {"set", "data", "dataset", "image", "images", "img", "imgs", "photos", "pictures", "files", "split"}

_SPLITS = {word: split for split, words in SPLIT_NAMES.items() for word in words}
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_COMPOUND = re.compile(rf"\b({'|'.join(_SPLITS)})({'|'.join(PLAIN_WORDS)})\b")  # such as testset
_SHOWN = 3


def words(name: str) -> set[str]:
    """The words of a name, in lower case: `{"train", "images"}` for train_images, TrainImages and trainimages."""
    text = " ".join(re.split(r"[\W\d_]+", _CAMEL.sub(" ", name))).lower()
    return set(_COMPOUND.sub(r"\1 \2", text).split())


def split_of(name: str) -> str | None:
    """The split that a name says: train for seg_train. None for a name of no split, or of several."""
    found = {_SPLITS[word] for word in words(name) if word in _SPLITS}
    return found.pop() if len(found) == 1 else None


def is_split(name: str) -> bool:
    """Whether a name says a split and nothing else, as Train_Set does and seg_train does not."""
    return split_of(name) is not None and words(name) <= _SPLITS.keys() | PLAIN_WORDS


def is_plain(name: str) -> bool:
    """Whether a name says nothing, as that of a folder `images` around the folders of classes."""
    return bool(words(name)) and words(name) <= PLAIN_WORDS


def plain_name(name: str) -> str:
    """A class name without what is easily mistyped: case, spaces around it, forms of one character in Unicode."""
    return unicodedata.normalize("NFKC", " ".join(name.split())).casefold()


def natural(path: str) -> tuple[list[list], str]:
    """Key that sorts 2 before 10, folder by folder."""
    parts = [re.split("([0-9]+)", name) for name in path.split(os.sep)]  # text and digits take turns
    return [[int(w) if at % 2 else w.casefold() for at, w in enumerate(part)] for part in parts], path


def shown(names: Collection[str]) -> str:
    """The first names, in natural order, and the number of the others."""
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(sorted(names, key=natural)[:_SHOWN]) + more


def counted(names: Collection, what: str) -> str:
    """How many they are, and what: `2 files`."""
    return f"{len(names):,} {what}" + ("" if len(names) == 1 else "s")
