"""Recompute minicpmv/ in float64 NumPy; see check_golden.py, which runs this."""

import json

import numpy as np
from check_golden import (
    HERE,
    attention,
    cases_of,
    compare,
    decoder,
    gelu_tanh,
    layer_norm,
    linear,
    read,
)

# Rows and columns of patches of each tile of a picture.
GRIDS = {
    "small.png": [(7, 9)],
    "tall.png": [(12, 5), *[(7, 8)] * 3],
    "wide.png": [(5, 11), *[(6, 9)] * 6],
}
HEAD_DIM = 128


def buckets(count, table):
    """Where each of `count` rows falls in a table, in the float32 steps of the published code."""
    boundaries = (np.arange(1, table) / table).astype(np.float32)
    places = (np.arange(count) * float(np.float32(1 / count))).astype(np.float32)
    return np.searchsorted(boundaries, places, side="right")


def tower(w, config, patches, grid):
    rows, columns = grid
    table = config["image_size"] // config["patch_size"]
    heads = config["num_attention_heads"]
    ids = (buckets(rows, table)[:, None] * table + buckets(columns, table)).ravel()
    kernel = w["vpm.embeddings.patch_embedding.weight"].reshape(config["hidden_size"], -1)
    h = patches @ kernel.T + w["vpm.embeddings.patch_embedding.bias"]
    h = h + w["vpm.embeddings.position_embedding.weight"][ids]
    for i in range(config["num_hidden_layers"]):
        p = f"vpm.encoder.layers.{i}."
        x = layer_norm(h, w, p + "layer_norm1", 1e-6)
        q, k, v = (linear(x, w, f"{p}self_attn.{n}_proj").reshape(len(x), heads, -1) for n in "qkv")
        h = h + linear(attention(q, k, v), w, p + "self_attn.out_proj")
        x = gelu_tanh(linear(layer_norm(h, w, p + "layer_norm2", 1e-6), w, p + "mlp.fc1"))
        h = h + linear(x, w, p + "mlp.fc2")
    return layer_norm(h, w, "vpm.post_layernorm", 1e-6)


def resampler(w, x, grid):
    width = len(w["resampler.proj"])
    x = layer_norm(linear(x, w, "resampler.kv_proj"), w, "resampler.ln_kv", 1e-6)
    omega = 10000.0 ** (-np.arange(width // 4) / (width // 4))
    row, column = (place.ravel()[:, None] * omega for place in np.mgrid[: grid[0], : grid[1]])
    places = np.concatenate([np.sin(column), np.cos(column), np.sin(row), np.cos(row)], 1)
    query = layer_norm(w["resampler.query"], w, "resampler.ln_q", 1e-6)
    parts = zip(
        (query, x + places, x),
        np.split(w["resampler.attn.in_proj_weight"], 3),
        np.split(w["resampler.attn.in_proj_bias"], 3),
    )
    q, k, v = ((y @ weight.T + bias).reshape(len(y), -1, HEAD_DIM) for y, weight, bias in parts)
    out = linear(attention(q, k, v), w, "resampler.attn.out_proj")
    return layer_norm(out, w, "resampler.ln_post", 1e-6) @ w["resampler.proj"]


def check_minicpmv():
    folder = HERE / "minicpmv"
    w = read(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    decoder_config = config | {"model_type": "qwen2"}
    projected = {}
    for case, golden in cases_of(folder):
        mine = {}
        if "pixel_values" in golden:
            (picture,) = case["images"]
            grids = GRIDS[picture]
            ends = np.cumsum([rows * columns for rows, columns in grids])
            tiles = np.split(golden["pixel_values"], ends[:-1])
            encode = [tower(w, config["vision_config"], *tile) for tile in zip(tiles, grids)]
            project = [resampler(w, *tile) for tile in zip(encode, grids)]
            projected[picture] = np.concatenate(project)
            mine["encode"] = np.concatenate(encode)
        mine["project"] = np.concatenate([projected[picture] for picture in case["images"]])
        ids = golden["input_ids"]
        h = w["llm.model.embed_tokens.weight"][np.maximum(ids, 0)]
        h[ids < 0] = mine["project"]
        hidden, last = decoder(w, decoder_config, h, "llm.model.")
        mine |= {f"hidden.{i}": value for i, value in enumerate(hidden)}
        mine["logits"] = last[-len(golden["logits"]) :] @ w["llm.lm_head.weight"].T
        compare(f"minicpmv/{case['name']}", mine, golden)
