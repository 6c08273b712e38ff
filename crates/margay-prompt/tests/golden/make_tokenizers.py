"""Makes spm_rules.json: `python make_tokenizers.py` in this folder (needs sentencepiece, protobuf).

A SentencePiece BPE model with everything the LLaMA family leaves out: compiled normalisation rules, removal of extra
whitespace, user-defined symbols, no byte fallback; and spm_bytes, with byte fallback and repetitive pieces. Each with
texts and what the sentencepiece library makes of them. The training text is made up here.
"""
import io
import json
import random
import tempfile

import sentencepiece as spm
from sentencepiece import sentencepiece_model_pb2 as pb

random.seed(7)
WORDS = "the sign says stop go left right red blue green cat dog aaa aaaa bababa ababab lalala cocococo one two three".split()
LINES = [" ".join(random.choice(WORDS) for _ in range(random.randint(3, 12))) for _ in range(600)]


def train(**kw):
    out = io.BytesIO()
    spm.SentencePieceTrainer.train(sentence_iterator=iter(LINES), model_writer=out, model_type="bpe",
                                   character_coverage=1.0, minloglevel=2, **kw)
    return out.getvalue()


def texts(extra):
    fixed = ["", " ", "  ", "the sign", " the  sign ", "aaa", "aaaaa", "aaaaaaa", "abababa", "bababab", "lalalalala",
             "x", "xyz the ŷŷ", "日本 sign", "🙂🙂 cat", "<sep>", "a<sep>b", "<sep><sep>the", "the<sep> sign", "<s> </s>",
             "ﬁne", "ＳＴＯＰ", "A\tB", "\n", "éé", "cocococococo", "▁the", "the▁sign"]
    alphabet = ["a", "b", "la", " ", "  ", "aaa", "the", "sign", "<sep>", "<", "é", "ﬁ", "🙂", "日", "co", "\t", "Ｓ", "stop"]
    fuzz = ["".join(random.choice(alphabet) for _ in range(random.randint(1, 14))) for _ in range(300)]
    return fixed + extra + fuzz


def describe(model, extra=()):
    sp = spm.SentencePieceProcessor(model_proto=model)
    m = pb.ModelProto()
    m.ParseFromString(model)
    n, t = m.normalizer_spec, m.trainer_spec
    return {
        "pieces": [[p.piece, p.score, p.type] for p in m.pieces],
        "unk_id": t.unk_id, "bos_id": t.bos_id, "eos_id": t.eos_id,
        "byte_fallback": t.byte_fallback,
        "add_dummy_prefix": n.add_dummy_prefix,
        "remove_extra_whitespaces": n.remove_extra_whitespaces,
        "precompiled_charsmap": n.precompiled_charsmap.hex(),
        "cases": [{"text": x, "ids": sp.encode(x), "decoded": sp.decode(sp.encode(x))} for x in texts(list(extra))],
    }


with tempfile.NamedTemporaryFile("w", suffix=".tsv") as rules:
    # code points in hex: ligature fi, full-width A-Z, tab to space, é to e
    pairs = [("FB01", "66 69"), ("9", "20"), ("E9", "65"), ("1F642 1F642", "3A 29")]
    pairs += [(f"{0xFF21 + i:X}", f"{0x61 + i:X}") for i in range(26)]
    rules.write("".join(f"{a}\t{b}\n" for a, b in pairs))
    rules.flush()
    ruled = train(vocab_size=90, user_defined_symbols=["<sep>", "aaaa"], normalization_rule_tsv=rules.name,
                  remove_extra_whitespaces=True)
plain = train(vocab_size=400, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
              add_dummy_prefix=True, max_sentencepiece_length=24, split_by_whitespace=False)
no_prefix = train(vocab_size=400, byte_fallback=True, normalization_rule_name="identity",
                  remove_extra_whitespaces=False, add_dummy_prefix=False, user_defined_symbols=["  ", "    ", "the"])
# Half of the words of the last model become unused, to be taken apart again.
m = pb.ModelProto()
m.ParseFromString(no_prefix)
for i, p in enumerate(m.pieces):
    if p.type == 1 and len(p.piece) > 1 and i % 2:
        p.type = 5
with open("spm_rules.json", "w") as f:
    json.dump({"rules": describe(ruled), "bytes": describe(plain), "unused": describe(m.SerializeToString())}, f,
              ensure_ascii=False, separators=(",", ":"))
