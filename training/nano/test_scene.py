"""Facts and pictures agree; the training words and the held-out words never meet."""

import random

import numpy as np

from draw import draw
from outside import FIXED, HELD_FIXED, HELD_PATTERNS, NOUNS, PATTERNS, _held
from questions import MIX, describe, one
from scene import CELLS, CODE, COLOURS, GROUP, SIDE, Scene, codes, held_out, make_scene, pick_word, preprocess


def clean_pixels(scene):
    return preprocess(draw(scene, random.Random(0), style="plain", clean=True)).astype(int)


def test_every_shape_has_its_colour_at_its_place_and_nowhere_else():
    for seed in range(150):
        scene = make_scene(random.Random(seed))
        pixels = clean_pixels(scene)
        for t in scene.things:
            middle = pixels[round(t.y), round(t.x)]  # every shape covers its own centre
            assert np.abs(middle - COLOURS[t.colour]).max() < 12, (seed, t, middle)
            reach = 1.25 * t.r
            corners = [(t.x + a * reach, t.y + b * reach) for a in (-1, 1) for b in (-1, 1)]
            for x, y in corners:
                if 0 < x < SIDE - 1 and 0 < y < SIDE - 1:
                    free = all((x - o.x) ** 2 + (y - o.y) ** 2 > (1.1 * o.r) ** 2 for o in scene.things)
                    free &= all(not (s.x0 - 2 < x < s.x1 + 2 and s.y0 - 2 < y < SIDE) for s in scene.signs)
                    assert not free or np.abs(pixels[int(y), int(x)] - COLOURS[t.colour]).max() > 12


def test_large_shapes_cover_more_pixels_than_small_ones():
    for seed in range(80):
        scene = make_scene(random.Random(seed))
        area = {}
        for t in scene.things:
            alone = Scene(scene.width, scene.height, [t])
            near = np.abs(clean_pixels(alone) - COLOURS[t.colour]).max(-1) < 12
            area.setdefault((t.shape, t.size), []).append(near.sum())
        for shape in {s for s, _ in area}:
            if (shape, "small") in area and (shape, "large") in area:
                assert max(area[shape, "small"]) < min(area[shape, "large"])


def test_signs_do_not_cover_shapes():
    for seed in range(200):
        scene = make_scene(random.Random(seed))
        for t in scene.things:
            for s in scene.signs:
                dx = max(s.x0 - t.x, 0, t.x - s.x1)
                dy = max(s.y0 - t.y, 0, t.y - s.y1)
                assert dx**2 + dy**2 > t.r**2 * 0.99


def test_letters_are_ink_on_the_plate():
    for seed in range(60):
        scene = make_scene(random.Random(seed))
        pixels = clean_pixels(scene)
        for s in scene.signs:
            for _, x, w in s.letters:
                box = pixels[int(s.y0 + 2) : int(s.y1 - 1), int(x - w / 2) : int(x + w / 2) + 1]
                assert box.max() - box.min() > 60, (seed, s.word)


def test_codes_hold_each_thing_once():
    for seed in range(200):
        scene = make_scene(random.Random(seed))
        c = codes(scene)
        assert c.shape == (CELLS * CELLS, len(CODE))
        assert c[:, CODE["occupied", ""]].sum() == len(scene.things)
        for group in ("shape", "colour", "size"):
            a, b = GROUP[group]
            assert c[:, a:b].sum() == len(scene.things)
        if scene.sign:  # read the word back: cells from left to right, left place before right place
            place = np.concatenate([c[:, slice(*GROUP["left"])], c[:, slice(*GROUP["right"])]], 1)
            word = "".join(chr(65 + k % 26) for row in place for k in np.nonzero(row)[0])
            assert word == scene.sign.word


def test_word_split_is_disjoint():
    rng = random.Random(1)
    train = {pick_word(rng, "train") for _ in range(4000)}
    held = {pick_word(rng, "eval") for _ in range(4000)}
    assert not train & held
    assert all(held_out(w) for w in held) and not any(held_out(w) for w in train)


def test_outside_questions_are_split():
    assert not set(FIXED) & set(HELD_FIXED) and not set(PATTERNS) & set(HELD_PATTERNS)
    assert {_held(n) for n in NOUNS} == {True, False}


def test_answers_follow_from_the_facts():
    for seed in range(400):
        rng = random.Random(seed)
        scene = make_scene(rng)
        pairs = {(t.colour, t.shape) for t in scene.things}
        for kind in MIX["full"]:
            qa = one(kind, scene, rng)
            if qa is None:
                continue
            if qa.kind == "count_all":
                assert qa.answer == str(len(scene.things))
            elif qa.kind == "exist_adversarial":
                words = qa.question.lower().rstrip("?").split()
                named = [(c, s) for c in COLOURS for s in ("circle", "square", "triangle", "star", "cross", "heart") if c in words and s in words]
                assert qa.answer == "No" and len(named) == 1 and named[0] not in pairs
                assert named[0][0] in {c for c, _ in pairs} and named[0][1] in {s for _, s in pairs}
            elif qa.kind == "describe" and scene.things:
                assert qa.answer == describe(scene)
                assert all(f"{t.size} {t.colour} {t.shape}" in qa.answer for t in scene.things)
