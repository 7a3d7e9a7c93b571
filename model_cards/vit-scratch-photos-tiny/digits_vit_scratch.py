"""Find the digits in a picture, and draw each as MNIST has them: light ink on black, centred.

MNIST was made from bilevel images that "were size normalized to fit in a 20x20 pixel box while preserving their aspect
ratio" and "centered in a 28x28 image by computing the center of mass of the pixels" (Yann LeCun, Corinna Cortes and
Christopher Burges, http://yann.lecun.com/exdb/mnist/). [`find_digits`] does this to pictures as people have them.

What is paper is tried in three ways: the one colour that most of the border of the picture has, and grey closing
(dark ink) or opening (light ink) with a large and a small window, in the colour with the most contrast. Connected ink
makes parts, and near parts a digit. A digit counts by its contrast, its height, and how even the paper around it is.
Arrays are `(height, width)`, boxes `(top, left, bottom, right)` in pixels of the reduced picture.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

AREA = 40_000  # number of pixels of the reduced picture in which digits are looked for
CROP_AREA = 10_000  # and of the part of the picture from which a digit is then drawn
WINDOWS = (0.4, 0.15)  # sides of the windows of closing and opening, as a fraction of the shorter side
LEAST_SCORE = 0.085  # of a digit: nearly all blank pages have less, and nearly all digits in a shadow have more
CLEAR_SCORE = 0.5  # of a digit on paper of one colour, with which no other paper is tried
MOST_DIGITS = 12  # more are a texture


# Red, green, blue and grey of the paper, or the window of closing and opening as a fraction of the shorter side.
_Paper = np.ndarray | float


class Digit(NamedTuple):
    """A digit and what the model is given of it.

    `box` is `(left, top, right, bottom)` in pixels of the picture. `clarity`, from 0 to 1, is how much it looks like
    ink on paper. `pixels` are uint8, `(side, side)`; `ink`, 0 to 255, is that of each pixel of the enlarged box.
    """

    box: tuple[int, int, int, int]
    clarity: float
    pixels: np.ndarray
    ink: np.ndarray


class _Group(NamedTuple):
    box: list[int]
    members: list[int]  # labels of its parts
    size: int  # number of pixels
    mass: float  # sum of the contrast


class _View(NamedTuple):
    """A reduced picture, in one colour and for one kind of ink: its pixels, and contrasts from 0 to 1."""

    pixels: np.ndarray
    ink: np.ndarray
    other: np.ndarray  # contrast of what would be ink of the other kind
    kind: tuple[int, int]  # 0 for dark ink or 1 for light ink, and the channel
    paper: _Paper


def find_digits(image: Image.Image, side: int) -> list[Digit]:
    """The digits of an RGB picture, from left to right; none in a blank page or a texture.

    A picture of `side` x `side` pixels that is light ink on black is one digit already, whose pixels stay as they are.
    """
    if image.size == (side, side) and is_light_on_black(grey := np.asarray(image.convert("L"))):
        rows, columns = (np.flatnonzero((grey > 127).any(axis)) for axis in (1, 0))
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        return [Digit(box, 1.0, grey, grey)]
    best, chosen = LEAST_SCORE, None
    for paper in _papers(image):
        labels, scored, view = max((_candidates(view) for view in _views(image, paper)), key=_best)
        if scored and scored[0][0] > (best if chosen is None else 1.3 * best):  # a wider window splits less
            best, chosen = scored[0][0], (labels, scored, view)
        if best > CLEAR_SCORE and not isinstance(paper, float):
            break
    if chosen is None:
        return []
    labels, scored, view = chosen
    kept = sorted((group.box[1], score, group) for score, group in scored if score > best / 4)
    if len(kept) > MOST_DIGITS:
        return []
    across, down = image.width / labels.shape[1], image.height / labels.shape[0]
    digits = []
    for _, score, group in kept:
        top, left, bottom, right = group.box
        box = (int(left * across), int(top * down), round(right * across), round(bottom * down))
        ink = _ink_of(image, np.isin(labels, group.members), group.box, view)
        digits.append(Digit(box, min(1.0, float(score)), _place(ink, side), (ink * 255).astype(np.uint8)))
    return digits


def clearest_digit(image: Image.Image, side: int) -> Image.Image:
    """What the model is given of the clearest digit of an RGB picture, as a grey image; black if there is none."""
    digits, black = find_digits(image, side), np.zeros((side, side), np.uint8)
    return Image.fromarray(max(digits, key=lambda digit: digit.clarity).pixels if digits else black)


def is_light_on_black(grey: np.ndarray) -> np.ndarray:
    """Whether uint8 pictures `(..., height, width)` are light ink on a black ground, as MNIST's are."""
    frame = np.concatenate([grey[..., 0, :], grey[..., -1, :], grey[..., 0], grey[..., -1]], axis=-1)
    return (np.median(frame, axis=-1) < 32) & (grey.max(axis=(-2, -1)) > 127)


# ---- ink and paper


def _papers(image: Image.Image) -> list[_Paper]:
    """What the paper may be. It has one colour if most of the border of the picture has."""
    reduced = image.resize([min(64, length) for length in image.size], Image.Resampling.BOX)
    pixels = _bands(reduced)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    colour = np.median(border, axis=0)
    is_even = (abs(border - colour).max(axis=1) < 5).mean() > 0.6
    return [colour, *WINDOWS] if is_even else [*WINDOWS]


def _bands(image: Image.Image) -> np.ndarray:
    """Red, green, blue and grey, `(height, width, 4)`, from 0 to 255."""
    return np.dstack([np.asarray(image), np.asarray(image.convert("L"))]).astype(np.float32)


def _contrasts(image: Image.Image, area: int, paper: _Paper) -> tuple[np.ndarray, np.ndarray]:
    """Bands without specks, and the contrast of all pixels to the paper as dark and as light ink, from 0 to 1."""
    scale = (area / (image.width * image.height)) ** 0.5
    size = [max(1, round(length * scale)) for length in image.size]
    image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2)
    pixels, calm = _bands(image), _bands(image.filter(ImageFilter.MedianFilter(3)))
    ground = paper
    if isinstance(paper, float):
        window = max(3, round(paper * min(size))) | 1
        paper, ground = _closing(calm, window), -_closing(-calm, window)
    return calm, np.maximum([paper - pixels, pixels - ground], 0) / np.maximum(paper, 96)


def _closing(array: np.ndarray, size: int) -> np.ndarray:
    """Grey closing by a square window of odd size: what is darker and narrower than the window is filled."""
    wide = np.pad(array, [(size, size)] * 2 + [(0, 0)] * (array.ndim - 2), mode="edge")
    return -_highest(-_highest(wide, size), size)[size:-size, size:-size]


def _highest(array: np.ndarray, size: int) -> np.ndarray:
    """The maximum over a square window of odd size around each pixel; edge pixels go on outside of the picture."""
    array = np.pad(array, [(size // 2, size // 2)] * 2 + [(0, 0)] * (array.ndim - 2), mode="edge")
    for axis in (0, 1):
        array, width = np.moveaxis(array, axis, 0), 1
        while width < size:
            step = min(width, size - width)
            array, width = np.maximum(array[:-step], array[step:]), width + step
        array = np.moveaxis(array, 0, axis)
    return array


def _views(image: Image.Image, paper: _Paper) -> list[_View]:
    """The picture as dark and as light ink, in the channel with the most contrast."""
    pixels, contrasts = _contrasts(image, AREA, paper)
    channel = int(((contrasts**2).sum(axis=(0, 1, 2)) * (1, 1, 1, 1.3)).argmax())  # grey has the least noise
    both = contrasts[..., channel]
    return [_View(pixels[..., channel], both[kind], both[1 - kind], (kind, channel), paper) for kind in (0, 1)]


def _without_lines(contrast: np.ndarray) -> np.ndarray:
    """Without noise, and without the straight lines that run from one side of the picture to the other."""
    contrast = np.maximum(contrast - np.quantile(contrast, 0.3), 0)
    lines = []
    for rows in (contrast, contrast.T):
        end = max(1, rows.shape[1] // 20)
        ends = [np.median(rows[:, part], axis=1) for part in (slice(end), slice(-end, None))]
        lines.append(np.minimum.reduce([np.quantile(rows, 0.25, axis=1), *ends]))
    return np.maximum(contrast - np.maximum(lines[0][:, None], lines[1]), 0)


# ---- from ink to digits


def _candidates(view: _View) -> tuple[np.ndarray, list[tuple[float, _Group]], _View]:
    """Labels of the parts of the ink; the groups of parts that may be digits, with scores, best first; the view."""
    ink = _without_lines(view.ink)
    high, low = _highest(view.pixels, 3), -_highest(-view.pixels, 3)
    clutter = np.maximum(ink, (high - low) / np.maximum(high, 96))
    strongest = np.sort(ink, axis=None)[-min(24, ink.size)]
    noise = np.subtract(*np.quantile(view.ink, (0.5, 0.16)))
    if strongest < max(0.06, 5 * noise):
        return np.zeros(ink.shape, int), [], view
    labels = _components(ink > 0.45 * strongest)
    names, sizes = np.unique(labels[labels > 0], return_counts=True)
    parts = []
    for name in names[np.argsort(-sizes)][:40]:
        rows, columns = np.nonzero(labels == name)
        top, left, bottom, right = box = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
        part = labels[top:bottom, left:right] == name
        is_corner = name in labels[[0, 0, -1, -1], [0, -1, 0, -1]] and max(part.shape) < 0.4 * min(labels.shape)
        if not (is_corner or _is_frame(part) or _is_sheet(part, labels.size)):
            parts.append(_Group(box, [name], len(rows), float(ink[rows, columns].sum())))
    scored = []
    for group in _grouped(parts):
        length = max(group.box[2] - group.box[0], group.box[3] - group.box[1]) / min(ink.shape)
        if group.size >= 12 and length >= 0.05:
            quality = _quality(group, np.isin(labels, group.members), clutter, view)
            scored.append((quality * group.mass / group.size * length**0.25, group))
    return labels, sorted((one for one in scored if one[0] > 0), key=lambda one: -one[0]), view


def _best(found: tuple[np.ndarray, list[tuple[float, _Group]], _View]) -> float:
    """The highest score of the candidates of a view."""
    return found[1][0][0] if found[1] else 0.0


def _components(mask: np.ndarray) -> np.ndarray:
    """Labels of the connected parts of a mask, diagonals included; 0 outside."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        spread = np.append(0, np.where(mask, _highest(labels, 3), 0))
        spread = spread[spread[1:]].reshape(mask.shape)  # a label is the place of a pixel: take that pixel's label
        if (spread == labels).all():
            return labels
        labels = spread


def _is_frame(part: np.ndarray) -> bool:
    """Whether a part outlines a box or a sheet: ink along all sides and in the corners, none in the middle."""
    high, wide = (max(1, round(0.12 * length)) for length in part.shape)
    bands = [part[:high].any(0), part[-high:].any(0), part[:, :wide].any(1), part[:, -wide:].any(1)]
    corners = [part[r, c].any() for r in (slice(high), slice(-high, None)) for c in (slice(wide), slice(-wide, None))]
    middle = part[part.shape[0] // 4 : -part.shape[0] // 4, part.shape[1] // 4 : -part.shape[1] // 4]
    return min(part.shape) > 8 and all(corners) and min(b.mean() for b in bands) > 0.6 and not middle.any()


def _is_sheet(part: np.ndarray, area: int) -> bool:
    """Whether a part is a sheet of paper on a table: much of a picture of so many pixels, and nearly a rectangle."""
    return part.sum() > 0.2 * area and part.mean() > 0.75 and min(part.shape) > 0.5 * max(part.shape)


def _grouped(groups: list[_Group]) -> list[_Group]:
    """Join parts that belong together, until none do: strokes that a pen left apart, such as the bar of a 5."""
    for index, one in enumerate(groups):
        for other in groups[index + 1 :]:
            if _belong_together(one.box, other.box):
                box = [min(one.box[0], other.box[0]), min(one.box[1], other.box[1])]
                box += [max(one.box[2], other.box[2]), max(one.box[3], other.box[3])]
                both = _Group(box, one.members + other.members, one.size + other.size, one.mass + other.mass)
                return _grouped([each for each in groups if each not in (one, other)] + [both])
    return groups


def _belong_together(one: list[int], other: list[int]) -> bool:
    """Whether two boxes nearly touch, or lie over one another with a gap that is small, or larger for a short part."""
    down, across = (max(one[k], other[k]) - min(one[k + 2], other[k + 2]) for k in (0, 1))  # negative: they overlap
    narrow, tall = min(one[3] - one[1], other[3] - other[1]), max(one[2] - one[0], other[2] - other[0])
    gap = 0.4 if 0.15 < min(one[2] - one[0], other[2] - other[0]) / tall < 0.5 else 0.15
    return max(down, across) <= 0.06 * tall or (-across >= 0.3 * narrow and down <= gap * tall)


def _quality(group: _Group, mask: np.ndarray, clutter: np.ndarray, view: _View) -> float:
    """How much a group looks like ink on paper, at most 1: the paper around its box is even, and its edge is not ink
    of the other kind, as is that of the hole of a 0."""
    top, left, bottom, right = group.box
    margin = max(2, round(0.12 * max(bottom - top, right - left)))
    around = np.zeros(mask.shape, bool)
    around[max(0, top - margin) : bottom + margin, max(0, left - margin) : right + margin] = True
    around[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1] = False
    rough, seen = 0.0, 0.0  # a digit that fills its picture has no paper around it
    if np.count_nonzero(around) > 8:
        seen = np.count_nonzero(around) / (2 * margin * (bottom - top + right - left + 2 * margin))
        step = np.subtract(*np.quantile(view.pixels[around], (0.75, 0.25))) / max(96, view.pixels[around].max())
        rough = max(np.quantile(clutter[around], 0.7), 0.3 * step)
    contrast = group.mass / group.size
    edge = view.other[_highest(mask, 5) & ~mask]
    beside = min(1.0, edge.mean() / contrast) if edge.size else 0.0
    least = 0.1 if isinstance(view.paper, float) else 0.4  # edges of sheets and shadows lie at the border
    return (1 - beside) * min(1.0, least + seen) * (1 - 3 * rough / contrast)


# ---- drawing a digit


def _ink_of(image: Image.Image, mask: np.ndarray, box: list[int], view: _View) -> np.ndarray:
    """Ink from 0 to 1 of a digit with some paper around it, from the full picture: soft edges, no neighbours."""
    top, left, bottom, right = box
    length = max(bottom - top, right - left)
    margin = 0.25 * length + 2
    top, left = max(0, top - margin), max(0, left - margin)
    bottom, right = min(mask.shape[0], bottom + margin), min(mask.shape[1], right + margin)
    down, across = image.height / mask.shape[0], image.width / mask.shape[1]
    start = round(left * across), round(top * down)
    crop = image.crop((*start, max(start[0] + 1, round(right * across)), max(start[1] + 1, round(bottom * down))))
    paper = WINDOWS[0] * max(crop.size) / min(crop.size) if isinstance(view.paper, float) else view.paper
    contrast = _contrasts(crop, CROP_AREA, paper)[1][view.kind[0], ..., view.kind[1]]
    found = Image.fromarray(mask.astype(np.uint8) * 255)
    size = contrast.shape[::-1]
    found = np.asarray(found.resize(size, Image.Resampling.BILINEAR, box=(left, top, right, bottom))) > 127
    if not found.all():
        contrast = _without_lines(np.maximum(contrast - np.median(contrast[~found]), 0))
    labels = _components(contrast > 0.4 * np.quantile(contrast[found], 0.75))
    of_digit = np.isin(labels, np.unique(labels[found & (labels > 0)]))
    if not of_digit.any():  # a few pixels, which the reduced picture has blurred
        return found.astype(np.float32)
    contrast *= _highest(of_digit, 3)
    full = np.median(contrast[contrast > 0.5 * np.sort(contrast, axis=None)[-20]])
    ink = np.clip((contrast / full - 0.3) / 0.4, 0, 1)
    gap = round(0.06 * length * ink.shape[0] / (bottom - top)) | 1
    return _closing(ink, gap) if gap > 1 else ink  # where a pen skipped


def _place(ink: np.ndarray, side: int) -> np.ndarray:
    """Draw ink in 20/28 of the side, around its centre of mass. Strokes below 2 of 28 pixels are made that wide."""
    outline = sum(abs(np.diff(ink, axis=axis)).sum() for axis in (0, 1)) * np.pi / 4
    grow = int((_length(ink) / 10 - 2 * ink.sum() / max(outline, 1)) / 2 + 0.75)
    if grow > 0:
        ink = _highest(np.pad(ink, grow), 2 * grow + 1)
    rows, columns = (np.flatnonzero((ink > 0.5).any(axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    size = [max(1, round(length * side * 20 / 28 / max(ink.shape))) for length in ink.shape[::-1]]
    digit = np.asarray(Image.fromarray((ink * 255).astype(np.uint8)).resize(size, Image.Resampling.BOX))
    centre = [digit.sum(1 - axis) @ (np.arange(digit.shape[axis]) + 0.5) / digit.sum() for axis in (0, 1)]
    top, left = (round(1.5 * side - float(place)) for place in centre)
    page = np.zeros((3 * side, 3 * side), np.uint8)  # with room for what leaves the picture
    page[top : top + digit.shape[0], left : left + digit.shape[1]] = digit
    return page[side : 2 * side, side : 2 * side]


def _length(ink: np.ndarray) -> int:
    """Longer side of the box around the ink, in pixels."""
    return max(int(np.ptp(np.flatnonzero((ink > 0.5).any(axis)))) + 1 for axis in (0, 1))
