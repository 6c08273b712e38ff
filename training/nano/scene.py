"""The little world that margay-nano knows: coloured shapes and one sign, drawn with every fact known.

A `Scene` holds the facts in *model space*: the square of SIDE x SIDE pixels that the network sees after the
picture was padded to a square and resized. `draw` turns a scene into an ordinary picture of any size and aspect
ratio, `preprocess` is the only road from a picture to the network, and `codes` writes the facts of each of the
6 x 6 visual tokens as a vector (see CODES), the common language of the vision tower and the decoder.
"""

from __future__ import annotations

import math
import random
import zlib
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from PIL import Image, ImageFont

SIDE, PATCH = 144, 12
GRID = SIDE // PATCH  # patches a side
CELLS = GRID // 2  # visual tokens a side, after the 2 x 2 pool
CELL = SIDE // CELLS
PAD_COLOUR = (122, 116, 104)  # int(mean * 255) of CLIP

SHAPES = ["circle", "square", "triangle", "star", "cross", "heart"]
COLOURS = {
    "red": (212, 32, 40),
    "orange": (244, 134, 20),
    "yellow": (248, 218, 52),
    "green": (36, 152, 62),
    "blue": (36, 84, 208),
    "purple": (140, 56, 172),
    "black": (24, 24, 28),
    "white": (246, 246, 246),
}
NAMES = list(COLOURS)
SIZES = ["small", "large"]
RADIUS = {"small": (10.5, 13.0), "large": (18.5, 23.0)}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LONGEST, MOST = 6, 5  # letters of a word, things that are asked about
POPULAR = [("red", "heart"), ("yellow", "star"), ("blue", "circle"), ("green", "triangle"), ("black", "square"), ("white", "cross")]
FACES = [
    f"DejaVu{name}.ttf"
    for name in (
        "Sans Sans-Bold Sans-Oblique Sans-BoldOblique SansCondensed SansCondensed-Bold SansCondensed-BoldOblique SansMono "
        "SansMono-Bold SansMono-BoldOblique Serif Serif-Bold Serif-Italic Serif-BoldItalic SerifCondensed SerifCondensed-Bold"
    ).split()
]
REAL_WORDS = (
    "OPEN CLOSED SHOP CAFE HOTEL BAR TAXI EXIT STOP SLOW PARK ZOO FARM BANK PIZZA MUSIC BOOKS BAKERY MARKET SCHOOL BRIDGE "
    "HARBOR RIVER LAKE FOREST GARDEN TOWER CASTLE MUSEUM CINEMA THEATER LIBRA SALE NEW OLD NORTH SOUTH EAST WEST MILK TEA "
    "COFFEE BREAD FISH FRUIT TRAIN BUS TRAM METRO PORT GATE ROAD LANE HILL BEACH OCEAN ISLAND PLANET ROCKET ROBOT TIGER "
    "ZEBRA PANDA LION WOLF BEAR EAGLE HORSE MOUSE CAMEL WHALE SHARK MARGAY JAGUAR OCELOT LYNX PUMA HELLO WORLD PEACE LOVE "
    "HAPPY LUCKY MAGIC DREAM SUNNY CLOUD STORM WINTER SUMMER SPRING PAPER PENCIL BRUSH PAINT COLOR"
).split()

# One visual token is the sum of these codes. Letters have a left and a right side, the two patch columns of a token.
# `x`, `y` are the centre of a thing in the whole picture, so that "left of" is a difference; `lplace`, `rplace` tell
# which letter of the word stands on that side, `rank` which thing from the left this is: what comes next is then one
# look-up. The eye sees the whole picture at once and can say these; a decoder that writes from left to right cannot.
CODES = (
    [("occupied", "")]
    + [("shape", s) for s in SHAPES]
    + [("colour", c) for c in NAMES]
    + [("size", s) for s in SIZES]
    + [("dx", ""), ("dy", "")]
    + [("sign", "")]
    + [("signcolour", c) for c in NAMES]
    + [("left", a) for a in LETTERS]
    + [("right", a) for a in LETTERS]
    + [("row", str(i)) for i in range(CELLS)]
    + [("col", str(i)) for i in range(CELLS)]
    + [("x", ""), ("y", "")]
    + [("lplace", str(i)) for i in range(LONGEST)]
    + [("rplace", str(i)) for i in range(LONGEST)]
    + [("rank", str(i)) for i in range(MOST)]
)
CODE = {name: i for i, name in enumerate(CODES)}
GROUP = {g: (min(v), max(v) + 1) for g in dict(CODES) for v in [[i for (k, _), i in CODE.items() if k == g]]}


@dataclass
class Thing:
    """A shape; centre and radius in model space."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    r: float
    angle: float = 0.0


@dataclass
class Sign:
    """A plate with one word. `letters` holds (character, centre x, width) in model space."""

    word: str
    colour: str
    x0: float
    y0: float
    x1: float
    y1: float
    letters: list
    face: str
    font: float  # font size in model space
    post: bool = False


@dataclass
class Scene:
    width: int
    height: int
    things: list = field(default_factory=list)
    signs: list = field(default_factory=list)

    @property
    def sign(self):
        return self.signs[0] if self.signs else None

    def ordered(self):
        return sorted(self.things, key=lambda t: t.x)

    def frame(self):
        """The part of model space that the picture covers: x0, y0, x1, y1."""
        s = max(self.width, self.height)
        w, h = self.width * SIDE / s, self.height * SIDE / s
        return (SIDE - w) / 2, (SIDE - h) / 2, (SIDE + w) / 2, (SIDE + h) / 2


def held_out(word: str) -> bool:
    """One word in eight is never shown in training."""
    return zlib.crc32(word.encode()) % 8 == 0


def usable(word: str) -> bool:
    return not word.startswith(("AS", "US"))  # would merge with the pieces of the chat roles


def pick_word(rng: random.Random, split: str, longest: int = 6) -> str:
    while True:
        n, kind = rng.randint(3, longest), rng.random()
        if kind < 0.12:
            word = rng.choice(REAL_WORDS)
        elif kind < 0.56:
            word = "".join(rng.choice(LETTERS) for _ in range(n))
        else:
            start = rng.random() < 0.3
            word = "".join(rng.choice("AEIOU" if (i % 2 == 0) == start else "BCDFGHJKLMNPQRSTVWXYZ") for i in range(n))
        if len(word) <= longest and usable(word) and held_out(word) == (split != "train"):
            return word


@lru_cache(maxsize=4096)
def load_font(face: str, size: int):
    return ImageFont.truetype(face, size)


@lru_cache(maxsize=1024)
def advances(face: str) -> dict:
    font = load_font(face, 100)
    return {a: font.getlength(a) / 100 for a in LETTERS}


def make_sign(rng, word, frame, smallest=20.0, largest=28.0, centre_y=None, left=None):
    """Lay a word out; None when it does not fit. Letters are at least 13 px apart: one letter a patch column."""
    x0, y0, x1, y1 = frame
    face, gap, pad = rng.choice(FACES), rng.uniform(0.5, 3.0), rng.uniform(3.0, 7.0)
    adv = advances(face)
    font = rng.uniform(smallest, largest)
    while True:
        steps = [max(13.0, adv[a] * font + gap) for a in word]
        width = sum(steps) + 2 * pad
        if width <= (x1 - x0) - 4:
            break
        font *= 0.96
        if font < smallest * 0.95:
            return None
    height = font * rng.uniform(0.95, 1.25)
    if height > (y1 - y0) - 4:
        return None
    sx = rng.uniform(x0 + 2, x1 - 2 - width) if left is None else left
    sy = rng.uniform(y0 + 2, y1 - 2 - height) if centre_y is None else centre_y - height / 2
    letters, x = [], sx + pad
    for a, step in zip(word, steps):
        letters.append((a, x + step / 2, adv[a] * font))
        x += step
    return Sign(word, rng.choice(NAMES), sx, sy, sx + width, sy + height, letters, face, font)


def cell_of(x: float, y: float) -> tuple[int, int]:
    return min(CELLS - 1, max(0, int(y // CELL))), min(CELLS - 1, max(0, int(x // CELL)))


def place(rng, scene, wanted, order_gap=6.0):
    """Add `wanted` shapes where they fit: no overlap, one centre a cell, centres told apart from left to right."""
    fx0, fy0, fx1, fy1 = scene.frame()
    for _ in range(wanted):
        colour, shape = rng.choice(NAMES), rng.choice(SHAPES)
        if rng.random() < 0.25:
            colour, shape = rng.choice(POPULAR)
        if scene.things and rng.random() < 0.3:
            shape = rng.choice(scene.things).shape
        if scene.things and rng.random() < 0.3:
            colour = rng.choice(scene.things).colour
        size = rng.choice(SIZES)
        for _ in range(30):
            r = rng.uniform(*RADIUS[size])
            if fx1 - fx0 < 2 * r + 2 or fy1 - fy0 < 2 * r + 2:
                break
            x, y = rng.uniform(fx0 + r + 1, fx1 - r - 1), rng.uniform(fy0 + r + 1, fy1 - r - 1)
            if any(math.hypot(x - t.x, y - t.y) < r + t.r + 2 or abs(x - t.x) < order_gap for t in scene.things):
                continue
            if any(cell_of(x, y) == cell_of(t.x, t.y) for t in scene.things):
                continue
            if any(s.x0 - r - 2 < x < s.x1 + r + 2 and s.y0 - r - 2 < y < s.y1 + r + 2 for s in scene.signs):
                continue
            scene.things.append(Thing(shape, colour, size, x, y, r, rng.uniform(-14, 14)))
            break


def canvas(rng) -> tuple[int, int]:
    longest = rng.randint(150, 330) if rng.random() < 0.85 else rng.randint(330, 640)
    aspect = rng.choice([1.0, 1.0, 1.33, 1.5, 0.75, rng.uniform(0.65, 1.6)])
    return (longest, round(longest / aspect)) if aspect >= 1 else (round(longest * aspect), longest)


def make_scene(rng: random.Random, split: str = "train", kind: str = "scene") -> Scene:
    """kind: `scene` (what is asked about); `page` (lines of letters) and `crowd` (many shapes) train the eye faster."""
    w, h = canvas(rng)
    if kind == "page":
        w = h = max(w, h)
    scene = Scene(w, h)
    x0, y0, x1, y1 = frame = scene.frame()
    if kind == "page":
        y = rng.uniform(15, 24)
        while y < SIDE - 14:
            x = rng.uniform(1, 14)
            while x < SIDE - 50:
                sign = make_sign(rng, pick_word(rng, split), (x, 0, SIDE, SIDE), 19, 27, y, x)
                if sign is None:
                    break
                scene.signs.append(sign)
                x = sign.x1 + rng.uniform(2, 10)
            y += rng.uniform(27, 34)
        return scene
    if kind == "scene" and rng.random() < 0.72:
        longest = 6 if x1 - x0 > 120 else 4
        for _ in range(20):
            sign = make_sign(rng, pick_word(rng, split, longest), frame)
            if sign is not None:
                sign.post = rng.random() < 0.5
                scene.signs.append(sign)
                break
    place(
        rng,
        scene,
        rng.randint(6, 12) if kind == "crowd" else rng.choice([0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]),
        0.0 if kind == "crowd" else 6.0,
    )
    return scene


def outline(t: Thing) -> list | None:
    """The polygon of a shape around the origin, radius 1; None for the circle."""
    if t.shape == "circle":
        return None
    if t.shape == "square":
        pts = [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]
    elif t.shape == "triangle":
        pts = [(0, -1), (0.95, 0.72), (-0.95, 0.72)]
    elif t.shape == "star":
        pts = [((1, 0.42)[i % 2] * math.sin(i * math.pi / 5), -(1, 0.42)[i % 2] * math.cos(i * math.pi / 5)) for i in range(10)]
    elif t.shape == "cross":
        a, b = 0.3, 0.95
        pts = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
    else:
        pts = []
        for i in range(44):
            u = i * math.tau / 44
            x = 16 * math.sin(u) ** 3
            y = 13 * math.cos(u) - 5 * math.cos(2 * u) - 2 * math.cos(3 * u) - math.cos(4 * u)
            pts.append((x / 17, -(y + 2.5) / 16))
    c, s = math.cos(math.radians(t.angle)), math.sin(math.radians(t.angle))
    return [(x * c - y * s, x * s + y * c) for x, y in pts]


def codes(scene: Scene) -> np.ndarray:
    """[CELLS * CELLS, len(CODES)]: what each visual token should say."""
    out = np.zeros((CELLS, CELLS, len(CODES)), np.float32)
    for i in range(CELLS):
        out[i, :, CODE["row", str(i)]] = 1
        out[:, i, CODE["col", str(i)]] = 1
    for t in scene.things:
        cell = cell_of(t.x, t.y)
        for name in (("occupied", ""), ("shape", t.shape), ("colour", t.colour), ("size", t.size)):
            out[cell][CODE[name]] = 1
        out[cell][CODE["dx", ""]] = t.x / CELL - cell[1] - 0.5
        out[cell][CODE["dy", ""]] = t.y / CELL - cell[0] - 0.5
        out[cell][CODE["x", ""]] = 4 * t.x / SIDE - 2
        out[cell][CODE["y", ""]] = 4 * t.y / SIDE - 2
    for i, t in enumerate(scene.ordered()[:MOST]):
        out[cell_of(t.x, t.y)][CODE["rank", str(i)]] = 1
    for s in scene.signs:
        for i, (a, x, _) in enumerate(s.letters):
            cell = cell_of(x, (s.y0 + s.y1) / 2)
            side = "left" if x // PATCH % 2 == 0 else "right"
            out[cell][CODE[side, a]] = 1
            out[cell][CODE[f"{side[0]}place", str(i)]] = 1
            out[cell][CODE["sign", ""]] = 1
            out[cell][CODE["signcolour", s.colour]] = 1
    return out.reshape(CELLS * CELLS, -1)


FACTS = 5


def facts(t: Thing) -> np.ndarray:
    """Numbers of shape, colour and size, and the place: what a phrase that points at a thing should bring to mind."""
    where = 4 * t.x / SIDE - 2, 4 * t.y / SIDE - 2
    return np.array([SHAPES.index(t.shape), NAMES.index(t.colour), SIZES.index(t.size), *where], np.float32)


def patch_labels(scene: Scene) -> np.ndarray:
    """[3, GRID * GRID]: shape, colour and letter that covers the middle of each patch; 0 for none."""
    out = np.zeros((3, GRID, GRID), np.int64)
    mid = (np.arange(GRID) + 0.5) * PATCH
    for t in scene.things:
        hit = (mid[None, :] - t.x) ** 2 + (mid[:, None] - t.y) ** 2 < (0.85 * t.r) ** 2
        out[0][hit] = 1 + SHAPES.index(t.shape)
        out[1][hit] = 1 + NAMES.index(t.colour)
    for s in scene.signs:
        y = (s.y0 + s.y1) / 2
        rows = np.nonzero(np.abs(mid - y) < 0.34 * s.font)[0]
        for a, x, w in s.letters:
            cols = np.unique(np.append(np.nonzero(np.abs(mid - x) < 0.4 * w)[0], min(GRID - 1, int(x // PATCH))))
            out[2][np.ix_(rows, cols)] = 1 + LETTERS.index(a)
    return out.reshape(3, -1)


def preprocess(img: Image.Image) -> np.ndarray:
    """The LLaVA road: pad to a centred square with the mean colour, then bicubic. uint8 [SIDE, SIDE, 3]."""
    img = img.convert("RGB")
    w, h = img.size
    if w != h:
        s = max(w, h)
        square = Image.new("RGB", (s, s), PAD_COLOUR)
        square.paste(img, ((s - w) // 2, (s - h) // 2))
        img = square
    return np.asarray(img.resize((SIDE, SIDE), Image.BICUBIC))
