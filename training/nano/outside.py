"""Questions that the little world cannot answer; the right reply is always "I can't tell."

Patterns and nouns are split: one noun in eight and a few whole patterns are only used in evaluation.
"""

from __future__ import annotations

import random
import zlib

NOUNS = (
    "dog cat man woman boy girl child baby person bird horse cow sheep pig car bus truck train bike boat plane tree flower house building road "
    "mountain river beach lake table chair bed sofa lamp window door cup plate fork knife spoon bottle bowl phone laptop keyboard screen book pen "
    "shirt hat shoe jacket dress bag umbrella ball toy kite pizza cake apple banana bread egg cheese salad soup fish elephant tiger lion zebra "
    "giraffe bear monkey rabbit mouse snake frog duck chicken goat deer fox wolf camel whale shark bee ant spider butterfly clock watch mirror "
    "picture frame wall floor roof fence bridge tower castle church school hospital shop kitchen bathroom garden field forest desert island sky "
    "sun moon cloud rain snow fire smoke water grass leaf stone sand glass metal wood paper box basket ladder rope wheel engine robot rocket "
    "guitar piano drum camera printer fridge oven toaster sink towel soap brush pillow blanket curtain carpet candle ring necklace crown sword "
    "shield flag map key lock coin wallet ticket letter stamp newspaper magazine teacher doctor farmer driver soldier king queen player singer "
    "dancer actor friend mother father brother sister teenager tourist waiter chef pilot nurse vegetable fruit sandwich burger hot dog cookie "
    "train station airport hotel restaurant market stadium park street corner traffic light skateboard surfboard snowboard tennis racket frisbee"
).split()
OTHER_COLOURS = "pink brown grey gray turquoise golden silver beige violet cyan magenta".split()
OTHER_SHAPES = "pentagon hexagon rectangle oval ellipse cube sphere cylinder pyramid cone spiral arrow crescent diamond octagon".split()
PATTERNS = [
    "Is there a {n}?",
    "Do you see a {n}?",
    "Is there a {n} in the picture?",
    "What {c} is the {n}?",
    "How many {n}s are there?",
    "Where is the {n}?",
    "What is the {n} doing?",
    "What is the {n} made of?",
    "Who owns the {n}?",
    "How old is the {n}?",
    "What is the name of the {n}?",
    "Is the {n} happy?",
    "Is the {n} moving?",
    "How much does the {n} cost?",
    "Why is the {n} there?",
    "What is next to the {n}?",
    "Is the {n} open or closed?",
    "What is behind the {n}?",
    "What brand is the {n}?",
    "Is the {n} real?",
    "Who made the {n}?",
    "How tall is the {n}?",
    "How heavy is the {n}?",
    "What is the {n} wearing?",
    "What is the {n} looking at?",
    "Where is the {n} going?",
    "What do you think of the {n}?",
    "Tell me about the {n}.",
    "Write a poem about the {n}.",
    "Which {n} is the best?",
    "Do you like the {n}?",
    "How do I cook the {n}?",
    "What is a {n}?",
    "Is the {n} clean?",
    "What sound does the {n} make?",
    "Is the {n} expensive?",
    "When was the {n} built?",
    "What language does the {n} speak?",
    "Who is the {n}?",
    "How fast is the {n}?",
    "What should I do with the {n}?",
    "Is the {n} old or new?",
    "What kind of {n} is it?",
    "Is the {n} larger than the {m}?",
    "Which is larger, the {n} or the {m}?",
    "Where is the {n} relative to the {m}?",
    "Is there a {n} next to the {m}?",
    "Is the {n} dangerous?",
    "What does the {n} eat?",
    "Can the {n} fly?",
    "What is the {n} used for?",
    "What {c} are the {n}s?",
    "How many {n}s do you see?",
    "What {c} is the {n} on the {m}?",
    "Where did the {n} come from?",
    "What is on top of the {n}?",
    "What is inside the {n}?",
    "How many people are near the {n}?",
]
HELD_PATTERNS = [
    "What does the {n} smell like?",
    "Is the {n} asleep?",
    "How many legs does the {n} have?",
    "What is under the {n}?",
    "Could you sell me the {n}?",
    "Does the {n} belong to the {m}?",
    "When will the {n} leave?",
    "What happened to the {n}?",
]
FIXED = [
    "What is the weather like?",
    "Who is the president?",
    "What time is it?",
    "What day is it today?",
    "What is your name?",
    "Who are you?",
    "Where am I?",
    "What is the capital of France?",
    "What is two plus two?",
    "Tell me a joke.",
    "What year is it?",
    "Who took this picture?",
    "Where was this picture taken?",
    "When was this picture taken?",
    "Is it day or night?",
    "Is it raining?",
    "Is it hot or cold?",
    "What season is it?",
    "How are you?",
    "What will happen next?",
    "Why is the sky blue?",
    "Who painted this?",
    "What is the mood of the picture?",
    "Is this a photograph?",
    "What country is this?",
    "What city is this?",
    "How many people are there?",
    "Is anybody there?",
    "What are they doing?",
    "What is he doing?",
    "What is she wearing?",
    "Who is he?",
    "How old is she?",
    "What is the meaning of life?",
    "Write a story.",
    "Write some code.",
    "Translate this.",
    "What is the distance to the moon?",
    "How do I get home?",
    "What does it mean?",
    "Why?",
    "How?",
    "Can you help me?",
    "Do you love me?",
    "Sing a song.",
    "What is the price?",
    "What is the temperature?",
    "What happened before?",
    "Is this art?",
    "Who drew this?",
    "How much is it?",
    "What is the phone number?",
    "What is the best food?",
    "Play some music.",
]
HELD_FIXED = [
    "What is the capital of Spain?",
    "Tell me a story.",
    "Who won the game?",
    "What month is it?",
    "Is it windy?",
    "What is three times four?",
    "Where do you live?",
    "What are you thinking?",
    "Is she smiling?",
    "What is the date?",
]


def _held(word: str) -> bool:
    return zlib.crc32(word.encode()) % 8 == 0


def outside_question(rng: random.Random, split: str) -> str:
    held = split != "train"
    nouns = [n for n in NOUNS if _held(n) == held]
    u = rng.random()
    if u < 0.2:
        return rng.choice(HELD_FIXED if held else FIXED)
    if u < 0.3:
        shape = rng.choice([s for s in OTHER_SHAPES if _held(s) == held] or OTHER_SHAPES)
        return rng.choice(["What {c} is the {n}?", "How many {n}s are there?", "Where is the {n}?"]).format(
            n=shape, c=rng.choice(["color", "colour"])
        )
    patterns = HELD_PATTERNS if held and rng.random() < 0.5 else PATTERNS
    return rng.choice(patterns).format(n=rng.choice(nouns), m=rng.choice(nouns), c=rng.choice(["color", "colour"]))
