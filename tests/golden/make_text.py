"""Text-only checkpoints of the decoders that are LLaMA's block with other data: qwen2/, gemma/,
qwen2moe/, qwen3/, qwen3moe/, mixtral/, olmoe/.

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
    save_text_case,
    tokenize,
)
from make_tokenizer import write_spm_files

import torch
from tokenizers import Tokenizer
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GenerationConfig,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

PROMPT = "The cat sits on a chair. What is the name? 1024"
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


def qwen2moe_config():
    """Qwen1.5-MoE's structure: three of seven experts whose shares do not add up to 1, and one that every token passes."""
    return Qwen2MoeConfig(
        vocab_size=608,
        hidden_size=40,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        moe_intermediate_size=28,
        shared_expert_intermediate_size=52,
        num_experts=7,
        num_experts_per_tok=3,
        norm_topk_prob=False,
        decoder_sparse_step=1,
        max_position_embeddings=512,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=QWEN2_EOS,
        attn_implementation="eager",
        experts_implementation="eager",
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


def qwen3_sizes():
    """Heads wider than the width over the heads, norms on each head."""
    return {
        "vocab_size": 608,
        "hidden_size": 40,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        "bos_token_id": None,
        "eos_token_id": QWEN2_EOS,
        "attn_implementation": "eager",
    }


def qwen3_config():
    """Qwen3-0.6B's structure, tied."""
    return Qwen3Config(
        intermediate_size=132, num_hidden_layers=3, tie_word_embeddings=True, **qwen3_sizes()
    )


def qwen3moe_config():
    """Qwen3-30B-A3B's structure: three of seven experts, their shares normalised."""
    return Qwen3MoeConfig(
        intermediate_size=96,
        num_hidden_layers=2,
        moe_intermediate_size=28,
        num_experts=7,
        num_experts_per_tok=3,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        tie_word_embeddings=False,
        experts_implementation="eager",
        **qwen3_sizes(),
    )


def mixtral_config():
    """Mixtral's structure: two of five experts, each as wide as a feed-forward layer."""
    return MixtralConfig(
        vocab_size=512,
        hidden_size=36,
        intermediate_size=52,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=12,
        num_local_experts=5,
        num_experts_per_tok=2,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        sliding_window=None,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        attn_implementation="eager",
        experts_implementation="eager",
    )


def olmoe_config():
    """OLMoE's structure: three of seven experts whose shares do not add up to 1, norms over whole queries and keys."""
    return OlmoeConfig(
        vocab_size=608,
        hidden_size=40,
        intermediate_size=28,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=7,
        num_experts_per_tok=3,
        norm_topk_prob=False,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        clip_qkv=None,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=QWEN2_EOS,
        pad_token_id=None,
        attn_implementation="eager",
        experts_implementation="eager",
    )


def experts(state, scale):
    """Stacks of matrices count their experts first; routers and gates that tell rows apart."""
    out = {}
    for name, value in state.items():
        if ".experts." in name:
            value = value * (value[0].numel() / value.shape[-1]) ** 0.5
        elif name.endswith(("mlp.gate.weight", "mlp.shared_expert_gate.weight")):
            value = value * scale
        out[name] = value.contiguous()
    return out


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
    golden["greedy"], gap = greedy(model, embeds)
    check_greedy(name, golden["greedy"], gap, control)
    check_every_weight(name, state, logits_of)

    model.generation_config = GenerationConfig(**generation)
    model.save_pretrained(str(folder))
    write_vocabulary(folder)
    save_text_case(folder, PROMPT, golden)

    # The same configuration in the spelling of transformers 4 (top-level rope keys).
    old = json.loads((folder / "config.json").read_text())
    rope = old.pop("rope_parameters")
    old |= {"rope_theta": rope["rope_theta"], "torch_dtype": old.pop("dtype")}
    old |= OLD.get(name, {})
    dump(folder / "config.transformers4.json", dict(sorted(old.items())))


# Gemma's first release says "gelu" and means its tanh form.
OLD = {
    "qwen2": {"transformers_version": "4.40.0", "use_sliding_window": False, "sliding_window": 512},
    "qwen2moe": {"transformers_version": "4.40.0", "num_experts": 7, "use_sliding_window": False, "sliding_window": 512},
    "qwen3": {"transformers_version": "4.51.0", "use_sliding_window": False},
    "qwen3moe": {"transformers_version": "4.51.0", "num_experts": 7},
    "mixtral": {"transformers_version": "4.36.0"},
    "olmoe": {"transformers_version": "4.45.0", "num_experts": 7},
    "gemma": {"transformers_version": "4.38.0", "hidden_act": "gelu"},
}


def main():
    ids = Tokenizer.from_file(str(BBPE / "tokenizer.json")).encode(PROMPT).ids
    state = random_state(Qwen2ForCausalLM(qwen2_config()), SEEDS["qwen2"], embed=0.2)
    generation = {"eos_token_id": QWEN2_EOS}

    def make_qwen(name, model_class, config, state):
        make(name, model_class, config, state, ids, generation, qwen2_files, range(597, 608))

    make_qwen("qwen2", Qwen2ForCausalLM, qwen2_config(), state)
    state = random_state(Qwen2MoeForCausalLM(qwen2moe_config()), SEEDS["qwen2moe"])
    make_qwen("qwen2moe", Qwen2MoeForCausalLM, qwen2moe_config(), experts(state, 2.0))
    state = random_state(Qwen3ForCausalLM(qwen3_config()), SEEDS["qwen3"], embed=0.2)
    make_qwen("qwen3", Qwen3ForCausalLM, qwen3_config(), state)
    state = random_state(Qwen3MoeForCausalLM(qwen3moe_config()), SEEDS["qwen3moe"])
    make_qwen("qwen3moe", Qwen3MoeForCausalLM, qwen3moe_config(), experts(state, 2.0))

    state = random_state(OlmoeForCausalLM(olmoe_config()), SEEDS["olmoe"])
    make_qwen("olmoe", OlmoeForCausalLM, olmoe_config(), experts(state, 2.0))

    spm_ids = tokenize(PROMPT)
    state = gemma_norms(random_state(GemmaForCausalLM(gemma_config()), SEEDS["gemma"], embed=0.05))
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

    def make_spm(name, model_class, config, state):
        make(name, model_class, config, state, spm_ids, generation, write_spm_files, range(3))

    make_spm("gemma", GemmaForCausalLM, gemma_config(), state)
    state = random_state(MixtralForCausalLM(mixtral_config()), SEEDS["mixtral"])
    make_spm("mixtral", MixtralForCausalLM, mixtral_config(), experts(state, 2.0))


SEEDS = {"qwen2": 85, "qwen2moe": 1, "qwen3": 72, "qwen3moe": 4, "gemma": 40, "mixtral": 16, "olmoe": 2}

if __name__ == "__main__":
    sys.exit(main())
