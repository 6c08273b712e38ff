"""The SentencePiece BPE tokenizer, LLaMA settings, and the chat format.

Words on signs must be one piece a letter, whatever the word. They are kept out of the training text, so no two
capitals ever merge; the chat roles are put in afterwards, piece by piece along their prefixes, and `scene.usable`
keeps words with those prefixes off the signs. (user_defined_symbols would do the same for SentencePiece, but other
readers of the file split the text at such pieces, and each part would get its own leading space.)

    python tokenizer.py OUT_DIR      # trains OUT_DIR/tokenizer.model
"""

from __future__ import annotations

import random
import sys
from functools import lru_cache
from pathlib import Path

import sentencepiece as spm

from questions import NO_PICTURE, ask_many
from scene import LETTERS, make_scene

BOS, EOS = 1, 2
PIECES = 768
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ 'USER: ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for item in message['content'] %}{% if item['type'] == 'image' %}{{ '<image>\\n' }}"
    "{% elif item['type'] == 'text' %}{{ item['text'] }}{% endif %}{% endfor %}{% endif %}{{ ' ' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT: ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for item in message['content'] %}{% if item['type'] == 'text' %}{{ item['text'] }}{% endif %}{% endfor %}{% endif %}{{ eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def corpus(n: int = 9000):
    rng = random.Random(5)
    for _ in range(n):
        scene = make_scene(rng)
        for qa in ask_many(scene, rng):
            answer = qa.answer if not scene.sign else qa.answer.replace(scene.sign.word, "")
            yield qa.question
            yield " " + answer
    for _ in range(200):
        yield NO_PICTURE


def train(folder: Path) -> None:
    from sentencepiece import sentencepiece_model_pb2 as pb

    folder.mkdir(parents=True, exist_ok=True)
    roles = [f"▁{role[:i]}" for role in ("USER", "ASSISTANT") for i in range(1, len(role) + 1)]
    wanted = [f"▁{a}" for a in LETTERS] + roles
    spm.SentencePieceTrainer.train(
        sentence_iterator=corpus(),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=PIECES - 16,
        byte_fallback=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        split_digits=True,
        required_chars=LETTERS + "".join(map(chr, range(33, 127))),
        minloglevel=2,
        num_threads=1,
    )
    model = pb.ModelProto()
    model.ParseFromString((folder / "tokenizer.model").read_bytes())
    model.trainer_spec.model_prefix = "tokenizer"  # not the path of the machine that trained it
    # Order: control and bytes, then merges by rank, then single characters. New pieces rank after the last merge.
    pieces = list(model.pieces)
    have = {p.piece for p in pieces}
    first_char = next(i for i, p in enumerate(pieces) if p.type == p.NORMAL and len(p.piece) == 1)
    head, tail = pieces[:first_char], pieces[first_char:]
    keep_merges = PIECES - len(tail) - len([w for w in dict.fromkeys(wanted) if w not in have])
    dropped = [p.piece for p in head[keep_merges:]]
    head = head[:keep_merges]
    new = [w for w in dict.fromkeys(wanted) if w not in {p.piece for p in head}]
    head = head[: PIECES - len(tail) - len(new)]
    del model.pieces[:]
    rank = 0
    for name, group in (("old", head), ("new", new), ("char", tail)):
        for item in group:
            piece = model.pieces.add()
            if name == "new":
                piece.piece, piece.type = item, piece.NORMAL
            else:
                piece.CopyFrom(item)
            if piece.type == piece.NORMAL:
                piece.score = -float(rank)
                rank += 1
    model.trainer_spec.vocab_size = len(model.pieces)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    (folder / "tokenizer.vocab").unlink(missing_ok=True)
    print(f"{len(model.pieces)} pieces; left out {dropped[:8]}")


class Tokenizer:
    """Text to ids, the LLaVA way: the two sides of `<image>` apart, one BOS, the picture in the gap."""

    def __init__(self, path: str | Path):
        self.sp = spm.SentencePieceProcessor(model_file=str(path))
        self.encode = lru_cache(maxsize=200_000)(lambda text: tuple(self.sp.encode(text)))
        self.before = (BOS, *self.encode("USER: "))  # before the picture
        self.size = self.sp.vocab_size()

    def question(self, text: str) -> tuple:
        """Right of the picture, up to the point where the answer starts."""
        return self.encode(f"\n{text} ASSISTANT:")

    def answer(self, text: str) -> tuple:
        """` answer</s>`: the space belongs to the first piece."""
        return (*self.encode(text), EOS)

    def turn(self, text: str) -> tuple:
        """A later question of the same conversation, after `</s>`."""
        return self.encode(f"USER: {text} ASSISTANT:")

    def until(self, write, text: str, end: int) -> int:
        """Tokens of `write(text)` up to the character `end`, which ends a word."""
        whole, part = write(text), write(text[:end] + ";")  # a sign that no question goes on with
        same = 0
        while same < len(part) and part[same] == whole[same]:
            same += 1
        return same

    def decode(self, ids) -> str:
        return self.sp.decode([int(i) for i in ids if i > EOS])


if __name__ == "__main__":
    train(Path(sys.argv[1]))
