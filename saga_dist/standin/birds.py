"""Draws one bird: six colour-coded parts, a gradient background, and flowers of one type that do not overlap the bird.

A bird's image depends only on the arguments and one random generator; drawing takes about 1.5 ms per image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

IMAGE_SIZE = 80
"""Side of an image in pixels."""
CANVAS = 160
"""Side in pixels of the canvas on which a scene is drawn before it is scaled to ``IMAGE_SIZE``."""
SPRITE = 128
"""Side in pixels of the transparent square on which the bird is drawn."""
NUM_FLOWER_TYPES = 16
MAX_FLOWERS = 8
"""Rows of ``Bird.flower_centres``."""
NO_FLOWER = -99.0
"""Coordinate that marks an unused row of ``Bird.flower_centres``."""

Rgb = tuple[int, int, int]

BODY_COLORS: tuple[Rgb, ...] = ((142, 112, 84), (108, 121, 132), (158, 151, 122), (96, 87, 78), (172, 132, 102))
PART_COLORS: dict[str, tuple[Rgb, Rgb, Rgb, Rgb]] = {
    # Parts and colours have the order of language.COLOR_WORDS.
    "bill": ((244, 216, 62), (224, 58, 48), (30, 30, 36), (214, 216, 226)),
    "crown": ((214, 46, 42), (240, 204, 42), (52, 92, 214), (240, 240, 240)),
    "breast": ((236, 226, 202), (226, 122, 52), (150, 58, 62), (118, 150, 190)),
    "wing": ((60, 60, 62), (240, 240, 234), (70, 122, 70), (92, 58, 140)),
    "tail": ((52, 42, 34), (234, 236, 230), (202, 92, 42), (58, 88, 172)),
    "legs": ((26, 26, 26), (244, 142, 32), (240, 132, 180), (60, 150, 74)),
}
FLOWER_COLORS: tuple[Rgb, ...] = (
    (230, 62, 200), (62, 220, 220), (250, 142, 32), (122, 230, 62),
    (132, 62, 220), (250, 250, 122), (32, 112, 62), (250, 122, 132),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Style:
    """Appearance shared by all images of a domain; the defaults change nothing."""

    scale: float = 1.0
    """Factor on the size of the bird."""
    rotation_deg: float = 0.0
    """Rotation of the bird in degrees, added to its random rotation."""
    saturation: float = 1.0
    """Factor on the distance of each pixel from grey."""
    gamma: float = 1.0
    """Exponent of the pixel values, on a scale from 0 to 1."""
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Factors on red, green and blue."""


PLAIN_STYLE = Style()
"""Appearance of the pre-training images."""
SHIFTED_STYLE = Style(scale=0.93, rotation_deg=8.0, saturation=0.75, gamma=1.25, tint=(1.06, 0.97, 0.85))
"""Default appearance of the downstream splits; pre-training uses no image of it."""


def style_at(shift: float) -> Style:
    """Returns the linear interpolation between ``PLAIN_STYLE`` (0) and ``SHIFTED_STYLE`` (1), or its extrapolation."""

    def at(plain: float, shifted: float) -> float:
        return plain * (1 - shift) + shifted * shift  # exact at both ends

    plain, shifted = PLAIN_STYLE, SHIFTED_STYLE
    red, green, blue = (at(*channels) for channels in zip(plain.tint, shifted.tint, strict=True))
    return Style(
        scale=at(plain.scale, shifted.scale),
        rotation_deg=at(plain.rotation_deg, shifted.rotation_deg),
        saturation=at(plain.saturation, shifted.saturation),
        gamma=at(plain.gamma, shifted.gamma),
        tint=(red, green, blue),
    )


@dataclass(frozen=True, slots=True)
class Scene:
    """Surroundings and size of a bird."""

    min_flowers: int = 4
    """Fewest flowers to draw, 0 to 8."""
    max_flowers: int = 7
    """Most flowers to draw, 0 to 8; fewer are drawn when there is no free place for them."""
    clutter: int = 0
    """Number of shapes of random colours in the background."""
    bird_scale: float = 1.0
    """Size of the bird; at 1 it fills most of the image, and a smaller bird has more possible positions."""


PLAIN_SCENE = Scene()


@dataclass(frozen=True, slots=True)
class Bird:
    """One image and its ground truth."""

    image: np.ndarray
    """uint8 [80, 80, 3]."""
    part_centres: np.ndarray
    """float32 [A, 2]: (x, y) of each part in pixels of the image, in the order of ``PART_COLORS``."""
    mask: np.ndarray
    """bool [80, 80], True for pixels of the bird."""
    flower_type: int
    """Type of all flowers, 0..15."""
    flower_centres: np.ndarray
    """float32 [8, 2]: (x, y) of each flower in pixels; unused rows hold ``NO_FLOWER``."""


def draw_bird(
    values: np.ndarray,
    generator: np.random.Generator,
    *,
    nuisance: float,
    style: Style = PLAIN_STYLE,
    flower_type: int | None = None,
    scene: Scene = PLAIN_SCENE,
) -> Bird:
    """Returns a drawing of a bird with these part values.

    Args:
        values: integers [A] in 0..3, colour of each part in the order of ``PART_COLORS``.
        generator: source of every random choice.
        nuisance: strength of the variation in pose, light, blur and noise, 0 to 1.
        style: appearance of the domain.
        flower_type: 0..15; None: chosen at random.
        scene: numbers of flowers and clutter shapes, and the bird's size.
    """
    sprite, centres = _sprite(values, generator, nuisance)
    canvas = _background(generator)
    _scatter_clutter(canvas, scene.clutter, generator)
    placed, centres = _place(sprite, centres, generator, nuisance, style, scene.bird_scale)
    opaque = np.asarray(placed)[:, :, 3] > 0
    kind = int(generator.integers(NUM_FLOWER_TYPES)) if flower_type is None else flower_type
    flowers = _scatter_flowers(canvas, opaque, kind, generator, scene)
    canvas.paste(placed, (0, 0), placed)
    small = canvas.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)
    ratio = CANVAS // IMAGE_SIZE
    return Bird(
        image=_develop(small, generator, nuisance, style),
        part_centres=(centres / ratio).astype(np.float32),
        mask=np.asarray(opaque.reshape(IMAGE_SIZE, ratio, IMAGE_SIZE, ratio).any(axis=(1, 3))),
        flower_type=kind,
        flower_centres=flowers,
    )


def _vary(color: Rgb, generator: np.random.Generator, amount: float) -> Rgb:
    red, green, blue = (int(min(255, max(0, channel + generator.uniform(-amount, amount)))) for channel in color)
    return red, green, blue


def _sprite(values: np.ndarray, generator: np.random.Generator, nuisance: float) -> tuple[Image.Image, np.ndarray]:
    """Returns the bird in profile, facing right, as an RGBA square, and float64 [A, 2]: (x, y) of its parts."""
    image = Image.new("RGBA", (SPRITE, SPRITE), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    jitter = 4 + 14 * nuisance
    paint = {
        part: _vary(colors[value], generator, jitter)
        for (part, colors), value in zip(PART_COLORS.items(), values, strict=True)
    }
    body = _vary(BODY_COLORS[generator.integers(len(BODY_COLORS))], generator, jitter)
    droop = generator.uniform(-3, 3) * nuisance
    head_x = 92 + generator.uniform(-3, 3) * nuisance
    head_y = 42 + generator.uniform(-4, 4) * nuisance

    draw.polygon([(42, 66), (6, 66 + droop), (6, 92 + droop), (42, 88)], fill=paint["tail"])
    for hip in (58, 74):
        foot = hip + generator.uniform(-3, 3) * (0.3 + nuisance)
        draw.line([(hip, 92), (foot, 114)], fill=paint["legs"], width=9)
        draw.line([(foot - 3, 114), (foot + 10, 116)], fill=paint["legs"], width=6)
    draw.ellipse((32, 50, 102, 100), fill=body)
    draw.ellipse((70, 56, 102, 96), fill=paint["breast"])
    draw.ellipse((36, 56, 70, 86), fill=paint["wing"])
    draw.ellipse((head_x - 18, head_y - 17, head_x + 18, head_y + 18), fill=body)
    draw.pieslice((head_x - 18, head_y - 19, head_x + 18, head_y + 17), 180, 360, fill=paint["crown"])
    draw.ellipse((head_x + 4, head_y + 1, head_x + 9, head_y + 6), fill=(10, 10, 10))
    draw.polygon([(head_x + 14, head_y - 4), (head_x + 34, head_y + 4), (head_x + 14, head_y + 13)], fill=paint["bill"])
    centres = {
        "bill": (head_x + 21, head_y + 4),
        "crown": (head_x, head_y - 9),
        "breast": (88, 76),
        "wing": (53, 71),
        "tail": (22, 78 + droop),
        "legs": (66, 104),
    }
    return image, np.array([centres[part] for part in PART_COLORS], dtype=np.float64)


def _background(generator: np.random.Generator) -> Image.Image:
    top = generator.uniform(90, 220, 3)
    bottom = top + generator.uniform(-40, 40, 3)
    blend = np.linspace(0, 1, CANVAS)[:, None, None]
    rows = (top * (1 - blend) + bottom * blend).clip(0, 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(rows, (CANVAS, CANVAS, 3))))


def _scatter_clutter(canvas: Image.Image, count: int, generator: np.random.Generator) -> None:
    """Draws distractors: ellipses, boxes and strokes that are about as large as a part of a bird."""
    draw = ImageDraw.Draw(canvas)
    for _ in range(count):
        red, green, blue = (int(channel) for channel in generator.integers(0, 256, 3))
        x, y = generator.uniform(0, CANVAS, 2)
        half_width, half_height = generator.uniform(4, 16, 2)
        box = (x - half_width, y - half_height, x + half_width, y + half_height)
        shape = int(generator.integers(3))
        if shape == 0:
            draw.ellipse(box, fill=(red, green, blue))
        elif shape == 1:
            draw.rectangle(box, fill=(red, green, blue))
        else:
            draw.line(box, fill=(red, green, blue), width=6)


def _place(
    sprite: Image.Image,
    centres: np.ndarray,
    generator: np.random.Generator,
    nuisance: float,
    style: Style,
    bird_scale: float,
) -> tuple[Image.Image, np.ndarray]:
    """Returns the sprite rotated, scaled, flipped and shifted onto the canvas, wholly visible, and its part centres.

    Both are in canvas pixels: an RGBA image of side ``CANVAS``, and float64 [A, 2].
    """
    angle = math.radians(generator.uniform(-1, 1) * (4 + 18 * nuisance) + style.rotation_deg)
    scale = generator.uniform(0.84 - 0.12 * nuisance, 0.92) * style.scale * bird_scale
    facing = -1 if generator.random() < 0.5 else 1
    across, down = (CANVAS / 2 - half * bird_scale for half in (60, 52))  # a smaller bird can be shifted further
    middle = CANVAS / 2
    target = np.array(
        [generator.uniform(middle - across, middle + across), generator.uniform(middle - down, middle + down)]
    )
    cosine, sine = math.cos(angle) / scale, math.sin(angle) / scale
    to_sprite = np.array([[cosine * facing, sine * facing], [-sine, cosine]])  # PIL maps the output to the input
    offset = np.array([66.0, 74.0]) - to_sprite @ target  # (66, 74) is the middle of the body
    coefficients = (*to_sprite[0], offset[0], *to_sprite[1], offset[1])
    placed = sprite.transform(
        (CANVAS, CANVAS), Image.Transform.AFFINE, coefficients, resample=Image.Resampling.BILINEAR
    )
    return placed, np.linalg.solve(to_sprite, (centres - offset).T).T


def _scatter_flowers(
    canvas: Image.Image, opaque: np.ndarray, kind: int, generator: np.random.Generator, scene: Scene
) -> np.ndarray:
    """Draws flowers of one type off the bird, so that only the background carries the shortcut; returns their centres.

    Args:
        canvas: scene to draw on.
        opaque: bool [CANVAS, CANVAS], True for pixels of the bird.
        kind: flower type, 0..15.
        generator: source of every random choice.
        scene: range of the number of flowers.

    Returns:
        float32 [8, 2]: (x, y) in pixels of the final image; unused rows hold ``NO_FLOWER``.
    """
    draw = ImageDraw.Draw(canvas)
    wanted = int(generator.integers(scene.min_flowers, scene.max_flowers + 1))
    centres: list[tuple[float, float]] = []
    for _ in range(60):
        if len(centres) == wanted:
            break
        radius = generator.uniform(10, 15)
        x, y = generator.uniform(8, CANVAS - 8, 2)
        rows = slice(max(0, int(y - radius - 2)), int(y + radius + 2))
        columns = slice(max(0, int(x - radius - 2)), int(x + radius + 2))
        if opaque[rows, columns].any():
            continue
        _flower(draw, x, y, radius, kind)
        centres.append((x * IMAGE_SIZE / CANVAS, y * IMAGE_SIZE / CANVAS))
    padded = np.full((MAX_FLOWERS, 2), NO_FLOWER, dtype=np.float32)
    if centres:
        padded[: len(centres)] = centres
    return padded


def _flower(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, kind: int) -> None:
    """Draws one flower: types 0..7 are round with a dark centre, types 8..15 are crosses in the same eight colours."""
    color = FLOWER_COLORS[kind % len(FLOWER_COLORS)]
    if kind >= len(FLOWER_COLORS):
        thin = radius * 0.3
        draw.rectangle((x - radius, y - thin, x + radius, y + thin), fill=color)
        draw.rectangle((x - thin, y - radius, x + thin, y + radius), fill=color)
        return
    for petal in range(5):
        turn = 2 * math.pi * petal / 5
        middle_x, middle_y, half = x + radius * 0.6 * math.cos(turn), y + radius * 0.6 * math.sin(turn), radius * 0.5
        draw.ellipse((middle_x - half, middle_y - half, middle_x + half, middle_y + half), fill=color)
    heart = radius * 0.3
    draw.ellipse((x - heart, y - heart, x + heart, y + heart), fill=(40, 30, 20))


def _develop(image: Image.Image, generator: np.random.Generator, nuisance: float, style: Style) -> np.ndarray:
    """Returns uint8 [80, 80, 3]: the image with blur, light, the style's colours and sensor noise applied."""
    if generator.random() < 0.4 * nuisance:
        image = image.filter(ImageFilter.GaussianBlur(generator.uniform(0.3, 0.8)))
    pixels: np.ndarray = np.asarray(image, dtype=np.float32)
    pixels = pixels * (1 + generator.uniform(-1, 1, 3) * 0.22 * nuisance)
    pixels = pixels * (1 + generator.uniform(-1, 1) * (0.05 + 0.25 * nuisance))
    if style != PLAIN_STYLE:
        grey = pixels.mean(axis=-1, keepdims=True)
        pixels = grey + (pixels - grey) * style.saturation
        pixels = 255 * (pixels.clip(0, 255) / 255) ** style.gamma * np.array(style.tint)
    noise = generator.standard_normal(pixels.shape, dtype=np.float32) * np.float32(3 + 10 * nuisance)
    return (pixels + noise).clip(0, 255).astype(np.uint8)
