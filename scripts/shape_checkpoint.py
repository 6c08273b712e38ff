#!/usr/bin/env python3
"""Write a Hugging Face folder with the true shapes of LLaVA-1.5-7B in float16, to measure what a conversion takes.

The numbers are holes of sparse files (13.5 GB that take no disk), or with --random a few MB of noise repeated.
Vocabulary and processor are those of tests/golden/llava; their ids beyond 511 have no pieces.

Usage: shape_checkpoint.py OUT [--layers 32] [--random]
"""

import argparse
import json
import os
import shutil
from pathlib import Path

GOLDEN = Path(__file__).resolve().parent.parent / "tests/golden/llava"
VOCABULARY, WIDTH, FFN, HEADS = 32000, 4096, 11008, 32
VISION = dict(layers=24, width=1024, ffn=4096, heads=16, image=336, patch=14)
SHARD_BYTES = 5_000_000_000


def tensors(layers):
    yield "model.embed_tokens.weight", [VOCABULARY, WIDTH]
    for i in range(layers):
        at = f"model.layers.{i}."
        for name in ("q", "k", "v", "o"):
            yield f"{at}self_attn.{name}_proj.weight", [WIDTH, WIDTH]
        yield at + "mlp.gate_proj.weight", [FFN, WIDTH]
        yield at + "mlp.up_proj.weight", [FFN, WIDTH]
        yield at + "mlp.down_proj.weight", [WIDTH, FFN]
        yield at + "input_layernorm.weight", [WIDTH]
        yield at + "post_attention_layernorm.weight", [WIDTH]
    yield "model.norm.weight", [WIDTH]
    yield "lm_head.weight", [VOCABULARY, WIDTH]
    v = VISION
    yield "model.mm_projector.0.weight", [WIDTH, v["width"]]
    yield "model.mm_projector.0.bias", [WIDTH]
    yield "model.mm_projector.2.weight", [WIDTH, WIDTH]
    yield "model.mm_projector.2.bias", [WIDTH]
    at = "model.vision_tower.vision_tower.vision_model."
    yield at + "embeddings.class_embedding", [v["width"]]
    yield at + "embeddings.patch_embedding.weight", [v["width"], 3, v["patch"], v["patch"]]
    yield at + "embeddings.position_embedding.weight", [(v["image"] // v["patch"]) ** 2 + 1, v["width"]]
    norms = ["pre_layrnorm", "post_layernorm"]
    for i in range(v["layers"]):
        layer = f"encoder.layers.{i}."
        norms += [layer + "layer_norm1", layer + "layer_norm2"]
        matrices = [(f"self_attn.{n}_proj", [v["width"]] * 2) for n in ("q", "k", "v", "out")]
        matrices += [("mlp.fc1", [v["ffn"], v["width"]]), ("mlp.fc2", [v["width"], v["ffn"]])]
        for name, shape in matrices:
            yield f"{at}{layer}{name}.weight", shape
            yield f"{at}{layer}{name}.bias", shape[:1]
    for name in norms:
        yield f"{at}{name}.weight", [v["width"]]
        yield f"{at}{name}.bias", [v["width"]]


def write_shard(path, entries, random):
    header, end = {}, 0
    for name, shape in entries:
        begin = end
        size = 2
        for n in shape:
            size *= n
        end += size
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 64)
    noise = os.urandom(1 << 22)
    # Float16 numbers of either sign around 0.01.
    noise = bytes(b if i % 2 == 0 else 0x20 | b & 0x87 for i, b in enumerate(noise)) if random else b""
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        while random and file.tell() < start + end:
            file.write(noise[: start + end - file.tell()])
        file.truncate(start + end)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--random", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for path in GOLDEN.iterdir():
        if "token" in path.name or path.name == "preprocessor_config.json":
            shutil.copy(path, args.out)
    config = json.loads((GOLDEN / "config.json").read_text())
    v = VISION
    config.update(
        hidden_size=WIDTH,
        intermediate_size=FFN,
        num_hidden_layers=args.layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        vocab_size=VOCABULARY,
        mm_hidden_size=v["width"],
        max_position_embeddings=4096,
        torch_dtype="float16",
    )
    config["vision_config"].update(
        hidden_size=v["width"],
        intermediate_size=v["ffn"],
        num_hidden_layers=v["layers"],
        num_attention_heads=v["heads"],
        image_size=v["image"],
        patch_size=v["patch"],
    )
    (args.out / "config.json").write_text(json.dumps(config, indent=2))
    shards, size = [[]], 0
    for name, shape in tensors(args.layers):
        bytes_ = 2
        for n in shape:
            bytes_ *= n
        if size + bytes_ > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append((name, shape))
        size += bytes_
    weight_map = {}
    for i, entries in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        write_shard(args.out / file, entries, args.random)
        weight_map.update((name, file) for name, _ in entries)
    index = {"metadata": {}, "weight_map": weight_map}
    (args.out / "model.safetensors.index.json").write_text(json.dumps(index))


if __name__ == "__main__":
    main()
