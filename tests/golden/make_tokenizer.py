"""Train the four small tokenizers of tests/golden/tokenizers/ from training_text.txt.

  spm/           SentencePiece BPE with the settings of LLaMA (tokenizer.model) and the
                 tokenizer.json the transformers converter makes of it
  bbpe/          byte-level BPE, GPT-2 pre-tokenizer
  bbpe-qwen2/    byte-level BPE, NFC and the Qwen2 pre-tokenizer (one digit at a time)
  bbpe-llama3/   byte-level BPE, LLaMA-3 pre-tokenizer (up to three digits), ignore_merges

Usage: python make_tokenizer.py
"""

import io
import json
import os
import sys
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import sentencepiece as spm
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

HERE = Path(__file__).resolve().parent
TEXT = HERE / "training_text.txt"
OUT = HERE / "tokenizers"

VOCAB_SPM = 512
VOCAB_BBPE = 600

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"|\p{N}| ", r"|\p{N}{1,3}| ")

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def dump(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# ---------------------------------------------------------------- SentencePiece


def train_spm(folder):
    folder.mkdir(parents=True, exist_ok=True)
    # Lines with CJK or tabs are left out: with so small a vocabulary each of their characters
    # would cost a merged piece, and this way those scripts show byte fallback.
    lines = [
        line
        for line in TEXT.read_text(encoding="utf-8").splitlines()
        if line and not any(c == "\t" or c >= "\u2e80" for c in line)
    ]
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB_SPM,
        character_coverage=0.9995,
        byte_fallback=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        split_digits=True,
        split_by_unicode_script=True,
        split_by_whitespace=True,
        split_by_number=True,
        allow_whitespace_only_pieces=True,
        max_sentencepiece_length=16,
        unk_surface=" \u2047 ",
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())


class _SlowStandIn:
    """What transformers' LlamaConverter reads of a slow tokenizer."""

    def __init__(self, vocab_file, legacy):
        self.vocab_file = str(vocab_file)
        self.legacy = legacy
        self.add_prefix_space = True
        self._pieces = spm.SentencePieceProcessor(model_file=str(vocab_file))

    def convert_ids_to_tokens(self, index):
        return self._pieces.id_to_piece(index)


def convert_spm(model, legacy=True):
    """The Hugging Face tokenizer of a SentencePiece model.

    `legacy=True` gives the form found in published LLaMA-2 and Vicuna folders: a normalizer that
    prepends the dummy space, no pre-tokenizer. `legacy=False` is what transformers writes today:
    no normalizer, a Metaspace pre-tokenizer that prepends only at the start of the text.
    """
    from transformers.convert_slow_tokenizer import LlamaConverter

    class Converter(LlamaConverter):
        # The converter of this transformers version passes the (piece, score) list where its
        # extractor expects a model class; order merges by score as the extractor of 4.x does.
        def tokenizer(self, proto):
            from transformers.convert_slow_tokenizer import generate_merges

            pieces = self.vocab(proto)
            vocab = {piece: i for i, (piece, _) in enumerate(pieces)}
            skip = [p.piece for p in proto.pieces if p.type in (2, 3, 6)]
            merges = generate_merges(vocab, pieces, skip)
            tokenizer = Tokenizer(
                models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
            )
            tokenizer.add_tokens(
                [
                    AddedToken(p.piece, normalized=False, special=True)
                    for p in proto.pieces
                    if p.type in (2, 3)
                ]
            )
            return tokenizer

    tokenizer = Converter(_SlowStandIn(model, legacy)).converted()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def added(content):
    return {
        "content": content,
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
    }


LLAMA_TOKENIZER_CONFIG = {
    "add_bos_token": True,
    "add_eos_token": False,
    "added_tokens_decoder": {
        str(i): {**added(t), "special": True} for i, t in enumerate(["<unk>", "<s>", "</s>"])
    },
    "bos_token": "<s>",
    "clean_up_tokenization_spaces": False,
    "eos_token": "</s>",
    "legacy": True,
    "model_max_length": 2048,
    "pad_token": "<unk>",
    "padding_side": "right",
    "sp_model_kwargs": {},
    "tokenizer_class": "LlamaTokenizer",
    "unk_token": "<unk>",
    "use_default_system_prompt": False,
}


def write_spm_files(folder, model=None, with_json=True):
    """Write tokenizer.model, tokenizer.json, tokenizer_config.json, special_tokens_map.json."""
    folder.mkdir(parents=True, exist_ok=True)
    source = OUT / "spm" / "tokenizer.model" if model is None else model
    target = folder / "tokenizer.model"
    if source != target:
        target.write_bytes(source.read_bytes())
    if with_json:
        convert_spm(source).save(str(folder / "tokenizer.json"))
    dump(folder / "tokenizer_config.json", LLAMA_TOKENIZER_CONFIG)
    dump(
        folder / "special_tokens_map.json",
        {
            "bos_token": added("<s>"),
            "eos_token": added("</s>"),
            "pad_token": "<unk>",
            "unk_token": added("<unk>"),
        },
    )


# ---------------------------------------------------------------- byte-level BPE


def byte_level(kind):
    tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
    byte = pre_tokenizers.ByteLevel
    if kind == "gpt2":
        tokenizer.pre_tokenizer = byte(add_prefix_space=False, use_regex=True)
    else:
        pattern = QWEN2 if kind == "qwen2" else LLAMA3
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                byte(add_prefix_space=False, use_regex=False),
            ]
        )
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    specials = list(SPECIALS)
    if kind == "llama3":
        specials = ["<|begin_of_text|>"] + specials
    extra = ["<tool_call>"] if kind == "qwen2" else []
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_BBPE - len(SPECIALS),
        special_tokens=[],
        initial_alphabet=sorted(byte.alphabet()),
        show_progress=False,
    )
    tokenizer.train([str(TEXT)], trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in specials])
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in extra])
    if kind == "llama3":
        bos = specials[0]
        tokenizer.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(
                    single=f"{bos} $A",
                    pair=f"{bos} $A {bos} $B:1",
                    special_tokens=[(bos, tokenizer.token_to_id(bos))],
                ),
            ]
        )
    else:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer, specials, extra


def write_byte_level(folder, kind):
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, specials, extra = byte_level(kind)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(t)): {**added(t), "special": t in specials}
            for t in specials + extra
        },
        "bos_token": {"gpt2": "<|endoftext|>", "qwen2": None, "llama3": "<|begin_of_text|>"}[kind],
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>" if kind == "gpt2" else "<|im_end|>",
        "model_max_length": 2048,
        "pad_token": None if kind == "llama3" else "<|endoftext|>",
        "tokenizer_class": {
            "gpt2": "GPT2Tokenizer",
            "qwen2": "Qwen2Tokenizer",
            "llama3": "PreTrainedTokenizerFast",
        }[kind],
        "unk_token": "<|endoftext|>" if kind == "gpt2" else None,
    }
    dump(folder / "tokenizer_config.json", config)


def main():
    train_spm(OUT / "spm")
    write_spm_files(OUT / "spm")
    write_byte_level(OUT / "bbpe", "gpt2")
    write_byte_level(OUT / "bbpe-qwen2", "qwen2")
    write_byte_level(OUT / "bbpe-llama3", "llama3")
    for folder in sorted(OUT.iterdir()):
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        print(folder.name, "vocabulary", tokenizer.get_vocab_size())


if __name__ == "__main__":
    sys.exit(main())
