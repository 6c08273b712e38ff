"""Questions about a `Scene` with their answers, each with the chance of a guesser who only knows what is in the picture.

Answers are short ("red", "2", "left", "No"), except a description. A question is never put when the facts leave
more than one answer. Kinds ending in a letter case the model must not learn to guess are balanced here:
yes/no is even, half of the absent pairs are adversarial (both the shape and the colour occur, not together).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from outside import outside_question
from scene import COLOURS, NAMES, POPULAR, SHAPES, SIZES, Scene, Thing

CANNOT = "I can't tell."
NO_PICTURE = "Please show me a picture."


@dataclass
class QA:
    kind: str
    question: str
    answer: str
    chance: float = 0.0
    points: tuple = ()  # (end of a phrase in the question, the Thing it points at)
    counts: int = 0  # end of the phrase in the question that says what is counted
    tells: tuple = ()  # (place in the answer behind which a Thing is told, the Thing)


MARKS = "\x01\x02"  # stand behind a phrase while a question is put together


def pointing(kind: str, text: str, things: list[Thing], answer: str, chance: float) -> QA:
    """A question whose marks show where the phrases for `things` end."""
    bare = text.translate({ord(m): None for m in MARKS})
    ends = [sum(c not in MARKS for c in text[: text.index(m)]) for m, _ in zip(MARKS, things)]
    return QA(kind, bare, answer, chance, tuple(zip(ends, things)))


PLURAL = {s: s + ("es" if s == "cross" else "s") for s in SHAPES}
ANY = ["shape", "shape", "object", "thing"]
TEMPLATES = {
    "shape": [
        "What shape is the {0}?",
        "What shape is the {0}?",
        "Which shape is {c}?",
        "What is the shape of the {0}?",
        "What kind of shape is the {0}?",
        "What is the {0}?",
        "The {0}: what shape is it?",
    ],
    "colour": [
        "What {col} is the {0}?",
        "What {col} is the {0}?",
        "Which {col} is the {0}?",
        "What is the {col} of the {0}?",
        "What {col} does the {0} have?",
        "Tell me the {col} of the {0}.",
        "The {0} is what {col}?",
    ],
    "size": [
        "Is the {0} large or small?",
        "Is the {0} small or large?",
        "How big is the {0}?",
        "What size is the {0}?",
        "Is the {0} big or small?",
    ],
    "count_all": [
        "How many {a}s are there?",
        "How many {a}s are in the picture?",
        "How many {a}s do you see?",
        "Count the {a}s.",
        "How many {a}s are there in total?",
        "How many {a}s are there in the image?",
        "What is the number of {a}s?",
    ],
    "count": [
        "How many {0} are there?",
        "How many {0} are there?",
        "How many {0} do you see?",
        "Count the {0}.",
        "How many {0} are in the picture?",
        "How many {0} are there in the image?",
        "How many {0} can you see?",
    ],
    "exist": [
        "Is there {0}?",
        "Is there {0} in the picture?",
        "Is there {0} in the image?",
        "Do you see {0}?",
        "Can you see {0}?",
        "Does the picture show {0}?",
        "Is {0} in the picture?",
    ],
    "where": [
        "Where is the {0} relative to the {1}?",
        "Where is the {0} relative to the {1}?",
        "Where is the {0} compared to the {1}?",
        "Where is the {0} in relation to the {1}?",
        "Seen from the {1}, where is the {0}?",
        "On which side of the {1} is the {0}?",
    ],
    "where_yn": ["Is the {0} {r} the {1}?", "Is the {0} {r} the {1}?", "Is the {0} located {r} the {1}?"],
    "larger": [
        "Which is larger, the {0} or the {1}?",
        "Which is bigger, the {0} or the {1}?",
        "Which one is larger, the {0} or the {1}?",
        "What is larger, the {0} or the {1}?",
    ],
    "smaller": [
        "Which is smaller, the {0} or the {1}?",
        "Which one is smaller, the {0} or the {1}?",
        "What is smaller, the {0} or the {1}?",
    ],
    "read": [
        "What does the sign say?",
        "What does the sign say?",
        "Read the sign.",
        "What is written on the sign?",
        "What word is on the sign?",
        "Which word is on the sign?",
        "What is the word on the sign?",
        "Can you read the sign?",
        "What does it say on the sign?",
        "Read the word on the sign.",
        "What does the text say?",
        "Read the text.",
    ],
    "sign_colour": [
        "What {col} is the sign?",
        "What {col} is the sign?",
        "Which {col} is the sign?",
        "What is the {col} of the sign?",
        "Tell me the {col} of the sign.",
    ],
    "describe": [
        "Describe the picture.",
        "Describe the picture.",
        "Describe the image.",
        "Describe this picture.",
        "Describe this image.",
        "What is in this picture?",
        "What is in the picture?",
        "What do you see?",
        "What is in the image?",
        "What can you see in the picture?",
        "Describe what you see.",
        "What is shown in the picture?",
        "What does the picture show?",
        "Describe the scene.",
        "What's in this picture?",
        "Describe the image in detail.",
    ],
}
SIDES = {"left": "left of", "right": "right of", "above": "above", "below": "below"}


def vary(text: str, rng: random.Random) -> str:
    """Small differences in how people type."""
    u = rng.random()
    if u < 0.12:
        text = text[0].lower() + text[1:]
    elif u < 0.2:
        text = text.rstrip("?.")
    elif u < 0.28:
        text = text[0].lower() + text[1:].rstrip("?.")
    if rng.random() < 0.03:
        text = "Please " + text[0].lower() + text[1:] if not text.endswith("?") else text
    return text


def article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def names_for(scene: Scene, t: Thing, avoid: str = "") -> list[str]:
    """Phrases that point at `t` and nothing else; `avoid` names the attribute that must not be given away."""
    same = [o for o in scene.things if o is not t]
    out = []
    if avoid != "shape" and all(o.shape != t.shape for o in same):
        out.append(t.shape)
    if avoid != "colour" and all(o.colour != t.colour for o in same):
        out.append(f"{t.colour} ")
    if not avoid and all((o.shape, o.colour) != (t.shape, t.colour) for o in same):
        out += [f"{t.colour} {t.shape}"] * 2
    if avoid == "colour" and all((o.shape, o.size) != (t.shape, t.size) for o in same):
        out.append(f"{t.size} {t.shape}")
    if avoid == "shape" and all((o.colour, o.size) != (t.colour, t.size) for o in same):
        out.append(f"{t.size} {t.colour} ")
    return out


def phrase(name: str, rng) -> str:
    return name + rng.choice(ANY) if name.endswith(" ") else name


def describe(scene: Scene) -> str:
    parts = [f"a {t.size} {t.colour} {t.shape}" for t in scene.ordered()]
    if scene.sign:
        parts.append(f"{article(scene.sign.colour)} sign that says {scene.sign.word}")
    if not parts:
        return "An empty scene."
    text = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    return text[0].upper() + text[1:] + "."


def side_of(a: Thing, b: Thing) -> str | None:
    dx, dy = a.x - b.x, a.y - b.y
    if max(abs(dx), abs(dy)) < 16:
        return None
    if abs(dx) > 1.4 * abs(dy):
        return "left" if dx < 0 else "right"
    if abs(dy) > 1.4 * abs(dx):
        return "above" if dy < 0 else "below"
    return None


def _fill(kind, rng, *args, **more):
    return rng.choice(TEMPLATES[kind]).format(*args, col=rng.choice(["color", "colour"]), a=rng.choice(ANY), **more)


def one(kind: str, scene: Scene, rng: random.Random, split: str = "train") -> QA | None:
    """One question of a kind, or None when this scene has none."""
    things = scene.things
    pick = rng.choice(things) if things else None
    shapes, colours = {t.shape for t in things}, {t.colour for t in things}
    if kind in ("shape", "colour", "size"):
        if pick is None:
            return None
        if rng.random() < 0.08 and kind != "size":  # a false premise
            if kind == "shape":
                c = rng.choice([c for c in NAMES if c not in colours])
                n = rng.choice(ANY)
                return QA("missing", vary(_fill("shape", rng, f"{c} {n}", c=c), rng), f"There is no {c} shape.")
            s = rng.choice([s for s in SHAPES if s not in shapes] or [None])
            return s and QA("missing", vary(_fill("colour", rng, s), rng), f"There is no {s}.")
        names = names_for(scene, pick, "" if kind == "size" else kind)
        if not names:
            return None
        name = rng.choice(names)
        text = _fill(kind, rng, phrase(name, rng) + MARKS[0], c=name.strip() + MARKS[0])
        options = {"shape": shapes, "colour": colours, "size": SIZES}[kind]
        return pointing(kind, vary(text, rng), [pick], getattr(pick, kind), 1 / len(options))
    if kind == "count_all":
        return QA(kind, vary(_fill(kind, rng), rng), str(len(things)))
    if kind == "count":
        how = rng.choice(["shape", "shape", "colour", "colour", "pair", "size"])
        present = pick is not None and rng.random() < 0.78
        s = pick.shape if present else rng.choice(SHAPES)
        c = pick.colour if present else rng.choice(NAMES)
        z = rng.choice(SIZES)
        n = sum(
            (how not in ("shape", "pair") or t.shape == s) and (how not in ("colour", "pair") or t.colour == c) and (how != "size" or t.size == z)
            for t in things
        )
        noun = {"shape": PLURAL[s], "colour": f"{c} {rng.choice(ANY)}s", "pair": f"{c} {PLURAL[s]}", "size": f"{z} {rng.choice(ANY)}s"}[how]
        text = vary(_fill("count", rng, noun + MARKS[0]), rng)
        return QA(kind, text.replace(MARKS[0], ""), str(n), counts=text.index(MARKS[0]))
    if kind.startswith("exist"):
        return _exist(kind, scene, rng, shapes, colours)
    if kind in ("where", "where_yn", "larger", "smaller"):
        return _pair(kind, scene, rng)
    if kind == "read":
        text = vary(_fill("read", rng), rng)
        return QA("read", text, scene.sign.word) if scene.sign else QA("read_none", text, "There is no sign.")
    if kind == "sign_colour":
        return QA(kind, vary(_fill(kind, rng), rng), scene.sign.colour, 1 / len(NAMES)) if scene.sign else None
    if kind == "describe":
        text, tells = describe(scene), []
        for t in scene.ordered():
            end = text.index(f" {t.size} {t.colour} {t.shape}", tells[-1][0] if tells else 0)
            tells.append((end, t))
        return QA(kind, vary(_fill(kind, rng), rng), text, tells=tuple(tells))
    if kind == "unknown":
        return QA(kind, vary(outside_question(rng, split), rng), CANNOT)
    raise KeyError(kind)


def _exist(kind, scene, rng, shapes, colours) -> QA | None:
    ask = lambda k, noun, a: QA(k, vary(_fill("exist", rng, article(noun)), rng), a, 0.5)  # noqa: E731
    pairs = {(t.colour, t.shape) for t in scene.things}
    if kind == "exist_sign":
        return ask(kind, "sign", "Yes" if scene.sign else "No")
    if kind == "exist_yes":
        if not scene.things:
            return None
        t = rng.choice(scene.things)
        return ask(
            kind,
            rng.choice([t.shape, f"{t.colour} {rng.choice(ANY)}"] + [f"{t.colour} {t.shape}"] * 4 + [f"{t.size} {t.colour} {t.shape}"]),
            "Yes",
        )
    if kind == "exist_random":
        u = rng.random()
        if u < 0.2:
            s = rng.choice(SHAPES)
            return ask(kind, s, "No") if s not in shapes else None
        if u < 0.35:
            c = rng.choice(NAMES)
            return ask(kind, f"{c} {rng.choice(ANY)}", "No") if c not in colours else None
        pool = [(c, s) for c in NAMES for s in SHAPES if (c, s) not in pairs]
    elif kind == "exist_popular":
        pool = [p for p in POPULAR if p not in pairs]
    else:
        pool = [(c, s) for c in colours for s in shapes if (c, s) not in pairs]
    if not pool:
        return None
    return ask(kind, " ".join(rng.choice(pool)), "No")


def _pair(kind, scene, rng) -> QA | None:
    if len(scene.things) < 2:
        return None
    a, b = rng.sample(scene.things, 2)
    names_a, names_b = names_for(scene, a), names_for(scene, b)
    if not names_a or not names_b:
        return None
    pa, pb = phrase(rng.choice(names_a), rng), phrase(rng.choice(names_b), rng)
    if kind in ("larger", "smaller"):
        if a.size == b.size:
            return None
        win = pa if (a.size == "large") == (kind == "larger") else pb
        return pointing(kind, vary(_fill(kind, rng, pa + MARKS[0], pb + MARKS[1]), rng), [a, b], "The " + win, 0.5)
    side = side_of(a, b)
    if side is None:
        return None
    if kind == "where":
        return pointing(kind, vary(_fill(kind, rng, pa + MARKS[0], pb + MARKS[1]), rng), [a, b], side, 0.25)
    said = side if rng.random() < 0.5 else {"left": "right", "right": "left", "above": "below", "below": "above"}[side]
    words = SIDES[said] if rng.random() < 0.7 or said in ("above", "below") else f"to the {said} of"
    text = vary(_fill(kind, rng, pa + MARKS[0], pb + MARKS[1], r=words), rng)
    return pointing(kind, text, [a, b], "Yes" if said == side else "No", 0.5)


# kind: share of the questions, by phase. `lookup` comes first: only what needs the look-up circuits. `hard` is for the
# decoder: much of what it learns slowly. `full` is the mix that people are expected to ask.
MIX = {
    "lookup": dict(shape=3, colour=4, size=2, exist_yes=3, exist_adversarial=4, exist_popular=0.5, exist_random=0.5, count=1, where=1, read=2),
    "hard": dict(
        shape=0.8,
        colour=1,
        size=0.5,
        count_all=2,
        count=6,
        exist_yes=1.2,
        exist_random=0.4,
        exist_popular=0.3,
        exist_adversarial=1.4,
        exist_sign=0.2,
        where=4,
        where_yn=2.5,
        larger=2.5,
        smaller=2,
        read=5,
        sign_colour=0.6,
        describe=2,
        unknown=0.6,
    ),
    "full": dict(
        shape=2,
        colour=2.5,
        size=1.2,
        count_all=1.2,
        count=3,
        exist_yes=2.8,
        exist_random=0.8,
        exist_popular=0.5,
        exist_adversarial=3.6,
        exist_sign=0.3,
        where=3,
        where_yn=1.5,
        larger=1.8,
        smaller=1.4,
        read=3,
        sign_colour=0.7,
        describe=1.6,
        unknown=1.6,
    ),
}
EVAL_KINDS = list(MIX["full"])


def ask_many(scene: Scene, rng: random.Random, split="train", mix="full", most=9) -> list[QA]:
    kinds, weights = zip(*MIX[mix].items())
    out, seen = [], set()
    for kind in rng.choices(kinds, weights, k=most):
        if kind in ("describe", "read", "count_all", "sign_colour", "exist_sign") and kind in seen:
            continue
        seen.add(kind)
        qa = one(kind, scene, rng, split)
        if qa is not None:
            out.append(qa)
    return out


assert set(NAMES) == set(COLOURS)
