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
    "qwen2moe",
    "gemma",
    "qwen3",
    "qwen3moe",
    "olmoe",
    "mixtral",
    "tinyllava",
    "tinyllava-phi",
    "tinyllava-llama",
    "tinyllava-gemma",
    "tinyllava-clip",
    "llava-gemma",
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
            value = np.frombuffer(raw, {"F32": "<f4", "I32": "<i4", "I64": "<i8"}[info["dtype"]])
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


def decoder(w, config, h, prefix, angle=None):
    tokens = len(h)
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    dim = config.get("head_dim") or config["hidden_size"] // heads
    if angle is None:
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
        q, k = (linear(x, w, f"{p}self_attn.{n}_proj") for n in "qk")
        whole = config["model_type"] == "olmoe"
        if not whole:
            q, k = q.reshape(tokens, heads, dim), k.reshape(tokens, kv, dim)
        if p + "self_attn.q_norm.weight" in w:
            q, k = rms(q, p + "self_attn.q_norm"), rms(k, p + "self_attn.k_norm")
        q, k = rotate(q.reshape(tokens, heads, dim)), rotate(k.reshape(tokens, kv, dim))
        v = linear(x, w, p + "self_attn.v_proj").reshape(tokens, kv, dim)
        k, v = (np.repeat(t, heads // kv, 1) for t in (k, v))
        h = h + linear(attention(q, k, v, mask), w, p + "self_attn.o_proj")
        x = rms(h, p + "post_attention_layernorm")
        if "num_experts_per_tok" in config:
            h = h + mixture(w, config, p, x)
            hidden.append(h)
            continue
        gate = linear(x, w, p + "mlp.gate_proj")
        gate = (gelu_tanh(gate) if gemma else gate / (1 + np.exp(-gate))) * linear(x, w, p + "mlp.up_proj")
        h = h + linear(gate, w, p + "mlp.down_proj")
        hidden.append(h)
    return hidden, rms(h, prefix + "norm")


def mixture(w, config, p, x):
    """The experts of the greatest router logits; their shares are the softmax over those alone, in OLMoE and Qwen2 over all.
    In Qwen2 one more, as much as the sigmoid of a gate."""
    mixtral = config["model_type"] == "mixtral"
    p += "block_sparse_moe." if mixtral else "mlp."
    names = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    logits = linear(x, w, p + "gate")
    out = np.zeros_like(x)
    for row, scores in enumerate(logits):
        chosen = np.argsort(-scores)[: config["num_experts_per_tok"]]
        all_count = config["model_type"] in ("olmoe", "qwen2_moe")
        shares = softmax(scores)[chosen] if all_count else softmax(scores[chosen])
        for n, share in zip(chosen, shares):
            gate, up, down = (w[f"{p}experts.{n}.{name}.weight"] for name in names)
            g = gate @ x[row]
            out[row] += share * (down @ (g / (1 + np.exp(-g)) * (up @ x[row])))
    if config["model_type"] == "qwen2_moe":
        g, u = (linear(x, w, f"{p}shared_expert.{n}_proj") for n in ("gate", "up"))
        shared = linear(g / (1 + np.exp(-g)) * u, w, p + "shared_expert.down_proj")
        out += shared / (1 + np.exp(-linear(x, w, p + "shared_expert_gate")))
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
    text = text | {"model_type": text["model_type"].removeprefix("llava_")}
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


def qwen_places(ids, grids):
    """Time, row and column of each token, one picture at a time."""
    places, at, grids = [], 0, iter(grids)
    while len(places) < len(ids):
        if ids[len(places)] >= 0:
            places.append([at] * 3)
            at += 1
            continue
        rows, columns = next(grids)
        places += [[at, at + r, at + c] for r in range(rows) for c in range(columns)]
        at += max(rows, columns)
    return np.array(places)


def qwen_tower(w, config, pixels, grid):
    """Encode [P, C] and tokens [V, E] of one picture. Nothing is reordered while it is computed: windows are a mask."""
    second = config["model_type"] == "qwen2_5_vl_vision" if "model_type" in config else False
    at = "model.visual." if second else "visual."
    width = config["hidden_size" if second else "embed_dim"]
    heads, fold = config["num_heads"], config["spatial_merge_size"]
    dim, (rows, columns) = width // heads, grid
    # Patches as a plane: [rows/fold, columns/fold, fold, fold] in the file.
    plane = np.arange(rows * columns).reshape(rows // fold, columns // fold, fold, fold)
    plane = plane.transpose(0, 2, 1, 3).reshape(rows, columns)
    place = np.empty((rows * columns, 2), int)
    for r in range(rows):
        for c in range(columns):
            place[plane[r, c]] = r, c
    kernel = w[at + "patch_embed.proj.weight"].sum(2).reshape(width, -1)
    h = pixels @ kernel.T
    inv = 10000.0 ** (-np.arange(0, dim // 2, 2) / (dim // 2))
    angle = np.concatenate([place[:, :1] * inv, place[:, 1:] * inv], 1)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]

    def rotate(x):
        a, b = x[..., : dim // 2], x[..., dim // 2 :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def norm(x, name):
        if not second:
            return layer_norm(x, w, name, 1e-6)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * w[name + ".weight"]

    side = config.get("window_size", 0) // config["patch_size"]
    window = place // max(side, 1)
    apart = (window[:, None] != window[None]).any(-1)
    mask = np.where(apart, -np.inf, 0.0)
    for i in range(config["depth"]):
        p = f"{at}blocks.{i}."
        q, k, v = linear(norm(h, p + "norm1"), w, p + "attn.qkv").reshape(len(h), 3, heads, dim).swapaxes(0, 1)
        seen = mask if second and i not in config["fullatt_block_indexes"] else 0.0
        h = h + linear(attention(rotate(q), rotate(k), v, seen), w, p + "attn.proj")
        x = norm(h, p + "norm2")
        if second:
            gate = linear(x, w, p + "mlp.gate_proj")
            x = linear(gate / (1 + np.exp(-gate)) * linear(x, w, p + "mlp.up_proj"), w, p + "mlp.down_proj")
        else:
            x = linear(x, w, p + "mlp.fc1")
            x = linear(x / (1 + np.exp(-1.702 * x)), w, p + "mlp.fc2")
        h = h + x
    tokens = norm(h, at + "merger.ln_q").reshape(-1, fold * fold * width)
    tokens = linear(gelu(linear(tokens, w, at + "merger.mlp.0")), w, at + "merger.mlp.2")
    if second:
        # The golden's rows stand window by window, square by square within each.
        h = h[np.lexsort((np.arange(len(h)), window[:, 1], window[:, 0]))]
    return h, tokens


def check_qwen2vl(name):
    folder = HERE / name
    w = read(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    text = config.get("text_config", config)
    prefix = "model.language_model." if "text_config" in config else "model."
    rope = text.get("rope_parameters") or {**text["rope_scaling"], "rope_theta": text["rope_theta"]}
    dim = text["hidden_size"] // text["num_attention_heads"]
    inv = rope["rope_theta"] ** (-np.arange(0, dim, 2) / dim)
    axis = np.repeat(np.arange(3), rope["mrope_section"])
    fold = config["vision_config"]["spatial_merge_size"]
    known = {}
    for case in json.loads((folder / "prompt.json").read_text())["cases"]:
        golden = read(folder / f"golden.{case['name']}.safetensors")
        mine = {}
        if "pixel_values" in golden:
            (image,) = case["images"]
            # The grid that keeps the picture's shape best.
            count = len(golden["pixel_values"])
            shape = struct.unpack(">II", (folder / image).read_bytes()[16:24])
            grids = [(r, count // r) for r in range(fold, count, fold) if count % (r * fold) == 0]
            grid = min(grids, key=lambda g: abs(math.log(g[1] / g[0] * shape[1] / shape[0])))
            encode, project = qwen_tower(w, config["vision_config"], golden["pixel_values"], grid)
            mine = {"encode": encode, "project": project}
            known[image] = (grid, project)
        else:
            # Pictures that no other case has are taken from the file.
            project, at = golden["project"], 0
            for image in case["images"]:
                if image not in known:
                    side = math.isqrt(len(project) - at)
                    known[image] = ((side * fold, side * fold), project[at : at + side * side])
                at += len(known[image][1])
            mine["project"] = np.concatenate([known[image][1] for image in case["images"]])
        ids = golden["input_ids"]
        h = w[prefix + "embed_tokens.weight"][np.maximum(ids, 0)]
        h[ids < 0] = mine["project"]
        places = qwen_places(ids, [tuple(s // fold for s in known[image][0]) for image in case["images"]])
        hidden, last = decoder(w, text, h, prefix, places[:, axis] * inv)
        mine |= {f"hidden.{i}": value for i, value in enumerate(hidden)}
        mine["logits"] = last[-len(golden["logits"]) :] @ w["lm_head.weight"].T
        worst = 0.0
        for key in sorted(set(mine) & set(golden)):
            assert mine[key].shape == golden[key].shape, (name, case, key)
            error = np.abs(mine[key] - golden[key]).max() / np.abs(golden[key]).max()
            worst = max(worst, error)
            assert error < LIMIT, (name, case["name"], key, error)
        assert int(golden["greedy"][0]) == int(np.argmax(golden["logits"][-1]))
        print(f"{name} {case['name']}: worst relative error {worst:.1e}")
# ---------------------------------------------------------------- fastvlm


def conv(x, kernel, bias, stride=1):
    """[C, H, W] through [O, C / groups, k, k], padded by half a kernel."""
    out, width, side, _ = kernel.shape
    groups, pad = len(x) // width, side // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    height, across = ((n - 1) // stride + 1 for n in x.shape[1:])
    total = np.zeros((out, height, across))
    for dy in range(side):
        for dx in range(side):
            window = padded[:, dy : dy + stride * height : stride, dx : dx + stride * across : stride]
            window = window.reshape(groups, width, height, across)
            taps = kernel[:, :, dy, dx].reshape(groups, out // groups, width)
            total += np.einsum("goc,gchw->gohw", taps, window).reshape(total.shape)
    return total if bias is None else total + bias[:, None, None]


def batch_norm(x, w, name):
    mean, var = w[name + ".running_mean"], w[name + ".running_var"]
    factor = w[name + ".weight"] / np.sqrt(var + 1e-5)
    return (x - mean[:, None, None]) * factor[:, None, None] + w[name + ".bias"][:, None, None]


def conv_norm(x, w, name, stride=1):
    return batch_norm(conv(x, w[name + ".conv.weight"], None, stride), w, name + ".bn")


def branches(x, w, p, stride=1):
    """A convolution of either form, without what stands behind it."""
    for whole in ("reparam_conv", "lkb_reparam"):
        if f"{p}.{whole}.weight" in w:
            return conv(x, w[f"{p}.{whole}.weight"], w[f"{p}.{whole}.bias"], stride)
    names = ("rbr_conv.0", "rbr_scale", "lkb_origin", "small_conv")
    y = sum(conv_norm(x, w, f"{p}.{n}", stride) for n in names if f"{p}.{n}.conv.weight" in w)
    return y + batch_norm(x, w, p + ".rbr_skip") if p + ".rbr_skip.weight" in w else y


def fastvithd(w, config, pixels, p):
    x = pixels
    for i, stride in enumerate((2, 2, 1)):
        x = gelu(branches(x, w, f"{p}patch_embed.{i}", stride))
    at = 0
    for stage, depth in enumerate(config["layers"]):
        if stage:
            x = gelu(branches(x, w, f"{p}network.{at}.proj.0", 2))
            x = gelu(branches(x, w, f"{p}network.{at}.proj.1"))
            at += 1
        attends = config["token_mixers"][stage] == "attention"
        if attends:
            pe = f"{p}network.{at}.pe"
            trained = pe + ".weight" in w
            x = x + conv(x, w[pe + ".weight"], w[pe + ".bias"]) if trained else branches(x, w, pe[:-3])
            at += 1
        for block in range(depth):
            x = fastvithd_block(x, w, f"{p}network.{at}.{block}.", attends)
        at += 1
    x = branches(x, w, p + "conv_exp")
    se = p + "conv_exp.se."
    gate = w[se + "reduce.weight"][:, :, 0, 0] @ x.mean((1, 2)) + w[se + "reduce.bias"]
    gate = w[se + "expand.weight"][:, :, 0, 0] @ np.maximum(gate, 0) + w[se + "expand.bias"]
    return gelu(x * (1 / (1 + np.exp(-gate)))[:, None, None]).reshape(len(x), -1).T


def fastvithd_block(x, w, b, attends):
    scale = w[b + ("layer_scale_2" if attends else "layer_scale")]
    if attends:
        rows = layer_norm(x.reshape(len(x), -1).T, w, b + "norm")
        q, k, v = (n.reshape(len(rows), -1, 32) for n in np.split(linear(rows, w, b + "token_mixer.qkv"), 3, -1))
        y = linear(attention(q, k, v), w, b + "token_mixer.proj").T.reshape(x.shape)
        x = x + w[b + "layer_scale_1"] * y
    elif b + "token_mixer.layer_scale" in w:
        mixed = branches(x, w, b + "token_mixer.mixer") - batch_norm(x, w, b + "token_mixer.norm.rbr_skip")
        x = x + w[b + "token_mixer.layer_scale"] * mixed
    else:
        x = branches(x, w, b + "token_mixer")
    y = conv_norm(x, w, b + "convffn.conv")
    y = gelu(conv(y, w[b + "convffn.fc1.weight"], w[b + "convffn.fc1.bias"]))
    return x + scale * conv(y, w[b + "convffn.fc2.weight"], w[b + "convffn.fc2.bias"])


def check_fastvlm():
    tiles = {}
    for name in ("fastvlm", "fastvlm-trained"):
        folder = HERE / name
        w = read(folder / "model.safetensors")
        config = json.loads((folder / "config.json").read_text())
        for case in json.loads((folder / "prompt.json").read_text())["cases"]:
            golden = read(folder / f"golden.{case['name']}.safetensors")
            if "pixel_values" in golden:
                tiles[case["images"][0]] = golden["pixel_values"][0]
            mine = {}
            at = "model.vision_tower.vision_tower.model."
            pixels = [tiles[image] for image in case["images"]]
            mine["encode"] = np.stack([fastvithd(w, config["vision_config"], p, at) for p in pixels])
            mine["project"] = np.stack([projector(w, "mlp2x_gelu", x, "model.mm_projector.") for x in mine["encode"]])
            ids = golden["input_ids"]
            h = w["model.embed_tokens.weight"][np.maximum(ids, 0)]
            h[ids < 0] = mine["project"].reshape(-1, h.shape[1])
            hidden, last = decoder(w, config, h, "model.")
            mine |= {f"hidden.{i}": v for i, v in enumerate(hidden)}
            mine["logits"] = last[-len(golden["logits"]) :] @ w["lm_head.weight"].T
            worst = 0.0
            for key, value in mine.items():
                if key in golden:
                    assert value.shape == golden[key].shape, (name, case["name"], key)
                    error = np.abs(value - golden[key]).max() / np.abs(golden[key]).max()
                    worst = max(worst, error)
                    assert error < LIMIT, (name, case["name"], key, error)
            assert int(golden["greedy"][0]) == int(np.argmax(golden["logits"][-1]))
            seen = sorted(set(mine) & set(golden))
            print(f"{name}/{case['name']}: {seen}, worst relative error {worst:.1e}")


def moondream_tower(w, config, pixels):
    patch, heads = config["enc_patch_size"], config["enc_n_heads"]
    side = config["crop_size"] // patch
    rows = [
        pixels[:, y * patch : (y + 1) * patch, x * patch : (x + 1) * patch].reshape(-1)
        for y in range(side)
        for x in range(side)
    ]
    h = linear(np.stack(rows), w, "model.vision.patch_emb") + w["model.vision.pos_emb"][0]
    for i in range(config["enc_n_layers"]):
        p = f"model.vision.blocks.{i}."
        q, k, v = np.split(linear(layer_norm(h, w, p + "ln1"), w, p + "attn.qkv"), 3, -1)
        q, k, v = (t.reshape(len(t), heads, -1) for t in (q, k, v))
        h = h + linear(attention(q, k, v), w, p + "attn.proj")
        x = gelu_tanh(linear(layer_norm(h, w, p + "ln2"), w, p + "mlp.fc1"))
        h = h + linear(x, w, p + "mlp.fc2")
    return layer_norm(h, w, "model.vision.post_ln")


def moondream_projector(w, config, features, tiles):
    """`tiles`: rows and columns of tiles, whose pixels overlap by two margins. Each place of the map
    is the tile's in whose middle it lies; the outermost tiles reach to the edge."""
    side = math.isqrt(len(features[0]))
    margin = config["overlap_margin"]
    inner = side - 2 * margin
    height, width = (n * inner + 2 * margin for n in tiles)
    local = features[1:] if len(features) > 1 else features
    stitched = np.empty((height, width, features[0].shape[-1]))
    for y in range(height):
        for x in range(width):
            row = min(max(y - margin, 0) // inner, tiles[0] - 1)
            column = min(max(x - margin, 0) // inner, tiles[1] - 1)
            tile = local[row * tiles[1] + column].reshape(side, side, -1)
            stitched[y, x] = tile[y - row * inner, x - column * inner]
    pooled = np.empty((side, side, stitched.shape[-1]))
    for y in range(side):
        for x in range(side):
            ys = slice(y * height // side, -(-(y + 1) * height // side))
            xs = slice(x * width // side, -(-(x + 1) * width // side))
            pooled[y, x] = stitched[ys, xs].mean((0, 1))
    both = np.concatenate([features[0], pooled.reshape(side * side, -1)], -1)
    at = "model.vision.proj_mlp."
    return linear(gelu_tanh(linear(both, w, at + "fc1")), w, at + "fc2")


def moondream_decoder(w, config, h):
    tokens, heads = len(h), config["n_heads"]
    dim = config["dim"] // heads
    turning = dim // 2
    angle = np.arange(tokens)[:, None] * 10000.0 ** (-np.arange(0, turning, 2) / turning)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    mask = np.triu(np.full((tokens, tokens), -np.inf), 1)
    mask[: config["prefix_attn"], : config["prefix_attn"]] = 0.0

    def rotate(x):
        a, b, rest = np.split(x, [turning // 2, turning], -1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], -1)

    hidden = [h]
    for i in range(config["n_layers"]):
        p = f"model.text.blocks.{i}."
        x = layer_norm(h, w, p + "ln")
        q, k, v = (
            t.reshape(tokens, heads, dim) for t in np.split(linear(x, w, p + "attn.qkv"), 3, -1)
        )
        attended = linear(attention(rotate(q), rotate(k), v, mask), w, p + "attn.proj")
        h = h + attended + linear(gelu_tanh(linear(x, w, p + "mlp.fc1")), w, p + "mlp.fc2")
        hidden.append(h)
    return hidden, layer_norm(h, w, "model.text.post_ln")


def check_moondream(name):
    folder = HERE / name
    w = read(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())["config"]
    shapes = {"small": (1, 1), "wide": (2, 4), "tall": (6, 1)}
    for case in json.loads((folder / "prompt.json").read_text())["cases"]:
        golden = read(folder / f"golden.{case['name']}.safetensors")
        encode = [moondream_tower(w, config["vision"], p) for p in golden["pixel_values"]]
        project = moondream_projector(w, config["vision"], encode, shapes[case["name"]])
        ids = golden["input_ids"]
        h = w["model.text.wte"][np.maximum(ids, 0)]
        h[ids < 0] = project
        hidden, last = moondream_decoder(w, config["text"], h)
        logits = linear(last, w, "model.text.lm_head")[-len(golden["logits"]) :]
        mine = {"encode": np.stack(encode), "project": project[None], "logits": logits}
        mine |= {f"hidden.{i}": v for i, v in enumerate(hidden)}
        worst = 0.0
        for key, value in mine.items():
            assert value.shape == golden[key].shape, (case["name"], key)
            error = np.abs(value - golden[key]).max() / np.abs(golden[key]).max()
            worst = max(worst, error)
            assert error < LIMIT, (case["name"], key, error)
        assert int(golden["greedy"][0]) == int(np.argmax(golden["logits"][-1]))
        print(f"{name}/{case['name']}: {sorted(mine)}, worst relative error {worst:.1e}")


if __name__ == "__main__":
    for each in FOLDERS:
        check(each)
    check_smolvlm()
    for each in ("qwen2vl", "qwen25vl"):
        check_qwen2vl(each)
    check_fastvlm()
    for each in ("moondream", "moondream-ids"):
        check_moondream(each)
    from check_minicpmv import check_minicpmv

    check_minicpmv()
