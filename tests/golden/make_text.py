"""Text-only checkpoints of the decoders that are LLaMA's block with other data: qwen2/, gemma/.

Usage: python make_text.py     (after make_tokenizer.py)
"""

import json
import shutil
import sys

from common import (
    HERE,
    check_every_weight,
    check_greedy,
    clean,
    dump,
    greedy,
    load,
    random_state,
    run_llama,
    save_golden,
    tokenize,
)
from make_tokenizer import write_spm_files

import torch
from tokenizers import Tokenizer
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GenerationConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
)

PROMPT = "The cat sits on a chair. What is the name? 1024"
GREEDY = 32
BBPE = HERE / "tokenizers" / "bbpe-qwen2"


def qwen2_config():
    """Qwen2-0.5B's structure: seven heads on one, tied, a table wider than the vocabulary of 601."""
    return Qwen2Config(
        vocab_size=608,
        hidden_size=56,
        intermediate_size=148,
        num_hidden_layers=3,
        num_attention_heads=7,
        num_key_value_heads=1,
        max_position_embeddings=512,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=QWEN2_EOS,
        attn_implementation="eager",
    )


def gemma_config():
    """Gemma-2B's structure: wide heads on one, tied, norms around 1 + w."""
    return GemmaConfig(
        vocab_size=512,
        hidden_size=36,
        intermediate_size=100,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=256,
        max_position_embeddings=512,
        rms_norm_eps=1e-6,
        hidden_act="gelu_pytorch_tanh",
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        attn_implementation="eager",
    )


def special(text):
    return Tokenizer.from_file(str(BBPE / "tokenizer.json")).token_to_id(text)


QWEN2_EOS = special("<|im_end|>")


def qwen2_files(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(BBPE / name, folder / name)


def gemma_norms(state):
    """Gemma multiplies by 1 + w: small weights, not weights around 1."""
    return {k: v - 1 if k.endswith("norm.weight") else v for k, v in state.items()}


def make(name, model_class, config, state, ids, generation, write_vocabulary, control):
    folder = clean(HERE / name)

    def logits_of(changed):
        model = load(model_class(config), changed)
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]

    model = load(model_class(config), state)
    embeds = model.get_input_embeddings()(torch.tensor([ids]))
    hidden, logits = run_llama(model, embeds)
    assert torch.equal(logits_of(state), logits)
    golden = {"input_ids": ids, "logits": logits}
    golden |= {f"hidden.{i}": h for i, h in enumerate(hidden)}
    golden["greedy"], gap = greedy(model, embeds, GREEDY)
    check_greedy(name, golden["greedy"], gap, control)
    check_every_weight(name, state, logits_of)

    model.generation_config = GenerationConfig(**generation)
    model.save_pretrained(str(folder))
    write_vocabulary(folder)
    dump(folder / "prompt.json", {"prompt": PROMPT, "image": None})
    save_golden(folder, golden)

    # The same configuration in the spelling of transformers 4 (top-level rope keys).
    old = json.loads((folder / "config.json").read_text())
    rope = old.pop("rope_parameters")
    old |= {"rope_theta": rope["rope_theta"], "torch_dtype": old.pop("dtype")}
    old |= OLD.get(name, {})
    dump(folder / "config.transformers4.json", dict(sorted(old.items())))


# Gemma's first release says "gelu" and means its tanh form.
OLD = {
    "qwen2": {"transformers_version": "4.40.0", "use_sliding_window": False, "sliding_window": 512},
    "gemma": {"transformers_version": "4.38.0", "hidden_act": "gelu"},
}


def main():
    ids = Tokenizer.from_file(str(BBPE / "tokenizer.json")).encode(PROMPT).ids
    state = random_state(Qwen2ForCausalLM(qwen2_config()), SEEDS["qwen2"], embed=0.2)
    generation = {"eos_token_id": QWEN2_EOS}
    make("qwen2", Qwen2ForCausalLM, qwen2_config(), state, ids, generation, qwen2_files, range(597, 608))

    ids = tokenize(PROMPT)
    state = gemma_norms(random_state(GemmaForCausalLM(gemma_config()), SEEDS["gemma"], embed=0.05))
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    make("gemma", GemmaForCausalLM, gemma_config(), state, ids, generation, write_spm_files, range(3))


SEEDS = {"qwen2": 85, "gemma": 40}

if __name__ == "__main__":
    sys.exit(main())
