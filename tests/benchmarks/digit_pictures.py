"""Pictures of digits as people have them, in 49 kinds, and pictures without a digit, drawn from random numbers."""

import io
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Bold")
FONTS += (
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "cmr10",
    "cmb10",
    "cmss10",
    "cmtt10",
)
LETTERS = "ABCDEFGHJKLMNPQRTUVWXYZabcdefhjkmnprtuvwxy"  # none that is written like a digit
RING = ((1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1))  # shifts that bring the neighbours

Ink = np.ndarray  # how much of each pixel is ink, 0 to 1, cropped to the character


# ---- the ink


def from_pixels(pixels: np.ndarray) -> Ink:
    """The ink of a small grey image, light on dark, as a pen would draw it: enlarged to 200 pixels, sharpened."""
    image = Image.fromarray(np.pad(pixels, 1).astype(np.uint8))
    image = image.resize([side * 200 // max(pixels.shape) for side in image.size], Image.Resampling.BICUBIC)
    return cropped(np.clip((np.asarray(image, np.float32) / 255 - 0.5) * 4 + 0.5, 0, 1))


def from_font(text: str, name: str) -> Ink:
    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf"), 180)
    left, top, right, bottom = font.getbbox(text)
    image = Image.new("L", (int(right - left) + 8, int(bottom - top) + 8))
    ImageDraw.Draw(image).text((4 - left, 4 - top), text, 255, font)
    return cropped(np.asarray(image, np.float32) / 255)


def cropped(ink: Ink) -> Ink:
    rows, columns = (np.flatnonzero(ink.max(axis=axis) > 0.3) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def thinner(ink: Ink, width: int = 3) -> Ink:
    """The skeleton, by Zhang and Suen's thinning, drawn with a pen of about 2 * `width` pixels."""
    shape = ndimage.gaussian_filter(np.pad(ink, 8), 1.5) > 0.5
    last = np.zeros_like(shape)
    while (shape != last).any():
        last = shape
        for corner in (0, 4):
            ring = [np.roll(shape, step, (0, 1)) for step in RING]  # from the north, clockwise
            count = np.sum(ring, axis=0)
            starts = np.sum([~one & other for one, other in zip(ring, ring[1:] + ring[:1], strict=True)], axis=0)
            north, east, south, west = ring[::2] if corner == 0 else ring[4:8:2] + ring[0:4:2]
            open_side = ~(east & south & (north | west))
            shape = shape & ~((count >= 2) & (count <= 6) & (starts == 1) & open_side)
    pen = ndimage.distance_transform_edt(~shape) < width
    return cropped(ndimage.gaussian_filter(pen.astype(np.float32), 0.7))


def thicker(ink: Ink, width: int) -> Ink:
    return cropped(ndimage.grey_dilation(np.pad(ink, width), footprint=disc(width)))


def broken(ink: Ink, rng: np.random.Generator) -> Ink:
    """Cut by two narrow lines, as where a pen skips or a top bar is written apart."""
    rows, columns = np.indices(ink.shape)
    for _ in range(2):
        angle, (row, column) = rng.uniform(0, np.pi), [side * rng.uniform(0.2, 0.8) for side in ink.shape]
        distance = (rows - row) * np.cos(angle) + (columns - column) * np.sin(angle)
        ink = np.where(abs(distance) < max(ink.shape) * 0.022, 0, ink)
    return ink


def tilted(ink: Ink, degrees: float) -> Ink:
    return cropped(ndimage.rotate(np.pad(ink, 8), degrees, order=1))


def disc(radius: int) -> np.ndarray:
    rows, columns = np.indices((2 * radius + 1,) * 2) - radius
    return rows**2 + columns**2 <= radius**2


# ---- paper, light and cameras


class Page:
    """A picture in the making: floats `(height, width, 3)` from 0 to 255, and random numbers for all that happens."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int] | None = None, colour=None):
        self.rng, (height, width) = rng, rng.integers(240, 640, 2) if size is None else size
        colour = rng.uniform(215, 255) + rng.uniform(-8, 8, 3) if colour is None else np.asarray(colour, float)
        self.pixels = np.tile(np.clip(colour, 0, 255).astype(np.float32), (height, width, 1))

    @property
    def height(self) -> int:
        return min(self.pixels.shape[:2])

    def write(self, ink: Ink, colour=None, share: tuple = (0.35, 0.75), place: tuple | None = None, noise: float = 0):
        """Draw ink of the given share of the shorter side at a place `(row, column)`, each from 0 to 1."""
        colour = self.rng.uniform(0, 70) + self.rng.uniform(-15, 15, 3) if colour is None else np.asarray(colour)
        scale = self.height * self.rng.uniform(*share) / max(ink.shape)
        size = [max(1, round(side * scale)) for side in ink.shape[::-1]]
        mask = np.asarray(Image.fromarray((ink * 255).astype(np.uint8)).resize(size, Image.Resampling.LANCZOS)) / 255
        if noise:
            mask = mask * np.clip(self.rng.normal(1, noise, mask.shape), 0, 1)
        free = np.subtract(self.pixels.shape[:2], mask.shape)
        if (free < 0).any():
            raise ValueError(f"ink {mask.shape} does not fit on {self.pixels.shape}")
        where = self.rng.uniform(0.3, 0.7, 2) if place is None else np.asarray(place)
        row, column = (free * where).astype(int)
        under = self.pixels[row : row + mask.shape[0], column : column + mask.shape[1]]
        under += mask[..., None] * (np.clip(colour, 0, 255) - under)
        return self

    def lines(self, gap: float, colour, width: int = 1, both: bool = True, slope: float = 0):
        rows, columns = np.indices(self.pixels.shape[:2])
        start = self.rng.uniform(0, gap)
        drawn = (rows + slope * columns + start) % gap < width
        if both:
            drawn |= (columns - slope * rows + start) % gap < width
        self.pixels[drawn] = self.pixels[drawn] * 0.2 + 0.8 * np.asarray(colour)
        return self

    def cloud(self, cells: int) -> np.ndarray:
        """A smooth random field `(height, width)`, of standard deviation about 1."""
        coarse = Image.fromarray(self.rng.normal(0, 1, (cells, cells)).astype(np.float32))
        return np.asarray(coarse.resize(self.pixels.shape[1::-1], Image.Resampling.BICUBIC))

    def shade(self, strength: float, edge: bool = False):
        """Uneven light; with `edge` also the shadow of a hand or a phone."""
        light = 1 + strength * 0.4 * self.cloud(3)
        if edge:
            rows, columns = np.indices(self.pixels.shape[:2]) / self.height
            angle, soft = self.rng.uniform(0, 2 * np.pi), self.rng.uniform(0.02, 0.15)
            across = (rows - 0.5) * np.cos(angle) + (columns - 0.5) * np.sin(angle) - self.rng.uniform(-0.3, 0.3)
            light = light * (1 - strength / (1 + np.exp(-np.clip(across / soft, -50, 50))))
        self.pixels *= np.clip(light, 0.25, 1.3)[..., None]
        return self

    def grain(self, sigma: float):
        self.pixels += self.rng.normal(0, sigma, self.pixels.shape)
        return self

    def creases(self, strength: float):
        rows, columns = np.indices(self.pixels.shape[:2]) / self.height
        for _ in range(7):
            angle = self.rng.uniform(0, np.pi)
            across = (rows - self.rng.uniform(0, 1)) * np.cos(angle) + (columns - self.rng.uniform(0, 1)) * np.sin(
                angle
            )
            self.pixels *= (1 + strength * np.tanh(across / 0.01) * np.exp(-abs(across) / 0.1))[..., None]
        return self

    def blur(self, share: float):
        self.pixels = ndimage.gaussian_filter(self.pixels, (self.height * share, self.height * share, 0))
        return self

    def on_table(self):
        """The page as a sheet on a table that is darker or lighter, with wood grain, seen in part."""
        page, height, width = self.pixels, *self.pixels.shape[:2]
        table = np.asarray(self.rng.choice([[90, 60, 40], [50, 50, 55], [150, 110, 70]])) + self.rng.uniform(
            -15, 15, 3
        )
        margins = [int(self.height * self.rng.uniform(0.08, 0.25)) for _ in range(4)]
        self.pixels = np.tile(table.astype(np.float32), (height + sum(margins[:2]), width + sum(margins[2:]), 1))
        grain = ndimage.gaussian_filter(self.rng.normal(0, 1, self.pixels.shape[:2]), (1, 25))
        self.pixels += 8 * (grain / grain.std())[..., None]
        self.pixels[margins[0] :][:height, margins[2] :][:, :width] = page
        self.pixels = ndimage.rotate(self.pixels, self.rng.uniform(-6, 6), order=1, mode="nearest", reshape=False)
        return self

    def image(self) -> Image.Image:
        return Image.fromarray(np.clip(self.pixels, 0, 255).astype(np.uint8))

    def png(self, mode: str = "RGB") -> bytes:
        return encoded(self.image().convert(mode))

    def jpeg(self, low: int = 35, high: int = 90, **options) -> bytes:
        return encoded(self.image(), "JPEG", quality=int(self.rng.integers(low, high)), **options)


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


# ---- the kinds of the half "making"

Drawing = Callable[[Ink, np.random.Generator], bytes]


def paper(ink, rng):
    return Page(rng).write(ink).png()


def shadow(ink, rng):
    return Page(rng).write(ink).shade(rng.uniform(0.4, 0.65), edge=True).grain(3).jpeg()


def off_centre(ink, rng):
    return Page(rng).write(ink, share=(0.15, 0.35), place=rng.choice([0.03, 0.97], 2)).png()


def thick(ink, rng):
    return Page(rng).write(ink, share=(0.5, 0.8)).jpeg()


def transparent(ink, rng):
    page = Page(rng, colour=(0, 0, 0)).write(ink, (255, 255, 255))
    alpha = page.image().convert("L")
    colour = tuple(rng.integers(0, 60, 3)) if rng.random() < 0.5 else (255, 255, 255)
    image = Image.new("RGBA", alpha.size, tuple(map(int, colour)))
    image.putalpha(alpha)
    return encoded(image)


def turned_by_exif(ink, rng):
    orientation = int(rng.choice([3, 6, 8]))
    back = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Page(rng).write(ink).grain(2).image().transpose(back), "JPEG", quality=85, exif=exif)


def squared_paper(ink, rng):
    page = Page(rng)
    lines = rng.choice([[150, 170, 215], [175, 175, 175], [150, 190, 160]])
    page.lines(page.height / rng.uniform(8, 16), lines, 1 + page.height // 400).write(ink, rng.uniform(0, 60, 3))
    return page.shade(rng.uniform(0, 0.3)).grain(2).jpeg()


def blackboard(ink, rng):
    page = Page(rng, colour=rng.uniform(20, 60) + rng.uniform(-15, 15, 3))
    return page.write(ink, rng.uniform(190, 255) + rng.uniform(-10, 10, 3), noise=0.3).shade(0.3).grain(5).jpeg()


def dark_on_light_28x28(ink, rng):
    return Page(rng, (28, 28), (255, 255, 255)).write(ink, (0, 0, 0), (20 / 28, 20 / 28), (0.5, 0.5)).png("L")


def on_a_table(ink, rng):
    return Page(rng).write(ink, share=(0.3, 0.6)).on_table().grain(3).jpeg()


def printed(ink, rng):
    return Page(rng).write(ink).grain(2).jpeg()


def pencil(ink, rng):
    page = Page(rng, colour=rng.uniform(200, 245) + rng.uniform(-5, 5, 3))
    return page.write(ink, rng.uniform(110, 150) * np.ones(3), noise=0.35).grain(4).jpeg(60)


def broken_strokes(ink, rng):
    return Page(rng).write(broken(ink, rng)).png()


def modes(ink, rng):
    image = Page(rng).write(ink).image()
    kind = rng.integers(4)
    if kind == 0:
        return encoded(image.convert("CMYK"), "JPEG")
    if kind == 1:
        return encoded(image.quantize(16), "GIF")
    if kind == 2:
        return encoded(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257))
    return encoded(image.convert("1"))


def tilted_page(ink, rng):
    return Page(rng).write(tilted(ink, rng.uniform(-12, 12))).shade(0.2).jpeg()


def specks(ink, rng):
    page = Page(rng).write(ink)
    spots = ndimage.gaussian_filter(rng.random(page.pixels.shape[:2]), 1.2)
    page.pixels[spots < np.quantile(spots, 0.004)] *= 0.3
    return page.png("L")


# ---- more of them


def printed_on_a_tile(ink, rng):
    """An icon: a light digit on a coloured square with round corners."""
    side = int(rng.integers(64, 256))
    tile = Image.new("L", (side, side))
    ImageDraw.Draw(tile).rounded_rectangle([0, 0, side - 1, side - 1], side // 6, fill=255)
    image = Page(rng, (side, side), rng.uniform(0, 150, 3)).write(ink, [255] * 3, (0.45, 0.65), (0.5, 0.5)).image()
    image.putalpha(tile)
    return encoded(image)


def phone(ink, rng):
    page = Page(rng, rng.integers(700, 1400, 2), rng.uniform(170, 230) + rng.uniform(-20, 20, 3))
    page.write(ink, share=(0.2, 0.6))
    return page.blur(0.003).shade(0.5, edge=rng.random() < 0.5).grain(8).jpeg(25, 60)


def coloured(ink, rng):
    one, other = rng.uniform(30, 225, (2, 3))
    while abs(one - other).max() < 90:
        one, other = rng.uniform(30, 225, (2, 3))
    return Page(rng, colour=one).write(ink, other).grain(3).jpeg(60)


def thin(ink, rng):
    return Page(rng).write(ink, share=(0.4, 0.8)).png()


def ruled_paper(ink, rng):
    page = Page(rng)
    page.lines(page.height / rng.uniform(5, 12), rng.choice([[120, 150, 220], [160, 160, 160]]), 2, both=False)
    page.pixels[:, page.pixels.shape[1] // 9 :][:, :2] = (230, 120, 120)
    return page.write(ink, rng.uniform(0, 70, 3)).shade(0.3).grain(3).jpeg()


def small(ink, rng):
    side, (low, high) = int(rng.integers(12, 28)), rng.permutation([rng.uniform(0, 60), rng.uniform(200, 255)])
    return Page(rng, (side, side), [low] * 3).write(ink, [high] * 3, (0.75, 0.95), (0.5, 0.5)).png("L")


def twelve_megapixels(ink, rng):
    page = Page(rng, (3000, 4000)).write(ink, share=(0.1, 0.4))
    return page.shade(0.3).jpeg(70, 90)


def whiteboard(ink, rng):
    page = Page(rng, colour=rng.uniform(170, 220) + rng.uniform(-8, 8, 3))
    colour = np.array([[30, 30, 40], [190, 40, 50], [30, 70, 170], [30, 120, 70]])[rng.integers(4)]
    page.write(ink, colour).shade(0.4)
    rows, columns = np.indices(page.pixels.shape[:2]) / page.height
    row, column = rng.uniform(0, 1, 2)
    page.pixels += 120 * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 0.015)[..., None]
    return page.grain(4).jpeg()


def crumpled(ink, rng):
    return Page(rng).write(ink, rng.uniform(0, 60, 3)).creases(0.12).shade(0.3).grain(3).jpeg()


def paint_program(ink, rng):
    page = Page(rng, (280, 280), (255, 255, 255) if rng.random() < 0.5 else (0, 0, 0))
    page.write((ink > 0.5).astype(np.float32), 255 - page.pixels[0, 0], (0.9, 1.0))
    return encoded(page.image().convert("1", dither=Image.Dither.NONE))


def printed_light_on_colour(ink, rng):
    return Page(rng, colour=rng.uniform(0, 130, 3)).write(ink, rng.uniform(220, 255, 3)).grain(2).jpeg()


def wide_strip(ink, rng):
    height = int(rng.integers(80, 200))
    return Page(rng, (height, height * int(rng.integers(4, 8)))).write(ink, share=(0.5, 0.85)).png()


def out_of_focus(ink, rng):
    return Page(rng).write(ink).blur(rng.uniform(0.008, 0.02)).grain(3).jpeg()


def form_box(ink, rng):
    page = Page(rng, colour=[rng.uniform(235, 255)] * 3)
    side = int(page.height * rng.uniform(0.7, 0.85))
    top, left = (np.array(page.pixels.shape[:2]) - side) // 2
    image = page.image()
    ImageDraw.Draw(image).rectangle([left, top, left + side, top + side], outline=(90, 90, 90), width=2 + side // 150)
    page.pixels = np.asarray(image).astype(np.float32)
    return page.write(ink, share=(0.35, 0.5), place=(0.5, 0.5)).grain(3).jpeg()


def dim(ink, rng):
    ground, step = rng.uniform(60, 180), rng.choice([-1, 1]) * rng.uniform(35, 50)
    return Page(rng, colour=[ground] * 3).write(ink, [ground + step] * 3).grain(2).png()


def yellow_pen(ink, rng):
    colour = np.array([[250, 225, 40], [150, 230, 240], [250, 170, 190]])[rng.integers(3)]
    return Page(rng, colour=(250, 250, 248)).write(ink, colour).grain(2).jpeg(70)


def show_through(ink, rng):
    page = Page(rng)
    for _ in range(12):
        back = thinner(from_font(rng.choice([*LETTERS]), "DejaVuSerif"), 2)[:, ::-1]
        page.write(back, page.pixels[0, 0] * 0.93, (0.1, 0.2), rng.uniform(0, 1, 2))
    return page.write(ink).grain(2).jpeg()


# ---- the kinds of the half "once"


def napkin(ink, rng):
    page = Page(rng, colour=rng.uniform(225, 245) + rng.uniform(-4, 4, 3))
    rows, columns = np.indices(page.pixels.shape[:2]) / page.height
    page.pixels += 5 * (np.sin(rows * 150) * np.sin(columns * 150))[..., None]
    return page.write(ink, rng.uniform(20, 90, 3), noise=0.2).creases(0.05).shade(0.2).grain(3).jpeg()


def sticky_note(ink, rng):
    note = np.array([[250, 235, 120], [250, 170, 190], [170, 225, 240], [190, 235, 150]])[rng.integers(4)]
    size = int(rng.integers(240, 420))
    page = Page(rng, (size, size), note).write(ink, rng.uniform(0, 60, 3), (0.35, 0.6), rng.uniform(0.4, 0.6, 2))
    return page.on_table().shade(0.2).grain(3).jpeg()


def pavement(ink, rng):
    page = Page(rng, colour=[rng.uniform(90, 130)] * 3)
    page.pixels += 9 * ndimage.gaussian_filter(rng.normal(0, 1, page.pixels.shape[:2]), 0.8)[..., None] / 0.35
    return page.write(ink, rng.uniform(215, 250) * np.ones(3), (0.5, 0.8), noise=0.35).jpeg()


def printed_in_dark_mode(ink, rng):
    page = Page(rng, rng.integers(200, 800, 2), rng.uniform(15, 40) + rng.uniform(-3, 8, 3))
    return page.write(ink, rng.uniform(170, 255) * np.ones(3), (0.15, 0.5)).png()


def printed_on_a_receipt(ink, rng):
    page = Page(rng, colour=rng.uniform(220, 240) + rng.uniform(-4, 4, 3))
    return page.write(ink, rng.uniform(90, 140) * np.ones(3), (0.2, 0.5), noise=0.3).creases(0.04).blur(0.003).jpeg()


def fax(ink, rng):
    page = Page(rng, colour=(255, 255, 255)).write(ink, (0, 0, 0))
    flips = rng.random(page.pixels.shape[:2]) < 0.01
    page.pixels = np.where(flips[..., None], 255 - page.pixels, page.pixels)
    return encoded(page.image().convert("L").point(lambda value: 255 * (value > 140)).convert("1"))


def gradient(ink, rng):
    page = Page(rng)
    one, other = rng.uniform(150, 255, (2, 3))
    page.pixels[:] = one + np.linspace(0, 1, page.pixels.shape[1])[None, :, None] * (other - one)
    return page.write(ink, rng.uniform(0, 60, 3)).png()


def webcam(ink, rng):
    page = Page(rng, (480, 640), rng.uniform(150, 210) + rng.uniform(-12, 12, 3)).write(ink, share=(0.3, 0.6))
    image = page.shade(0.3).grain(14).image().resize((160, 120), Image.Resampling.BILINEAR)
    return encoded(image.resize((640, 480), Image.Resampling.BILINEAR), "JPEG", quality=int(rng.integers(20, 50)))


def motion_blur(ink, rng):
    page = Page(rng).write(ink, share=(0.4, 0.75))
    page.pixels = ndimage.uniform_filter1d(page.pixels, max(3, int(page.height * 0.03)), axis=int(rng.integers(2)))
    return page.grain(4).jpeg()


def perspective(ink, rng):
    image = Page(rng, (480, 480)).write(ink, share=(0.35, 0.6)).shade(0.2).image()
    corners = 480 * np.array([0, 0, 0, 1, 1, 1, 1, 0]) + rng.uniform(-60, 60, 8)
    image = image.transform((480, 480), Image.Transform.QUAD, corners.tolist(), fillcolor="grey")
    return encoded(image, "JPEG", quality=80)


def screen(ink, rng):
    page = Page(rng, rng.integers(300, 600, 2), (235, 240, 250)).write(ink, rng.uniform(0, 50, 3))
    rows, columns = np.indices(page.pixels.shape[:2])
    angle, period = rng.uniform(0, np.pi), rng.uniform(3, 9)
    stripes = np.sin(2 * np.pi * (rows * np.cos(angle) + columns * np.sin(angle)) / period)
    page.pixels *= (1 + 0.06 * stripes)[..., None]
    return page.shade(0.3).grain(4).jpeg(50)


def cardboard(ink, rng):
    page = Page(rng, colour=np.array([178, 140, 100]) + rng.uniform(-20, 20, 3))
    fibres = ndimage.gaussian_filter(rng.normal(0, 1, page.pixels.shape[:2]), (0.7, 6))
    page.pixels += 6 * (fibres / fibres.std())[..., None]
    return page.write(ink, rng.uniform(10, 60, 3), (0.3, 0.7)).shade(0.3).grain(4).jpeg()


def vignette(ink, rng):
    page = Page(rng).write(ink, share=(0.3, 0.6), place=rng.uniform(0.35, 0.65, 2))
    rows, columns = (np.linspace(-1, 1, side) for side in page.pixels.shape[:2])
    page.pixels *= (1 - rng.uniform(0.25, 0.4) * (rows[:, None] ** 2 + columns**2))[..., None]
    return page.grain(4).jpeg()


def webp(ink, rng):
    page = Page(rng).write(ink, rng.uniform(0, 80, 3)).grain(4)
    return encoded(page.image(), "WEBP", quality=int(rng.integers(5, 30)))


def printed_on_a_plate(ink, rng):
    """A number plate: a dark digit in a dark frame on yellow or white, seen a little from the side."""
    page = Page(rng, (260, 200), np.array([[245, 205, 60], [240, 240, 235]])[rng.integers(2)])
    image = page.write(ink, rng.uniform(0, 40, 3), (0.6, 0.75), (0.5, 0.5)).image()
    ImageDraw.Draw(image).rounded_rectangle([6, 6, 193, 253], 20, outline=(20, 20, 20), width=6)
    page.pixels = ndimage.rotate(
        np.asarray(image, np.float32), rng.uniform(-5, 5), order=1, mode="nearest", reshape=False
    )
    return page.shade(0.3).blur(0.003).grain(4).jpeg()


def finger(ink, rng):
    """A finger holds the sheet at a corner of the picture."""
    page = Page(rng).write(ink, share=(0.3, 0.5), place=rng.uniform(0.4, 0.6, 2)).shade(0.2)
    rows, columns = (np.arange(side) / page.height for side in page.pixels.shape[:2])
    corner = [side / page.height * rng.integers(2) for side in page.pixels.shape[:2]]
    distance = np.hypot(rows[:, None] - corner[0], columns - corner[1])
    skin = 1 / (1 + np.exp((distance - 0.2) / 0.008))
    page.pixels += skin[..., None] * (np.array([205, 150, 125]) + rng.uniform(-40, 20) - page.pixels)
    return page.grain(3).jpeg()


def names(*drawings: Drawing) -> dict[str, Drawing]:
    return {drawing.__name__: drawing for drawing in drawings}


KINDS: dict[str, dict[str, Drawing]] = {
    "making": {
        **names(paper, shadow, off_centre, thick, transparent, turned_by_exif, squared_paper, blackboard),
        **names(dark_on_light_28x28, on_a_table, printed, pencil, broken_strokes, modes, tilted_page, specks),
        **names(phone, coloured, thin, ruled_paper, small, twelve_megapixels, whiteboard, crumpled, paint_program),
        **names(printed_light_on_colour, wide_strip, out_of_focus, form_box, dim, yellow_pen, show_through),
        **names(printed_on_a_tile),
    },
    "once": {
        **names(napkin, sticky_note, pavement, printed_in_dark_mode, printed_on_a_receipt, fax, gradient, webcam),
        **names(motion_blur, perspective, screen, cardboard, vignette, webp, printed_on_a_plate, finger),
    },
}

# What is done to the ink before it is drawn.
PENS: dict[str, Callable[[Ink], Ink]] = {
    **dict.fromkeys(("thick", "paint_program"), lambda ink: thicker(ink, 6)),
    **dict.fromkeys(("pencil", "phone", "napkin", "webp"), lambda ink: thinner(ink, 5)),
    **dict.fromkeys(("whiteboard", "twelve_megapixels", "cardboard"), lambda ink: thinner(ink, 6)),
    "thin": lambda ink: thinner(ink, 1),
}


# ---- what holds no digit


def blank(rng: np.random.Generator) -> bytes:
    """A page with nothing written on it, in one of ten settings."""
    page, kind = Page(rng), int(rng.integers(10))
    if kind == 0:
        page.pixels[:] = rng.integers(0, 256)
        return page.png("L")
    if kind == 1:
        return encoded(Image.new("RGBA", page.pixels.shape[1::-1], (0, 0, 0, 0)))
    if kind == 2:
        return page.lines(page.height / rng.uniform(8, 16), (160, 170, 210)).shade(0.2).grain(2).jpeg()
    if kind == 3:
        return page.lines(page.height / rng.uniform(5, 12), (130, 150, 210), 2, both=False).grain(3).jpeg()
    if kind == 4:
        return page.on_table().grain(3).jpeg()
    if kind == 5:
        return page.creases(0.08).shade(0.3).grain(3).jpeg()
    if kind == 6:
        return page.shade(0.6, edge=True).grain(6).jpeg(25, 60)
    if kind == 7:
        return Page(rng, colour=rng.uniform(0, 60, 3)).shade(0.3).grain(8).jpeg()
    if kind == 8:
        return Page(rng, (28, 28), [int(rng.integers(0, 256))] * 3).grain(3).png("L")
    return page.shade(0.3).grain(10).jpeg(25, 60)


def texture(rng: np.random.Generator) -> bytes:
    """Wood, cloth, gravel, clouds or noise: structure everywhere, and no digit."""
    page, kind = Page(rng, colour=rng.uniform(60, 200, 3)), int(rng.integers(5))
    shape = page.pixels.shape[:2]
    if kind < 2:
        field = ndimage.gaussian_filter(rng.normal(0, 1, shape), (1.5, 40) if kind else (2.5, 2.5))
    elif kind == 2:
        rows, columns = np.indices(shape)
        field = np.sin(rows * rng.uniform(0.2, 0.6)) * np.sin(columns * rng.uniform(0.2, 0.6))
    elif kind == 3:
        field = sum(page.cloud(2**step) / 1.6**step for step in range(2, 8))
    else:
        field = rng.normal(0, 1, shape)
    page.pixels += 35 * (field / field.std())[..., None]
    return page.jpeg()


def letter(rng: np.random.Generator) -> bytes:
    """A letter of a font that is not written like a digit."""
    return paper(from_font(rng.choice([*LETTERS]), rng.choice(FONTS)), rng)


NOTHING = {"blank": blank, "texture": texture, "letter": letter}
