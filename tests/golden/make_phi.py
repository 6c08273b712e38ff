"""A text-only Phi checkpoint: phi2/.

Usage: python make_phi.py     (after make_tokenizer.py)
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
    save_text_case,
)

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, PhiConfig, PhiForCausalLM

SEED = 81
PROMPT = "The cat sits on a chair. What is the name? 1024 cats"
# What a continuation of text does not hold: control tokens and rows without a token.
NO_TEXT = range(597, 640)
TOKENIZER = HERE / "tokenizers" / "bbpe"


def phi_config(hidden, heads, ffn):
    """Phi-2's structure: 0.4 of each head turns. The table is wider than the vocabulary of 600."""
    return PhiConfig(
        vocab_size=640,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=2,
        num_attention_heads=heads,
        hidden_act="gelu_new",
        max_position_embeddings=2048,
        layer_norm_eps=1e-5,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.4,
        },
        tie_word_embeddings=False,
        bos_token_id=597,
        eos_token_id=597,
        pad_token_id=None,
        attn_implementation="eager",
    )


def write_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TOKENIZER / name, folder / name)


def main():
    folder = clean(HERE / "phi2")
    config = phi_config(80, 4, 144)
    state = random_state(PhiForCausalLM(config), SEED)
    ids = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json")).encode(PROMPT).ids

    def logits_of(changed):
        model = load(PhiForCausalLM(config), changed)
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]

    model = load(PhiForCausalLM(config), state)
    embeds = model.get_input_embeddings()(torch.tensor([ids]))
    hidden, logits = run_llama(model, embeds)
    assert torch.equal(logits_of(state), logits)
    golden = {"input_ids": ids, "logits": logits}
    golden |= {f"hidden.{i}": h for i, h in enumerate(hidden)}
    golden["greedy"], gap = greedy(model, embeds)
    check_greedy("phi2", golden["greedy"], gap, NO_TEXT)
    check_every_weight("phi2", state, logits_of)

    model.generation_config = GenerationConfig(bos_token_id=597, eos_token_id=597)
    model.save_pretrained(str(folder))
    write_tokenizer(folder)
    save_text_case(folder, PROMPT, golden)

    # The same configuration in the spelling of transformers 4 (top-level rope keys).
    old = json.loads((folder / "config.json").read_text())
    rope = old.pop("rope_parameters")
    old |= {k: rope[k] for k in ("rope_theta", "partial_rotary_factor")}
    old |= {"rope_scaling": None, "torch_dtype": old.pop("dtype"), "transformers_version": "4.37.0"}
    dump(folder / "config.transformers4.json", dict(sorted(old.items())))


if __name__ == "__main__":
    sys.exit(main())
