"""Draws the pictures of examples/images: scenes composed by hand from the world's own parts, with held-out words.

python examples.py ../../examples/images
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from PIL import Image

from draw import draw
from scene import RADIUS, Scene, Sign, Thing, advances, held_out

RADII = {size: sum(r) / 2 for size, r in RADIUS.items()}


def thing(size, colour, shape, x, y, angle=0.0):
    return Thing(shape, colour, size, x, y, RADII[size], angle)


def plate(word, colour, x, y, font=24.0, face="DejaVuSans-Bold.ttf", post=False):
    """A sign around (x, y)."""
    assert held_out(word), f"{word} is a training word"
    steps = [max(13.0, advances(face)[a] * font + 2) for a in word]
    width, height = sum(steps) + 10, font * 1.15
    left = x - width / 2
    letters, at = [], left + 5
    for a, step in zip(word, steps):
        letters.append((a, at + step / 2, advances(face)[a] * font))
        at += step
    return Sign(word, colour, left, y - height / 2, left + width, y + height / 2, letters, face, font, post)


def paint(scene: Scene, style: str, seed: int, grow: int = 4) -> Image.Image:
    """Drawn larger and shrunk, for smooth edges."""
    big = Scene(scene.width * grow, scene.height * grow, scene.things, scene.signs)
    return draw(big, random.Random(seed), style=style, clean=True).resize((scene.width, scene.height), Image.LANCZOS)


def street() -> Scene:
    """640 x 480: model space rows 18 to 126."""
    return Scene(
        640,
        480,
        [
            thing("large", "yellow", "circle", 120, 42),
            thing("small", "red", "heart", 30, 44, -8),
            thing("large", "green", "triangle", 110, 94),
        ],
        [plate("BAR", "white", 58, 86, 24, post=True)],
    )


def balloons() -> Scene:
    """480 x 640: model space columns 18 to 126."""
    return Scene(
        480,
        640,
        [
            thing("large", "red", "circle", 52, 30),
            thing("small", "orange", "star", 98, 24, 6),
            thing("large", "blue", "heart", 94, 64, 5),
            thing("small", "red", "square", 38, 82, -9),
        ],
    )


def poster() -> Scene:
    """600 x 400: model space rows 24 to 120."""
    return Scene(
        600,
        400,
        [
            thing("large", "purple", "star", 30, 54),
            thing("large", "purple", "cross", 112, 56, 8),
            thing("small", "white", "circle", 72, 48),
        ],
    )


def plain() -> Scene:
    """512 x 512, no sign."""
    return Scene(
        512,
        512,
        [
            thing("large", "black", "square", 36, 40, 4),
            thing("small", "yellow", "square", 100, 34, -6),
            thing("large", "orange", "triangle", 84, 98),
            thing("small", "green", "cross", 28, 108),
        ],
    )


PICTURES = {
    "street.png": (street, "skyline", 11, {}),
    "balloons.jpg": (balloons, "gradient", 3, dict(quality=88)),
    "poster.webp": (poster, "stripes", 5, dict(quality=90)),
    "shapes.png": (plain, "checker", 8, {}),
}


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, (scene, style, seed, how) in PICTURES.items():
        paint(scene(), style, seed).save(folder / name, **how)


if __name__ == "__main__":
    main()
