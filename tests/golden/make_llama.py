"""Text-only LLaMA checkpoints: llama/, llama-sharded/, llama-odd/.

Usage: python make_llama.py     (after make_tokenizer.py)
"""

import json
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
    tokenize,
)
from make_tokenizer import write_spm_files

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

SEEDS = {"llama": 12, "llama-odd": 22}

PROMPT = "The cat sits on a chair. What is the name? 1024"


def model_of(config, state):
    return load(LlamaForCausalLM(config), state)


def trace(config, state, ids):
    model = model_of(config, state)
    embeds = model.get_input_embeddings()(torch.tensor([ids]))
    hidden, logits = run_llama(model, embeds)
    direct = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    assert torch.equal(direct, logits)
    golden = {"input_ids": ids, "logits": logits}
    golden.update({f"hidden.{i}": h for i, h in enumerate(hidden)})
    tokens, gap = greedy(model, embeds)
    golden["greedy"] = tokens
    return model, golden, gap


def finish(folder, model, prompt, golden):
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model.generation_config.save_pretrained(str(folder))
    write_spm_files(folder)
    save_text_case(folder, prompt, golden)


def checks(name, config, state, golden, gap, ids):
    check_greedy(name, golden["greedy"], gap)

    def logits_of(changed):
        model = model_of(config, changed)
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]

    check_every_weight(name, state, logits_of)


def base_config():
    return LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        attn_implementation="eager",
    )


def make_llama(seed):
    folder = clean(HERE / "llama")
    config = base_config()
    ids = tokenize(PROMPT)
    state = random_state(LlamaForCausalLM(config), seed)
    model, golden, gap = trace(config, state, ids)
    checks("llama", config, state, golden, gap, ids)
    model.save_pretrained(str(folder))
    finish(folder, model, PROMPT, golden)
    return state


def make_sharded(state):
    """The same weights rounded to BF16, in shards, with a config.json and the rotary tables that
    LLaMA-2-era folders hold. The golden logits use the rounded weights in F32 arithmetic."""
    folder = clean(HERE / "llama-sharded")
    config = base_config()
    ids = tokenize(PROMPT)
    rounded = {k: v.to(torch.bfloat16) for k, v in state.items()}
    wide = {k: v.to(torch.float32) for k, v in rounded.items()}
    _, golden, gap = trace(config, wide, ids)
    check_greedy("llama-sharded", golden["greedy"], gap)

    half = load(LlamaForCausalLM(config), wide).to(torch.bfloat16)
    half.save_pretrained(str(folder), max_shard_size="120KB")
    index_path = folder / "model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) >= 3, shards

    # Old checkpoints also store the rotary frequencies; readers must pass over them.
    from safetensors.torch import load_file, save_file

    last = folder / shards[-1]
    tensors = load_file(str(last))
    extra = 10000.0 ** (-torch.arange(0, 16, 2, dtype=torch.float32) / 16)
    for i in range(config.num_hidden_layers):
        name = f"model.layers.{i}.self_attn.rotary_emb.inv_freq"
        tensors[name] = extra.clone()
        index["weight_map"][name] = shards[-1]
    save_file(tensors, str(last), metadata={"format": "pt"})
    total = 0
    for shard in shards:
        total += sum(t.numel() * t.element_size() for t in load_file(str(folder / shard)).values())
    index["metadata"] = {"total_size": total}
    index["weight_map"] = dict(sorted(index["weight_map"].items()))
    dump(index_path, index)
    dump(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": 64,
            "initializer_range": 0.02,
            "intermediate_size": 96,
            "max_position_embeddings": 2048,
            "model_type": "llama",
            "num_attention_heads": 4,
            "num_hidden_layers": 3,
            "num_key_value_heads": 2,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.31.0",
            "use_cache": True,
            "vocab_size": 512,
        },
    )
    finish(folder, half, PROMPT, {k: golden[k] for k in ("input_ids", "logits", "greedy")})

    # The folder on disk, read back by transformers, is this model.
    back = LlamaForCausalLM.from_pretrained(
        str(folder), dtype=torch.float32, attn_implementation="eager"
    )
    logits = back(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    assert torch.equal(logits, golden["logits"])
    print(f"llama-sharded: {len(shards)} shards")


def odd_config(scaled=True):
    rope = {"rope_type": "default", "rope_theta": 500000.0}
    if scaled:
        rope = {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    return LlamaConfig(
        vocab_size=512,
        hidden_size=36,
        intermediate_size=172,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=512,
        rms_norm_eps=1e-6,
        rope_parameters=rope,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        attn_implementation="eager",
    )


def make_odd(seed):
    folder = clean(HERE / "llama-odd")
    config = odd_config()
    prompt = PROMPT + " hats. Where is the lamp, and who is there?"
    ids = tokenize(prompt)
    # Tied: a small embedding, or the model would only repeat its input.
    state = random_state(LlamaForCausalLM(config), seed, embed=0.2)
    assert "lm_head.weight" not in state
    model, golden, gap = trace(config, state, ids)
    checks("llama-odd", config, state, golden, gap, ids)
    plain = trace(odd_config(scaled=False), state, ids)[1]["logits"]
    moved = (plain - golden["logits"]).abs().max() / golden["logits"].abs().max()
    assert moved > 0.01, moved
    print(f"llama-odd: leaving out the rope scaling moves the logits by {moved:.3f}")
    model.save_pretrained(str(folder))
    finish(folder, model, prompt, golden)

    # The same configuration in the spelling of transformers 4 (top-level rope keys).
    old = json.loads((folder / "config.json").read_text())
    rope = old.pop("rope_parameters")
    old["rope_theta"] = rope.pop("rope_theta")
    old["rope_scaling"] = rope
    old["torch_dtype"] = old.pop("dtype")
    old["transformers_version"] = "4.45.0"
    dump(folder / "config.transformers4.json", dict(sorted(old.items())))


def main():
    state = make_llama(seed=SEEDS["llama"])
    make_sharded(state)
    make_odd(seed=SEEDS["llama-odd"])


if __name__ == "__main__":
    sys.exit(main())
