"""Checkpoints with 4-bit matrices as AWQ and GPTQ tools publish them: awq/, gptq/.

The layouts are those of AutoAWQ (`WQLinear_GEMM`: eight columns a word, in the order 0 2 4 6 1 3 5 7) and of GPTQ's
first format (`checkpoint_format: gptq`: eight rows a word, zero points stored less one, `g_idx` names a row's group).
Codes and scales come from rounding to the nearest; how they were chosen does not matter to a reader. The golden tensors
are those of transformers with the float16 weights that the codes stand for.

Usage: python make_quantized.py     (after make_tokenizer.py)
"""

import json
import sys

import numpy as np
import torch
from common import HERE, check_greedy, clean, dump, random_state, tokenize
from make_llama import PROMPT, finish, model_of, trace
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

GROUP = 128
SEEDS = {"awq": 51, "gptq": 50}
# Such that no greedy sequence holds a control token.
LAST_WORDS = {"awq": " hats", "gptq": " boats"}
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def config():
    return LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
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


def quantize(weight, group_of):
    """Asymmetric, round to nearest. [out, in] to codes [in, out], zeros and scales [groups, out]."""
    rows = weight.numpy().astype(np.float32).T
    groups = int(group_of.max()) + 1
    scales = np.empty((groups, rows.shape[1]), np.float16)
    zeros = np.empty((groups, rows.shape[1]), np.int64)
    codes = np.empty(rows.shape, np.int64)
    for g in range(groups):
        part = rows[group_of == g]
        low, high = np.minimum(part.min(0), 0), np.maximum(part.max(0), 0)
        scales[g] = ((high - low) / 15).astype(np.float16)
        step = scales[g].astype(np.float32)
        # 1 to 15: a zero point of 0 cannot be stored less one.
        zeros[g] = np.clip(np.rint(-low / step), 1, 15)
        codes[group_of == g] = np.clip(np.rint(part / step) + zeros[g], 0, 15)
    return codes, zeros, scales


def stands_for(codes, zeros, scales, group_of):
    """The float16 weight [out, in], computed as the published kernels do."""
    difference = (codes - zeros[group_of]).astype(np.float16)
    return torch.from_numpy((difference * scales[group_of]).T.copy())


def words(values, order):
    """Eight 4-bit numbers along the last axis to an int32: number order[i] goes to bits 4 i."""
    eights = values.reshape(*values.shape[:-1], -1, 8).astype(np.uint32)
    packed = np.zeros(eights.shape[:-1], np.uint32)
    for i, at in enumerate(order):
        packed |= eights[..., at] << np.uint32(4 * i)
    return torch.from_numpy(packed.view(np.int32).copy())


def pack_awq(codes, zeros, scales, _):
    return {
        "qweight": words(codes, AWQ_ORDER),  # [in, out / 8]
        "qzeros": words(zeros, AWQ_ORDER),  # [groups, out / 8]
        "scales": torch.from_numpy(scales),
    }


def pack_gptq(codes, zeros, scales, group_of):
    return {
        "qweight": words(codes.T, range(8)).T.contiguous(),  # [in / 8, out]
        "qzeros": words(zeros - 1, range(8)),  # [groups, out / 8]
        "scales": torch.from_numpy(scales),
        "g_idx": torch.from_numpy(group_of.astype(np.int32)),
    }


def make(name, pack, quantization, act_order):
    folder = clean(HERE / name)
    cfg = config()
    prompt = PROMPT + LAST_WORDS[name]
    ids = tokenize(prompt)
    state = random_state(LlamaForCausalLM(cfg), SEEDS[name])
    rng = np.random.default_rng(SEEDS[name])
    stored, meant = {}, {}
    for key, value in state.items():
        if "_proj.weight" not in key:
            stored[key] = value.to(torch.float16)
            meant[key] = stored[key].to(torch.float32)
            continue
        group_of = np.arange(value.shape[1]) // GROUP
        if act_order:
            group_of = rng.permutation(group_of)
        packed = quantize(value, group_of)
        meant[key] = stands_for(*packed, group_of).to(torch.float32)
        stem = key.removesuffix(".weight")
        stored.update({f"{stem}.{part}": t for part, t in pack(*packed, group_of).items()})
        if name == "gptq" and "o_proj" in key:
            # Older tools added a bias of zeros.
            stored[f"{stem}.bias"] = torch.zeros(value.shape[0], dtype=torch.float16)
    model, golden, gap = trace(cfg, meant, ids)
    check_greedy(name, golden["greedy"], gap)
    plain = model_of(cfg, state)(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    moved = float((plain - golden["logits"]).abs().max() / golden["logits"].abs().max())
    print(f"{name}: four bits move the logits by {moved:.3f}")
    save_file({k: v.contiguous() for k, v in stored.items()}, str(folder / "model.safetensors"), metadata={"format": "pt"})
    cfg.save_pretrained(str(folder))
    written = json.loads((folder / "config.json").read_text())
    written["architectures"] = ["LlamaForCausalLM"]
    written["dtype"] = "float16"
    written["quantization_config"] = quantization
    dump(folder / "config.json", dict(sorted(written.items())))
    finish(folder, model, prompt, golden)


def main():
    awq = {"bits": 4, "group_size": GROUP, "quant_method": "awq", "version": "gemm", "zero_point": True}
    make("awq", pack_awq, awq, act_order=False)
    gptq = {
        "bits": 4,
        "checkpoint_format": "gptq",
        "desc_act": True,
        "group_size": GROUP,
        "quant_method": "gptq",
        "sym": False,
    }
    make("gptq", pack_gptq, gptq, act_order=True)


if __name__ == "__main__":
    sys.exit(main())
