"""Recompute every golden tensor from the stored files, in float64 NumPy, and compare.

Independent of transformers and of projectors.py: it reads safetensors bytes itself and follows the
published descriptions of the models. It guards against a golden that belongs to other weights, to
another layer, or to a library's mistake.

Usage: python check_golden.py
"""

import json
import math
import struct
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
FOLDERS = [
    "llama",
    "llama-sharded",
    "llama-odd",
    "llava-hf",
    "siglip",
    "llava",
    "mobilevlm-v2",
    "mobilevlm-v1",
    "phi2",
    "imp",
    "qwen2",
    "gemma",
    "qwen3",
    "qwen3moe",
    "mixtral",
    "tinyllava",
    "tinyllava-phi",
    "tinyllava-llama",
    "tinyllava-gemma",
    "tinyllava-clip",
]
LIMIT = 5e-6


def read(path):
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    out = {}
    for name, info in header.items():
        begin, end = (8 + length + o for o in info["data_offsets"])
        raw = data[begin:end]
        if info["dtype"] == "BF16":
            value = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
        else:
            value = np.frombuffer(raw, {"F32": "<f4", "I32": "<i4"}[info["dtype"]])
        value = value.reshape(info["shape"])
        out[name] = value if info["dtype"] == "I32" else value.astype(np.float64)
    return out


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def layer_norm(x, w, name, eps=1e-5):
    mean = x.mean(-1, keepdims=True)
    var = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + eps) * w[name + ".weight"] + w[name + ".bias"]


def linear(x, w, name):
    y = x @ w[name + ".weight"].T
    return y + w[name + ".bias"] if name + ".bias" in w else y


def attention(q, k, v, mask=0.0):
    """q, k, v: [tokens, heads, head_dim]."""
    scores = np.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1]) + mask
    return np.einsum("hqk,khd->qhd", softmax(scores), v).reshape(len(q), -1)


# ---------------------------------------------------------------- decoder


def frequencies(config, head_dim):
    rope = config.get("rope_parameters")
    if rope is None:
        rope = {**(config.get("rope_scaling") or {}), "rope_theta": config.get("rope_theta", 1e4)}
    inv = rope["rope_theta"] ** (-np.arange(0, head_dim, 2) / head_dim)
    if rope.get("rope_type") != "llama3":
        return inv
    old, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((old * inv / (2 * np.pi) - low) / (high - low), 0, 1)
    return (1 - smooth) * inv / factor + smooth * inv


def decoder(w, config, h, prefix):
    tokens = len(h)
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    dim = config.get("head_dim") or config["hidden_size"] // heads
    angle = np.arange(tokens)[:, None] * frequencies(config, dim)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    mask = np.triu(np.full((tokens, tokens), -np.inf), 1)

    gemma = config["model_type"] == "gemma"

    def rms(x, name):
        scale = np.sqrt((x * x).mean(-1, keepdims=True) + config["rms_norm_eps"])
        return x / scale * (w[name + ".weight"] + (1 if gemma else 0))

    def rotate(x):
        a, b = x[..., : dim // 2], x[..., dim // 2 :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    hidden = [h]
    for i in range(config["num_hidden_layers"]):
        p = f"{prefix}layers.{i}."
        x = rms(h, p + "input_layernorm")
        q = linear(x, w, p + "self_attn.q_proj").reshape(tokens, heads, dim)
        k = linear(x, w, p + "self_attn.k_proj").reshape(tokens, kv, dim)
        if p + "self_attn.q_norm.weight" in w:
            q, k = rms(q, p + "self_attn.q_norm"), rms(k, p + "self_attn.k_norm")
        q, k = rotate(q), rotate(k)
        v = linear(x, w, p + "self_attn.v_proj").reshape(tokens, kv, dim)
        k, v = (np.repeat(t, heads // kv, 1) for t in (k, v))
        h = h + linear(attention(q, k, v, mask), w, p + "self_attn.o_proj")
        x = rms(h, p + "post_attention_layernorm")
        if "num_local_experts" in config:
            h = h + mixture(w, config, p, x)
            hidden.append(h)
            continue
        gate = linear(x, w, p + "mlp.gate_proj")
        gate = (gelu_tanh(gate) if gemma else gate / (1 + np.exp(-gate))) * linear(x, w, p + "mlp.up_proj")
        h = h + linear(gate, w, p + "mlp.down_proj")
        hidden.append(h)
    return hidden, rms(h, prefix + "norm")


def mixture(w, config, p, x):
    """The experts of the greatest router logits; their shares are the softmax over those alone."""
    mixtral = config["model_type"] == "mixtral"
    p += "block_sparse_moe." if mixtral else "mlp."
    names = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    logits = linear(x, w, p + "gate")
    out = np.zeros_like(x)
    for row, scores in enumerate(logits):
        chosen = np.argsort(-scores)[: config["num_experts_per_tok"]]
        for n, share in zip(chosen, softmax(scores[chosen])):
            gate, up, down = (w[f"{p}experts.{n}.{name}.weight"] for name in names)
            g = gate @ x[row]
            out[row] += share * (down @ (g / (1 + np.exp(-g)) * (up @ x[row])))
    return out


def phi_decoder(w, config, h, prefix):
    tokens, heads = len(h), config["num_attention_heads"]
    dim, eps = config["hidden_size"] // heads, config["layer_norm_eps"]
    rope = config.get("rope_parameters") or config
    turning = int(dim * rope["partial_rotary_factor"])
    inv = rope["rope_theta"] ** (-np.arange(0, turning, 2) / turning)
    angle = np.arange(tokens)[:, None] * inv
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    mask = np.triu(np.full((tokens, tokens), -np.inf), 1)

    def rotate(x):
        a, b, rest = np.split(x, [turning // 2, turning], -1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], -1)

    hidden = [h]
    for i in range(config["num_hidden_layers"]):
        p = f"{prefix}layers.{i}."
        x = layer_norm(h, w, p + "input_layernorm", eps)
        q, k, v = (
            linear(x, w, f"{p}self_attn.{n}_proj").reshape(tokens, heads, dim) for n in "qkv"
        )
        attended = linear(attention(rotate(q), rotate(k), v, mask), w, p + "self_attn.dense")
        h = h + attended + linear(gelu_tanh(linear(x, w, p + "mlp.fc1")), w, p + "mlp.fc2")
        hidden.append(h)
    return hidden, layer_norm(h, w, prefix + "final_layernorm", eps)


# ---------------------------------------------------------------- tower


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def tower(w, config, pixels, prefix, blocks):
    """The hidden state behind `blocks` blocks, without CLS and without the final norm."""
    clip = config["model_type"] == "clip_vision_model"
    eps = config["layer_norm_eps"]
    patch, width = config["patch_size"], config["hidden_size"]
    side = config["image_size"] // patch
    heads = config["num_attention_heads"]
    used = side * patch
    x = pixels[:, :used, :used].reshape(3, side, patch, side, patch).transpose(1, 3, 0, 2, 4)
    kernel = w[prefix + "embeddings.patch_embedding.weight"].reshape(width, -1)
    h = x.reshape(side * side, -1) @ kernel.T
    if clip:
        h = np.concatenate([w[prefix + "embeddings.class_embedding"][None], h])
    else:
        h = h + w[prefix + "embeddings.patch_embedding.bias"]
    h = h + w[prefix + "embeddings.position_embedding.weight"]
    if clip:
        h = layer_norm(h, w, prefix + "pre_layrnorm", eps)
    for i in range(blocks):
        p = f"{prefix}encoder.layers.{i}."
        x = layer_norm(h, w, p + "layer_norm1", eps)
        q, k, v = (
            linear(x, w, f"{p}self_attn.{n}_proj").reshape(len(x), heads, -1) for n in "qkv"
        )
        h = h + linear(attention(q, k, v), w, p + "self_attn.out_proj")
        x = linear(layer_norm(h, w, p + "layer_norm2", eps), w, p + "mlp.fc1")
        x = x / (1 + np.exp(-1.702 * x)) if clip else gelu_tanh(x)
        h = h + linear(x, w, p + "mlp.fc2")
    return h[1:] if clip else h


# ---------------------------------------------------------------- projectors


def depthwise(x, kernel, stride):
    """3x3 depthwise convolution of [C, H, W] with padding 1."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    height, width = x.shape[1], x.shape[2]
    out = 0.0
    for dy in range(3):
        for dx in range(3):
            window = padded[:, dy : dy + height : stride, dx : dx + width : stride]
            out = out + kernel[:, 0, dy, dx][:, None, None] * window
    return out


def projector(w, kind, x, p):
    if kind == "llava-hf":
        return linear(gelu(linear(x, w, p + "linear_1")), w, p + "linear_2")
    if kind == "mlp2x_gelu":
        return linear(gelu(linear(x, w, p + "0")), w, p + "2")
    v2 = kind == "ldpnetv2"
    first, second = ("mlp.mlp.0", "mlp.mlp.2") if v2 else ("model.mlp.1", "model.mlp.3")
    y = linear(gelu(linear(x, w, p + first)), w, p + second).T
    width, side = len(y), math.isqrt(y.shape[1])
    if v2:
        y = y.reshape(width, side // 2, 2, side // 2, 2).mean((2, 4))
        bias = w[p + "peg.peg.0.bias"][:, None, None]
        y = y + depthwise(y, w[p + "peg.peg.0.weight"], 1) + bias
        return y.reshape(width, -1).T
    y = y.reshape(width, side, side)

    def channel_norm(z, name):
        return layer_norm(z.transpose(1, 2, 0), w, name).transpose(2, 0, 1)

    for block, stride in ((1, 1), (2, 2)):
        b = f"{p}model.mb_block.{block}.block."
        z = channel_norm(depthwise(y, w[b + "0.0.weight"], stride), b + "0.1")
        z = z * np.clip(z + 3, 0, 6) / 6
        s = w[b + "1.fc1.weight"][:, :, 0, 0] @ z.mean((1, 2)) + w[b + "1.fc1.bias"]
        s = w[b + "1.fc2.weight"][:, :, 0, 0] @ np.maximum(s, 0) + w[b + "1.fc2.bias"]
        z = z * (np.clip(s + 3, 0, 6) / 6)[:, None, None]
        z = np.einsum("oc,chw->ohw", w[b + "2.0.weight"][:, :, 0, 0], z)
        z = channel_norm(z, b + "2.1")
        y = y + z if stride == 1 else z
    return y.reshape(width, -1).T


# ---------------------------------------------------------------- all


def cases_of(folder):
    """Each case, and its golden tensors."""
    for case in json.loads((folder / "prompt.json").read_text())["cases"]:
        yield case, read(folder / f"golden.{case['name']}.safetensors")


def compare(place, mine, golden):
    worst = 0.0
    for key, value in mine.items():
        if key in golden:
            assert value.shape == golden[key].shape, (place, key)
            error = np.abs(value - golden[key]).max() / np.abs(golden[key]).max()
            worst = max(worst, error)
            assert error < LIMIT, (place, key, error)
    assert int(golden["greedy"][0]) == int(np.argmax(golden["logits"][-1]))
    print(f"{place}: {sorted(set(mine) & set(golden))}, worst relative error {worst:.1e}")


def check(name):
    folder = HERE / name
    weights = {}
    for path in sorted(folder.glob("model*.safetensors")):
        weights |= read(path)
    config = json.loads((folder / "config.json").read_text())
    hf = "text_config" in config
    text = config["text_config"] if hf else config
    root = "language_model." if hf else ""
    embedding = weights[root + "model.embed_tokens.weight"]
    scale = math.sqrt(text["hidden_size"]) if text["model_type"] == "gemma" else 1.0
    phi = text["model_type"] in ("phi", "imp")
    projected = {}
    for case, golden in cases_of(folder):
        mine = {}
        if "pixel_values" in golden:
            encode, project = look(weights, config, hf, golden["pixel_values"][0])
            mine = {"encode": encode[None], "project": project[None]}
            projected[case["images"][0]] = project
        elif case["images"]:
            mine["project"] = np.stack([projected[image] for image in case["images"]])
        ids = golden["input_ids"]
        h = embedding[np.maximum(ids, 0)]
        if case["images"]:
            h[ids < 0] = mine["project"].reshape(-1, h.shape[1])
        hidden, last = (phi_decoder if phi else decoder)(weights, text, h * scale, root + "model.")
        mine |= {f"hidden.{i}": v for i, v in enumerate(hidden)}
        head = weights.get(root + "lm_head.weight", embedding)
        bias = weights[root + "lm_head.bias"] if phi else 0.0
        mine["logits"] = (last @ head.T + bias)[-len(golden["logits"]) :]
        compare(f"{name}/{case['name']}", mine, golden)


def look(weights, config, hf, pixels):
    """The tower's rows and what the projector makes of them."""
    tiny = config["model_type"] == "tinyllava"
    at = "vision_tower." if hf else "model.vision_tower.vision_tower.vision_model."
    at = "vision_tower._vision_tower.vision_model." if tiny else at
    vision = config["vision_config"]
    select = config["vision_feature_layer" if hf else "mm_vision_select_layer"]
    encode = tower(weights, vision, pixels, at, vision["num_hidden_layers"] + 1 + select)
    at = "multi_modal_projector." if hf else "model.mm_projector."
    at = "connector._connector." if tiny else at
    kind = config["connector_type"] if tiny else "llava-hf" if hf else config["mm_projector_type"]
    # "patch" drops the first row: CLIP's class token, which is gone already, or SigLIP's first patch.
    tail = tiny and vision["model_type"] != "clip_vision_model"
    return encode, projector(weights, kind, encode[1:] if tail else encode, at)


def check_smolvlm():
    folder = HERE / "smolvlm"
    w = read(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    vision = {"layer_norm_eps": 1e-6, **config["vision_config"]}
    at, fold = "model.vision_model.", config["scale_factor"]
    tiles = {}
    for case, golden in cases_of(folder):
        mine = {}
        if "pixel_values" in golden:
            encode = [tower(w, vision, p, at, vision["num_hidden_layers"]) for p in golden["pixel_values"]]
            encode = [layer_norm(x, w, at + "post_layernorm", 1e-6) for x in encode]
            side = math.isqrt(len(encode[0])) // fold
            project = []
            for x in encode:
                x = x.reshape(side, fold, side, fold, -1).transpose(0, 2, 1, 3, 4)
                x = x.reshape(side * side, -1)
                project.append(linear(x, w, "model.connector.modality_projection.proj"))
            mine = {"encode": np.stack(encode), "project": np.stack(project)}
            tiles[case["images"][0]] = mine["project"]
        else:
            mine["project"] = np.concatenate([tiles[image] for image in case["images"]])
        ids = golden["input_ids"]
        h = w["model.text_model.embed_tokens.weight"][np.maximum(ids, 0)]
        h[ids < 0] = mine["project"].reshape(-1, h.shape[1])
        hidden, last = decoder(w, config["text_config"], h, "model.text_model.")
        mine |= {f"hidden.{i}": v for i, v in enumerate(hidden)}
        mine["logits"] = last[-len(golden["logits"]) :] @ w["lm_head.weight"].T
        compare(f"smolvlm/{case['name']}", mine, golden)


if __name__ == "__main__":
    for each in FOLDERS:
        check(each)
    check_smolvlm()
