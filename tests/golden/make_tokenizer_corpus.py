"""Write corpus.json and tokenizer.gguf beside each tokenizer of tests/golden/tokenizers/.

corpus.json is a list of {"text", "ids", "decoded"}:
  spm/      ids and decoded from the sentencepiece library itself (no BOS);
            spm/disagreements.json lists the texts for which the two Hugging Face forms differ
  bbpe*/    ids and decoded from the Hugging Face tokenizers library
            (add_special_tokens=False; special tokens written in the text are recognised)

tokenizer.gguf holds the tokenizer metadata only, as public converters write it, made with the
gguf Python package.

Usage: python make_tokenizer_corpus.py     (after make_tokenizer.py)
"""

import json
import os
import sys
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import gguf
import sentencepiece as spm
from tokenizers import Tokenizer

from make_tokenizer import OUT, convert_spm

LONG = "".join("abcdefghijklmnopqrstuvwxyz"[(i * i + 3 * i) % 26] for i in range(2000))

TEXTS = [
    # empty, spaces, tabs, line ends
    "",
    " ",
    "  ",
    "   ",
    "        ",
    "\t",
    "\t\t",
    "\n",
    "\n\n",
    "\n\n\n",
    "\r\n",
    "\r\n\r\n",
    "\r",
    " \n",
    "\n ",
    " \t \n ",
    "a",
    " a",
    "  a",
    "a ",
    "a  ",
    " a ",
    "   three leading",
    "three trailing   ",
    "in   the   middle",
    "one\ttwo\t\tthree",
    "line one\nline two\n\nline four\n",
    "line one\r\nline two\r\n",
    "\n  indented\n    more\n",
    "\nUSER",
    "\nWhat is in the picture?",
    "no-break\u00a0space, thin\u2009space, ideographic\u3000space",
    "zero\u200bwidth\u200cnon\u200djoiner\ufeffmark",
    "line\u2028separator\u2029paragraph\u0085next",
    "vertical\u000btab and form\u000cfeed",
    # sentences near the training text
    "What does the sign say?",
    "The sign says \"OPEN\".",
    "USER: What colour is the ball? ASSISTANT:",
    "A chat between a curious user and an artificial intelligence assistant.",
    "Describe the picture.",
    "Answer the question using a single word or phrase.",
    "the picture the picture the picture",
    "The cat sat on the mat, and the dog looked on.",
    "Hello, world!",
    "hello world",
    "HELLO WORLD",
    "HeLLo WoRLd",
    "antidisestablishmentarianism",
    "Supercalifragilisticexpialidocious?!",
    "don't, can't, I'm, you're, we've, they'll, he'd, IT'S, DON'T",
    "rock 'n' roll",
    "'quoted' \"double\" `back` \u2018curly\u2019 \u201cdouble curly\u201d \u00abguillemets\u00bb",
    "e.g. i.e. etc... wait\u2026 what?!?! --- \u2014 \u2013 -",
    "semi;colon:comma,dot.under_score-hyphen/slash\\back|pipe",
    "!!!???...,,,;;;:::",
    "(((nested) brackets] {mixed}>",
    # digits
    "0",
    "7",
    "42",
    "123",
    "1234",
    "12345",
    "1234567890",
    "3.14159",
    "1,234,567.89",
    "-5 +5 5% $5 5\u20ac \u00a35",
    "2024-01-31T23:59:60Z",
    "192.168.0.1:8080",
    "a1b2c3",
    "10 000 000",
    "0x1F 0b1010 1e-10 6.02e23",
    "\u0661\u0662\u0663 \u096a\u096b\u096c \uff11\uff12\uff13",
    "\u00bd \u00b2 \u00b3 \u2460 \u2167 \u216b",
    # code
    "fn main() { println!(\"{}\", 1 + 2); }",
    "def f(x):\n    return x ** 2\n",
    "if (a<b && c>=d || !e) { x += y[i++]; }",
    "{\"key\": [1, 2.5, null, true], \"n\": {}}",
    "<div class=\"a b\">text &amp; more</div>",
    "SELECT * FROM t WHERE a = 'b' AND c <> 3;",
    "C:\\Users\\name\\file.txt  /usr/bin/env",
    "https://example.org/path?query=value&x=1#frag",
    "someone@example.org",
    "\tif x:\n\t\ty = 1\n",
    "#!/bin/sh\nset -e\necho \"$HOME\" | sed 's/a/b/g'\n",
    "\\frac{a}{b} + \\sqrt{x^2} = \\sum_{i=0}^{n} i",
    # scripts
    "Caf\u00e9 cr\u00e8me, na\u00efve fa\u00e7ade, \u0153uvre",
    "Gr\u00f6\u00dfe \u00fcber Stra\u00dfe, \u00c4\u00d6\u00dc",
    "\u00bfQu\u00e9 es eso? \u00a1Ma\u00f1ana!",
    "Za\u017c\u00f3\u0142\u0107 g\u0119\u015bl\u0105 ja\u017a\u0144",
    "P\u0159\u00edli\u0161 \u017elu\u0165ou\u010dk\u00fd k\u016f\u0148",
    "\u0130stanbul'da \u0131\u015f\u0131k",
    "\u041a\u043e\u0448\u043a\u0430 \u0441\u0438\u0434\u0438\u0442 \u043d\u0430 \u0434\u0435\u0440\u0435\u0432\u0435.",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u042b \u042d \u042e",
    "\u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac \u03ba\u03b5\u03af\u03bc\u03b5\u03bd\u03b1",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645\u060c \u0643\u064a\u0641\u061f",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e",
    "\u09ac\u09be\u0982\u09b2\u09be \u09b2\u09c7\u0996\u09be",
    "\u0ba4\u0bae\u0bbf\u0bb4\u0bcd \u0b8e\u0bb4\u0bc1\u0ba4\u0bcd\u0ba4\u0bc1",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01",
    "\u1019\u103c\u1014\u103a\u1019\u102c\u1005\u102c",
    "\u10e5\u10d0\u10e0\u10d7\u10e3\u10da\u10d8 \u0540\u0561\u0575\u0565\u0580\u0565\u0576",
    "\u12a0\u121b\u122d\u129b \u13e3\u13b3\u13a9",
    "\u5c0f\u732b\u5750\u5728\u6811\u4e0a\u770b\u7740\u6cb3\u3002",
    "\u4eca\u5929\u5929\u6c14\u5f88\u597d\uff0c\u6211\u4eec\u53bb\u516c\u56ed\u5427\u3002",
    "\u9f98\u9f96\u9f9e \u4e28\u4e36\u4e3f \u3400\u4dbf",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8\u3001\uff76\uff85\u3002",
    "\ud55c\uad6d\uc5b4 \ubb38\uc7a5\uc785\ub2c8\ub2e4.",
    "\u1112\u1161\u11ab\u1100\u1173\u11af",
    "Ti\u1ebfng Vi\u1ec7t c\u00f3 d\u1ea5u",
    "mixed \u0420\u0443\u0441\u0441\u043a\u0438\u0439 and \u4e2d\u6587 and English",
    # combining marks and forms
    "cafe\u0301 versus caf\u00e9",
    "n\u0303 a\u030a o\u0308 \u1e69 s\u0323\u0307",
    "Z\u0351\u036b\u0343a\u0363\u0366l\u030dg\u0354o\u0321",
    "\u212b \u00c5 A\u030a \u2126 \u03a9",
    "\ufb01ne \ufb02ow \uff37\uff29\uff24\uff25",
    # emoji
    "\U0001f600",
    "Hi \U0001f44b\U0001f3fd there \U0001f44d",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 family",
    "\U0001f3f3\ufe0f\u200d\U0001f308 \U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7",
    "1\ufe0f\u20e3 \u2764\ufe0f \u270c\U0001f3ff",
    "\U0001f9d1\u200d\U0001f680\U0001f9d1\U0001f3fb\u200d\U0001f4bb!!",
    # rare planes and odd code points
    "\U00010348\U00010330 \U0001d54f\U0001d7d8 \U00020000\U0002a6d6",
    "\U000e0041\U000e007f \U000f0000 \U0010ffff",
    "\ue000 private, \ufffd replacement, \ufffe noncharacter",
    "nul\u0000inside, bell\u0007, escape\u001b[0m, delete\u007f",
    "\u202eright to left\u202c override",
    "\u2581 lower one eighth block \u2581\u2581 here",
    "\u0120 \u010a looks like byte-level text",
    "<0x41><0x0A> looks like a byte token",
    # special tokens in the text
    "<s>",
    "</s>",
    "<unk>",
    "before <s> between </s> after",
    "<|endoftext|>",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "a<|im_end|>b",
    " <|im_end|> ",
    "<|im_start|><|im_end|><|endoftext|>",
    "<|im_start <|im_end| |im_end|>",
    "<tool_call>{\"name\": \"f\"}</tool_call>",
    "<image>\nWhat is this?",
    "[INST] hello [/INST]",
    # long
    LONG,
    "a" * 300,
    " ".join(["word"] * 120),
    " " * 100 + "x",
    "ab" * 64 + "\n" * 40,
    "\u732b" * 90,
    "\U0001f408" * 40,
]


def write_corpus(folder, encode, decode):
    rows = []
    for text in TEXTS:
        ids = [int(i) for i in encode(text)]
        rows.append({"text": text, "ids": ids, "decoded": decode(ids)})
    lines = [json.dumps(row, ensure_ascii=True) for row in rows]
    (folder / "corpus.json").write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="ascii")
    return rows


def base_writer(path, name):
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(0)
    return writer


def close(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def spm_types(processor):
    types = []
    for i in range(processor.get_piece_size()):
        if processor.is_unknown(i):
            types.append(gguf.TokenType.UNKNOWN)
        elif processor.is_control(i):
            types.append(gguf.TokenType.CONTROL)
        elif processor.is_unused(i):
            types.append(gguf.TokenType.UNUSED)
        elif processor.is_byte(i):
            types.append(gguf.TokenType.BYTE)
        else:
            types.append(gguf.TokenType.NORMAL)
    return types


def make_spm():
    folder = OUT / "spm"
    processor = spm.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    rows = write_corpus(folder, lambda t: processor.encode(t, add_bos=False), processor.decode)

    forms = {
        "tokenizer.json (Prepend normalizer, as published)": Tokenizer.from_file(
            str(folder / "tokenizer.json")
        ),
        "Metaspace pre-tokenizer (as transformers 5 writes)": convert_spm(
            folder / "tokenizer.model", legacy=False
        ),
    }
    differing = []
    for name, fast in forms.items():
        for row in rows:
            ids = fast.encode(row["text"], add_special_tokens=False).ids
            decoded = fast.decode(row["ids"], skip_special_tokens=False)
            entry = {"form": name, "text": row["text"]}
            if ids != row["ids"]:
                entry["ids"] = ids
            if decoded != row["decoded"]:
                entry["decoded_from_reference_ids"] = decoded
            if len(entry) > 2:
                differing.append(entry)
    lines = [json.dumps(row, ensure_ascii=True) for row in differing]
    (folder / "disagreements.json").write_text(
        "[\n" + ",\n".join(lines) + "\n]\n", encoding="ascii"
    )
    for name in forms:
        mine = [d for d in differing if d["form"] == name]
        print(f"spm, {name}: {len(mine)} of {len(rows)} texts differ")
        for d in mine:
            what = [k for k in ("ids", "decoded_from_reference_ids") if k in d]
            print("   ", ascii(d["text"][:60]), *what)

    writer = base_writer(folder / "tokenizer.gguf", "golden spm tokenizer")
    count = processor.get_piece_size()
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([processor.id_to_piece(i).encode("utf-8") for i in range(count)])
    writer.add_token_scores([processor.get_score(i) for i in range(count)])
    writer.add_token_types(spm_types(processor))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(True)
    close(writer)


def make_byte_level(name, pre, bos, eos, pad, add_bos, padding):
    folder = OUT / name
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows = write_corpus(
        folder,
        lambda t: tokenizer.encode(t, add_special_tokens=False).ids,
        lambda ids: tokenizer.decode(ids, skip_special_tokens=False),
    )
    changed = [r for r in rows if r["decoded"] != r["text"]]
    print(f"{name}: {len(rows)} texts, {len(changed)} do not decode to themselves")
    for row in changed:
        print("   ", ascii(row["text"][:60]), ascii(row["decoded"][:60]))

    parsed = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    count = tokenizer.get_vocab_size()
    added = {t["id"]: t for t in parsed["added_tokens"]}
    tokens, types = [], []
    for i in range(count + padding):
        if i >= count:
            tokens.append(f"[PAD{i}]")
            types.append(gguf.TokenType.UNUSED)
            continue
        tokens.append(tokenizer.id_to_token(i))
        if i in added:
            special = added[i]["special"]
            types.append(gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED)
        else:
            types.append(gguf.TokenType.NORMAL)

    writer = base_writer(folder / "tokenizer.gguf", f"golden {name} tokenizer")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = [m if isinstance(m, str) else " ".join(m) for m in parsed["model"]["merges"]]
    writer.add_token_merges(merges)
    if bos:
        writer.add_bos_token_id(tokenizer.token_to_id(bos))
    writer.add_eos_token_id(tokenizer.token_to_id(eos))
    if pad:
        writer.add_pad_token_id(tokenizer.token_to_id(pad))
    writer.add_add_bos_token(add_bos)
    writer.add_add_space_prefix(False)
    close(writer)


def main():
    assert len(set(TEXTS)) == len(TEXTS) >= 120, len(TEXTS)
    make_spm()
    end = "<|endoftext|>"
    make_byte_level("bbpe", "gpt-2", end, end, end, False, 0)
    make_byte_level("bbpe-qwen2", "qwen2", end, "<|im_end|>", end, False, 7)
    make_byte_level("bbpe-llama3", "llama-bpe", "<|begin_of_text|>", "<|im_end|>", None, True, 0)


if __name__ == "__main__":
    sys.exit(main())
