"""Turns a `Scene` into a picture: backdrop, clutter, shapes, sign, noise, JPEG artefacts."""

from __future__ import annotations

import io
import random

import numpy as np
from PIL import Image, ImageDraw

from scene import COLOURS, SIDE, Scene, load_font, outline

_NOISE = np.random.default_rng(7).normal(0, 1, (1024, 1024, 3)).astype(np.float32)


def _far(rgb, used, least) -> bool:
    return all(sum((a - b) ** 2 for a, b in zip(rgb, COLOURS[c])) > least**2 for c in used)


def _muted(rng, used):
    """A soft background colour that every used colour stands out from."""
    least = 95.0
    while True:
        grey, tint = rng.uniform(70, 215), rng.uniform(0, 34)
        rgb = tuple(int(min(255, max(0, grey + rng.uniform(-tint, tint)))) for _ in range(3))
        if _far(rgb, used, least):
            return rgb
        least *= 0.985


def _shade(rgb, amount):
    return tuple(int(min(255, max(0, c + amount))) for c in rgb)


def backdrop(rng, w, h, used, style=None) -> Image.Image:
    base = _muted(rng, used)
    style = style or rng.choice(["plain", "plain", "gradient", "stripes", "checker", "horizon", "skyline"])
    img = Image.new("RGB", (w, h), base)
    d = ImageDraw.Draw(img)
    step = rng.choice([-1, 1]) * rng.uniform(8, 22)
    if style == "gradient":
        ramp = np.linspace(-step, step, h if rng.random() < 0.5 else w, dtype=np.float32)
        ramp = ramp[:, None] if len(ramp) == h and h != w else ramp[None, :]
        field = np.broadcast_to(ramp[..., None] + np.array(base, np.float32), (h, w, 3))
        img = Image.fromarray(np.clip(field, 0, 255).astype(np.uint8))
    elif style == "stripes":
        width = max(4, int(w * rng.uniform(0.05, 0.2)))
        for x in range(0, w + h, 2 * width):
            lean = rng.choice([0, 1]) * h
            d.polygon([(x, 0), (x + width, 0), (x + width - lean, h), (x - lean, h)], fill=_shade(base, step))
    elif style == "checker":
        width = max(5, int(w * rng.uniform(0.06, 0.2)))
        for i, x in enumerate(range(0, w, width)):
            for y in range((i % 2) * width, h, 2 * width):
                d.rectangle([x, y, x + width - 1, y + width - 1], fill=_shade(base, step * 0.7))
    elif style == "horizon":
        d.rectangle([0, int(h * rng.uniform(0.5, 0.85)), w, h], fill=_muted(rng, used))
    elif style == "skyline":
        ground = int(h * rng.uniform(0.75, 0.92))
        x = 0
        while x < w:
            bw, top = int(w * rng.uniform(0.08, 0.2)) + 3, int(h * rng.uniform(0.15, 0.6))
            wall = _shade(base, rng.uniform(-16, -4) * (1 if sum(base) > 300 else -1))
            d.rectangle([x, top, x + bw, ground], fill=wall)
            gap = max(4, bw // 4)
            for wx in range(x + gap // 2, x + bw - gap // 2, gap):
                for wy in range(top + gap // 2, ground - gap, gap + 2):
                    d.rectangle([wx, wy, wx + gap // 3, wy + gap // 2], fill=_shade(wall, 9))
            x += bw + int(w * rng.uniform(0, 0.04))
        road = _muted(rng, used)
        d.rectangle([0, ground, w, h], fill=road)
        for x in range(0, w, max(8, w // 9)):
            d.rectangle([x, (ground + h) // 2, x + max(3, w // 24), (ground + h) // 2 + max(1, h // 90)], fill=_shade(road, 24))
    return img


def _clutter(rng, d, w, h, f, base):
    for _ in range(rng.choice([0, 0, 2, 5, 9])):
        x, y = rng.uniform(0, w), rng.uniform(0, h)
        tone = _shade(base, rng.choice([-1, 1]) * rng.uniform(14, 40))
        if rng.random() < 0.5:
            d.line([x, y, x + rng.uniform(-60, 60) * f, y + rng.uniform(-60, 60) * f], fill=tone, width=max(1, int(f * rng.uniform(0.5, 1.5))))
        else:
            r = f * rng.uniform(0.6, 2.0)
            d.ellipse([x - r, y - r, x + r, y + r], fill=tone)


def draw(scene: Scene, rng: random.Random, style=None, clean=False) -> Image.Image:
    """`clean` leaves noise, clutter and JPEG artefacts out."""
    w, h = scene.width, scene.height
    side = max(w, h)
    f = side / SIDE
    ox, oy = (side - w) / 2, (side - h) / 2
    used = {t.colour for t in scene.things} | {s.colour for s in scene.signs}
    img = backdrop(rng, w, h, used, style)
    d = ImageDraw.Draw(img)
    if not clean:
        _clutter(rng, d, w, h, f, img.getpixel((0, 0)))

    def tone(name):
        return _shade(COLOURS[name], 0) if clean else tuple(min(255, max(0, c + rng.randint(-14, 14))) for c in COLOURS[name])

    def at(x, y):
        return x * f - ox, y * f - oy

    for s in scene.signs:
        x0, y0 = at(s.x0, s.y0)
        x1, y1 = at(s.x1, s.y1)
        plate, r = tone(s.colour), f * rng.uniform(0, 5)
        ink = (16, 16, 18) if sum(plate) > 400 else (248, 248, 244)
        if s.post:
            px, pw = (x0 + x1) / 2, max(1.0, 1.6 * f)
            d.rectangle([px - pw, y1, px + pw, h], fill=_shade(img.getpixel((min(w - 1, max(0, int(px))), h - 1)), -45))
        d.rounded_rectangle([x0, y0, x1, y1], r, fill=plate, outline=ink if rng.random() < 0.6 else None, width=max(1, int(f)))
        font = load_font(s.face, max(6, round(s.font * f)))
        for a, x, _ in s.letters:
            d.text(at(x, (s.y0 + s.y1) / 2 + 0.36 * s.font), a, fill=ink, font=font, anchor="ms")
    edges = rng.random() < 0.3
    for t in scene.things:
        fill, r = tone(t.colour), t.r * f
        x, y = at(t.x, t.y)
        dark = sum(fill) < 200
        edge = (_shade(fill, 70) if dark else _shade(fill, -70)) if edges else None
        pts = outline(t)
        if pts is None:
            d.ellipse([x - r, y - r, x + r, y + r], fill=fill, outline=edge, width=max(1, int(f)))
        else:
            d.polygon([(x + a * r, y + b * r) for a, b in pts], fill=fill, outline=edge)
    if clean:
        return img
    if rng.random() < 0.6:
        amount, oy, ox = rng.uniform(1, 11), rng.randint(0, 1023 - min(h, 1000)), rng.randint(0, 1023 - min(w, 1000))
        noise = _NOISE[oy : oy + h, ox : ox + w]
        img = Image.fromarray(np.clip(np.asarray(img, np.float32) + amount * noise, 0, 255).astype(np.uint8))
    if rng.random() < 0.35:
        buffer = io.BytesIO()
        img.save(buffer, "JPEG", quality=rng.randint(45, 95))
        img = Image.open(buffer).convert("RGB")
    return img
