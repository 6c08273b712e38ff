#!/usr/bin/env python3
"""Write GGUF files with the shapes of real models and random weights: for speed, memory and loading, not for answers.

    shapes.py DIR m14-Q4_0 v7-Q4_K_M       one file each, DIR/m14-Q4_0.gguf ...
    shapes.py DIR clip-ldpv2-2048-F16      a vision file
    shapes.py DIR short                    the files of `run.py --preset short`
    shapes.py --list

Text models: m14 (MobileLLaMA 1.4B), m27 (MobileLLaMA 2.7B, heads of 80), phi2 (Phi-2), v7 (Vicuna 7B), q15 and q7 (Qwen2
1.5B and 7B), q2vl (Qwen2-VL's 1.5B), moon (Moondream's Phi-1.5, which only Margay reads), in Q4_0, Q4_K_M, Q8_0 or F16;
q05 (Qwen2 0.5B) in those but Q4_K_M, whose blocks its rows do not fill. Vision files, in F16 or BF16: clip (CLIP
ViT-L/14-336) and siglip (SigLIP so400m/14-384) with mlp or ldpv2 to a width, navit (MiniCPM-V 2.6's SigLIP) with
resampler, qwen2vl with qwen2vl_merger; and, which only Margay reads, siglip378 with moondream and fastvithd (FastVLM's
at 1024 pixels) with mlp. All text models have one byte-level vocabulary in which every
word of up to three letters is a token, and a chat template that adds nothing: every engine reads the same file, and a
prompt is as long as it says.
"""

import argparse
import itertools
import string
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from plan import FULL_FILES, SHORT_FILES

# Standard deviation of all weights, about that of trained ones: sums stay ordinary numbers.
SPREAD = 0.02
CHAT_TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"


@dataclass(frozen=True)
class Text:
    """Shape of a text model. Source: config.json of the published checkpoints."""

    arch: str
    layers: int
    width: int
    heads: int
    ffn: int
    vocabulary: int
    rotary: int
    context: int
    kv_heads: int | None = None
    base: float = 10000.0

    @property
    def kv_width(self) -> int:
        return self.width // self.heads * (self.kv_heads or self.heads)


@dataclass(frozen=True)
class Vision:
    """Shape of an image encoder. Source: as above."""

    layers: int
    width: int
    heads: int
    ffn: int
    image: int
    epsilon: float
    is_clip: bool = False
    # The features are taken behind the last norm.
    is_final: bool = False
    # Learned positions, where they are not one for each patch of the picture; 0 where there are none.
    positions: int | None = None
    # Kernels of the patch embedding, one for each frame.
    frames: int = 1


TEXTS = {
    "m14": Text("llama", 24, 2048, 16, 5632, 32000, 128, 2048),
    "m27": Text("llama", 32, 2560, 32, 6912, 32000, 80, 2048),
    "phi2": Text("phi2", 32, 2560, 32, 10240, 51200, 32, 2048),
    "v7": Text("llama", 32, 4096, 32, 11008, 32000, 128, 4096),
    "q05": Text("qwen2", 24, 896, 14, 4864, 151936, 64, 32768, kv_heads=2, base=1e6),
    "q15": Text("qwen2", 28, 1536, 12, 8960, 151936, 128, 32768, kv_heads=2, base=1e6),
    "q7": Text("qwen2", 28, 3584, 28, 18944, 151666, 128, 32768, kv_heads=4, base=1e6),
    "q2vl": Text("qwen2vl", 28, 1536, 12, 8960, 151936, 128, 32768, kv_heads=2, base=1e6),
    "moon": Text("moondream", 24, 2048, 32, 8192, 51200, 32, 2048),
}
PHIS = ("phi2", "moondream")
VISIONS = {
    "clip": Vision(24, 1024, 16, 4096, 336, 1e-5, is_clip=True),
    "siglip": Vision(27, 1152, 16, 4304, 384, 1e-6),
    "navit": Vision(27, 1152, 16, 4304, 448, 1e-6, is_final=True, positions=70 * 70),
    "siglip378": Vision(27, 1152, 16, 4304, 378, 1e-5, is_final=True),
    "qwen2vl": Vision(32, 1280, 16, 5120, 560, 1e-6, is_final=True, positions=0, frames=2),
}
# Projectors of other towers than their namesakes, and metadata of theirs.
QUERIES = 64
MOON_HIDDEN = 8192
FOLD = 2
# FastViTHD. Source: apple/ml-fastvlm `mci.py`, `fastvithd`.
STAGES = [(2, 96), (12, 192), (24, 384), (4, 768), (2, 1536)]
MIXERS = 3  # stages of convolutions alone, before those with attention
PATCH = 14
FILE_TYPES = {"F16": 1, "Q4_0": 2, "Q8_0": 7, "Q4_K_M": 15, "BF16": 32}

# (name, shape, role); roles: matrix (the file's type), kernel (16 bits), ones and small (float32).
Tensor = tuple[str, tuple[int, ...], str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("names", nargs="*", help="files, or short, or full")
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    if args.list:
        print("\n".join(FULL_FILES))
        return
    if not args.folder or not args.names:
        parser.error("a folder and at least one name are needed")
    args.folder.mkdir(parents=True, exist_ok=True)
    sets = {"short": SHORT_FILES, "full": FULL_FILES}
    for name in itertools.chain.from_iterable(sets.get(name, [name]) for name in args.names):
        name = name.removesuffix(".gguf")
        path = args.folder / f"{name}.gguf"
        if path.exists():
            print(f"{path} is there")
            continue
        unfinished = path.with_suffix(".unfinished")
        write(name, unfinished)
        unfinished.rename(path)
        print(f"\r{path}  {path.stat().st_size / 1e6:.0f} MB", flush=True)


def write(name: str, path: Path) -> None:
    parts = name.split("-")
    if len(parts) == 2 and parts[0] in TEXTS and parts[1] in FILE_TYPES:
        write_text(TEXTS[parts[0]], parts[1], name, path)
    elif len(parts) == 4 and parts[0] in VISIONS and parts[3] in ("F16", "BF16"):
        write_vision(VISIONS[parts[0]], parts[1], int(parts[2]), parts[3], name, path)
    elif len(parts) == 4 and parts[:2] == ["fastvithd", "mlp"] and parts[3] in ("F16", "BF16"):
        write_fastvithd(int(parts[2]), parts[3], name, path)
    else:
        sys.exit(f"{name}: no such shape; see --help")


def write_text(shape: Text, kind: str, name: str, path: Path) -> None:
    writer = gguf.GGUFWriter(path, shape.arch)
    writer.add_name(f"{name}, random weights")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads or shape.heads)
    writer.add_rope_dimension_count(shape.rotary)
    writer.add_rope_freq_base(shape.base)
    if shape.arch == "qwen2":
        # Where its vision file fits several.
        writer.add_string("margay.family", "fastvlm")
    writer.add_vocab_size(shape.vocabulary)
    if shape.arch in PHIS:
        writer.add_layer_norm_eps(1e-5)
    else:
        writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(FILE_TYPES[kind])
    add_vocabulary(writer, shape.vocabulary)
    tensors = list(text_tensors(shape))
    write_tensors(writer, [(t, text_type(t, kind, shape.layers)) for t in tensors], name)


def write_vision(shape: Vision, projector: str, width: int, kind: str, name: str, path: Path) -> None:
    writer = gguf.GGUFWriter(path, "clip")
    # Says that all blocks are stored and the last is not used: then every engine runs the same number.
    writer.add_type("mmproj")
    writer.add_name(f"{name}, random weights")
    for key, value in [
        ("has_text_encoder", False),
        ("has_vision_encoder", True),
        ("has_llava_projector", True),
        ("use_gelu", not shape.is_clip),
    ]:
        writer.add_bool(f"clip.{key}", value)
    writer.add_string("clip.projector_type", projector)
    numbers = {
        "image_size": shape.image,
        "patch_size": PATCH,
        "embedding_length": shape.width,
        "feed_forward_length": shape.ffn,
        "projection_dim": width,
        "block_count": shape.layers,
        "attention.head_count": shape.heads,
    }
    for key, number in numbers.items():
        writer.add_uint32(f"clip.vision.{key}", number)
    if projector == "resampler":
        writer.add_int32("clip.minicpmv_version", 3)
        writer.add_uint32("clip.minicpmv_query_num", QUERIES)
    elif projector == "qwen2vl_merger":
        writer.add_uint32("clip.vision.spatial_merge_size", FOLD)
    elif projector == "moondream":
        writer.add_uint32("margay.projector.hidden_length", MOON_HIDDEN)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", shape.epsilon)
    as_clip = shape.is_clip or projector == "qwen2vl_merger"
    mean = [0.48145466, 0.4578275, 0.40821073] if as_clip else [0.5] * 3
    deviation = [0.26862954, 0.26130258, 0.27577711] if as_clip else [0.5] * 3
    writer.add_array("clip.vision.image_mean", mean)
    writer.add_array("clip.vision.image_std", deviation)
    writer.add_file_type(FILE_TYPES[kind])
    tensors = itertools.chain(encoder_tensors(shape), projector_tensors(projector, shape.width, width))
    types = {"matrix": Type[kind], "kernel": Type.F16}
    write_tensors(writer, [(t, types.get(t[2], Type.F32)) for t in tensors], name)


def write_fastvithd(width: int, kind: str, name: str, path: Path) -> None:
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_name(f"{name}, random weights")
    for key, flag in [("has_text_encoder", False), ("has_vision_encoder", True), ("has_llava_projector", True)]:
        writer.add_bool(f"clip.{key}", flag)
    writer.add_string("clip.projector_type", "mlp")
    numbers = {"image_size": 1024, "patch_size": 64, "embedding_length": 2 * STAGES[-1][1], "projection_dim": width}
    for key, number in numbers.items():
        writer.add_uint32(f"clip.vision.{key}", number)
    writer.add_array("clip.vision.image_mean", [0.0] * 3)
    writer.add_array("clip.vision.image_std", [1.0] * 3)
    writer.add_string("margay.vision.tower", "fastvithd")
    lists = {
        "block_count": [depth for depth, _ in STAGES],
        "embedding_length": [channels for _, channels in STAGES],
        "feed_forward_length": [4 * channels for _, channels in STAGES],
        "attention": [int(stage >= MIXERS) for stage in range(len(STAGES))],
    }
    for key, numbers in lists.items():
        writer.add_array(f"margay.vision.stage.{key}", numbers)
    writer.add_file_type(FILE_TYPES[kind])
    tensors = itertools.chain(fastvithd_tensors(), projector_tensors("mlp", 2 * STAGES[-1][1], width))
    types = {"matrix": Type[kind], "kernel": Type.F16}
    write_tensors(writer, [(t, types.get(t[2], Type.F32)) for t in tensors], name)


def add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """Bytes, and every word of a space and one to three letters, as pairs merge to it; the rest is never used."""
    characters = byte_characters()
    space, letters = characters[32], string.ascii_lowercase
    tokens, kinds = ["<unk>", "<s>", "</s>"], [gguf.TokenType.UNKNOWN] + [gguf.TokenType.CONTROL] * 2
    merges, stems = [], [space]
    words: list[str] = []
    for _ in range(3):
        pairs = [(stem, letter) for stem in stems for letter in letters]
        merges += [f"{stem} {letter}" for stem, letter in pairs]
        stems = [stem + letter for stem, letter in pairs]
        words += stems
    tokens += characters + words
    tokens += [f"<unused{i}>" for i in range(size - len(tokens))]
    kinds += [gguf.TokenType.NORMAL] * (3 + 256 + len(words) - len(kinds))
    kinds += [gguf.TokenType.UNUSED] * (size - len(kinds))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_chat_template(CHAT_TEMPLATE)


def byte_characters() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary. Source: GPT-2 `encoder.py`."""
    shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = iter(range(256, 512))
    return [chr(byte if byte in shown else next(hidden)) for byte in range(256)]


def text_tensors(shape: Text) -> Iterator[Tensor]:
    width, is_phi = shape.width, shape.arch in PHIS
    biased = ("attn_q", "attn_k", "attn_v") if shape.arch in ("qwen2", "qwen2vl") else ()

    def linear(name: str, outputs: int, inputs: int) -> Iterator[Tensor]:
        yield f"{name}.weight", (outputs, inputs), "matrix"
        if is_phi or name.endswith(biased):
            yield f"{name}.bias", (outputs,), "small"

    def norm(name: str) -> Iterator[Tensor]:
        yield f"{name}.weight", (width,), "ones"
        if is_phi:
            yield f"{name}.bias", (width,), "small"

    yield "token_embd.weight", (shape.vocabulary, width), "matrix"
    yield from norm("output_norm")
    yield from linear("output", shape.vocabulary, width)
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        yield from norm(block + "attn_norm")
        if is_phi:
            yield from linear(block + "attn_qkv", 3 * width, width)
        else:
            for name in ("attn_q", "attn_k", "attn_v"):
                yield from linear(block + name, width if name == "attn_q" else shape.kv_width, width)
            yield from norm(block + "ffn_norm")
            yield from linear(block + "ffn_gate", shape.ffn, width)
        yield from linear(block + "attn_output", width, width)
        yield from linear(block + "ffn_up", shape.ffn, width)
        yield from linear(block + "ffn_down", width, shape.ffn)


def encoder_tensors(shape: Vision) -> Iterator[Tensor]:
    width = shape.width
    positions = shape.positions
    if positions is None:
        positions = (shape.image // PATCH) ** 2 + (1 if shape.is_clip else 0)
    for frame in range(shape.frames):
        yield f"v.patch_embd.weight{f'.{frame}' if frame else ''}", (width, 3, PATCH, PATCH), "kernel"
    if positions:
        yield "v.position_embd.weight", (positions, width), "small"
    if shape.is_clip:
        yield "v.class_embd", (width,), "small"
        yield "v.pre_ln.weight", (width,), "ones"
        yield "v.pre_ln.bias", (width,), "small"
    elif shape.frames == 1:
        yield "v.patch_embd.bias", (width,), "small"
    if shape.is_final:
        yield "v.post_ln.weight", (width,), "ones"
        yield "v.post_ln.bias", (width,), "small"
    matrices = {name: (width, width) for name in ("attn_q", "attn_k", "attn_v", "attn_out")}
    matrices |= {"ffn_up": (shape.ffn, width), "ffn_down": (width, shape.ffn)}
    for layer in range(shape.layers):
        block = f"v.blk.{layer}."
        for name in ("ln1", "ln2"):
            yield f"{block}{name}.weight", (width,), "ones"
            yield f"{block}{name}.bias", (width,), "small"
        for name, size in matrices.items():
            yield f"{block}{name}.weight", size, "matrix"
            yield f"{block}{name}.bias", (size[0],), "small"


def fastvithd_tensors() -> Iterator[Tensor]:
    """Each layer with its bias, and layer norms. The names are Margay's own (`vision/fastvithd.rs`)."""

    def conv(name: str, outputs: int, inputs: int, side: int) -> Iterator[Tensor]:
        yield f"{name}.weight", (outputs, inputs, side, side), "kernel"
        yield f"{name}.bias", (outputs,), "small"

    def linear(name: str, outputs: int, inputs: int) -> Iterator[Tensor]:
        yield f"{name}.weight", (outputs, inputs), "matrix"
        yield f"{name}.bias", (outputs,), "small"

    first, last = STAGES[0][1], STAGES[-1][1]
    yield from conv("v.stem.0", first, 3, 3)
    yield from conv("v.stem.1", first, 1, 3)
    yield from linear("v.stem.2", first, first)
    for stage, (depth, width) in enumerate(STAGES):
        at = f"v.stage.{stage}"
        if stage:
            yield from conv(f"{at}.down_conv", width, 1, 7)
            yield from linear(f"{at}.down_proj", width, width)
        if stage >= MIXERS:
            yield from conv(f"{at}.pos_conv", width, 1, 7)
        for number in range(depth):
            block = f"{at}.blk.{number}"
            if stage >= MIXERS:
                yield f"{block}.ln1.weight", (width,), "ones"
                yield f"{block}.ln1.bias", (width,), "small"
                yield f"{block}.attn_qkv.weight", (3 * width, width), "matrix"
                yield from linear(f"{block}.attn_out", width, width)
            else:
                yield from conv(f"{block}.mix_conv", width, 1, 3)
            yield from conv(f"{block}.ffn_conv", width, 1, 7)
            yield from linear(f"{block}.ffn_up", 4 * width, width)
            yield from linear(f"{block}.ffn_down", width, 4 * width)
    yield from conv("v.exp_conv", 2 * last, 1, 3)
    yield from linear("v.se.reduce", 2 * last // 16, 2 * last)
    yield from linear("v.se.expand", 2 * last, 2 * last // 16)


def projector_tensors(projector: str, inputs: int, width: int) -> Iterator[Tensor]:
    def linear(name: str, outputs: int, inputs: int) -> Iterator[Tensor]:
        yield f"{name}.weight", (outputs, inputs), "matrix"
        yield f"{name}.bias", (outputs,), "small"

    def two(prefix: str, inputs: int, hidden: int) -> Iterator[Tensor]:
        yield from linear(f"{prefix}0", hidden, inputs)
        yield from linear(f"{prefix}2", width, hidden)

    if projector == "mlp":
        yield from two("mm.", inputs, width)
    elif projector == "ldpv2":
        yield from two("mm.model.mlp.", inputs, width)
        yield "mm.model.peg.0.weight", (width, 3, 3), "kernel"
        yield "mm.model.peg.0.bias", (width,), "small"
    elif projector == "moondream":
        yield from two("mm.", 2 * inputs, MOON_HIDDEN)
    elif projector == "qwen2vl_merger":
        yield from two("mm.", FOLD * FOLD * inputs, FOLD * FOLD * inputs)
    elif projector == "resampler":
        yield "resampler.query", (QUERIES, width), "small"
        yield "resampler.kv.weight", (width, inputs), "matrix"
        for name in ("q", "k", "v", "out"):
            yield from linear(f"resampler.attn.{name}", width, width)
        for name in ("ln_q", "ln_kv", "ln_post"):
            yield f"resampler.{name}.weight", (width,), "ones"
            yield f"resampler.{name}.bias", (width,), "small"
        yield "resampler.proj.weight", (width, width), "matrix"
    else:
        sys.exit(f"the projector {projector} is not known; mlp, ldpv2, moondream, qwen2vl_merger or resampler")


def text_type(tensor: Tensor, kind: str, layers: int) -> Type:
    """The type that llama.cpp's quantizer gives a tensor (`llama-quant.cpp`)."""
    name, size, role = tensor
    if role != "matrix":
        return Type.F32
    if name == "output.weight" and kind in ("Q4_0", "Q4_K_M"):
        return Type.Q6_K if size[-1] % 256 == 0 else Type.Q8_0
    if kind != "Q4_K_M":
        return Type[kind]
    if "attn_qkv" in name:
        return Type.Q5_K
    if "attn_v" in name or "ffn_down" in name:
        layer, eighth = int(name.split(".")[1]), layers // 8
        if layer < eighth or layer >= 7 * eighth or (layer - eighth) % 3 == 2:
            return Type.Q6_K
    return Type.Q4_K


def write_tensors(writer: gguf.GGUFWriter, tensors: list[tuple[Tensor, Type]], name: str) -> None:
    """Announces all tensors, then makes and writes one after the other: memory holds one."""
    for (tensor, shape, _), kind in tensors:
        values, size = gguf.GGML_QUANT_SIZES[kind]
        assert shape[-1] % values == 0, f"{tensor}: rows of {shape[-1]} have no blocks of {values}"
        row = shape[-1] // values * size
        count = int(np.prod(shape[:-1], dtype=np.int64))
        writer.add_tensor_info(tensor, (*shape[:-1], row), np.dtype(np.uint8), count * row, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(1)
    pools: dict[Type, np.ndarray] = {}
    for done, ((_, shape, role), kind) in enumerate(tensors):
        values, _ = gguf.GGML_QUANT_SIZES[kind]
        blocks = int(np.prod(shape, dtype=np.int64)) // values
        if role == "ones":
            writer.write_tensor_data(np.ones(shape, np.float32))
        else:
            if kind not in pools:
                pools[kind] = random_blocks(kind, random)
            writer.write_tensor_data(stretch(pools[kind], blocks, int(random.integers(len(pools[kind])))))
        if sys.stderr.isatty():
            print(f"\r{name}  {done + 1} of {len(tensors)} tensors", end="", file=sys.stderr)
    writer.close()


def stretch(pool: np.ndarray, blocks: int, start: int) -> np.ndarray:
    """So many blocks of the pool from `start` on, round and round. [blocks, bytes]"""
    times = -(-(start + blocks) // len(pool))
    return np.concatenate([pool] * times)[start : start + blocks] if times > 1 else pool[start : start + blocks]


def random_blocks(kind: Type, random: np.random.Generator) -> np.ndarray:
    """Blocks whose values have about the wanted spread and mean 0. [blocks, bytes]"""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    count = (1 << 22) // values
    if kind in (Type.F32, Type.F16, Type.BF16):
        numbers = random.standard_normal((count, 1), dtype=np.float32) * np.float32(SPREAD)
        return gguf.quants.quantize(numbers, kind).view(np.uint8).reshape(count, size)
    block = random.integers(0, 256, (count, size), dtype=np.uint8)

    def put_half(at: int, value: float) -> None:
        block[:, at : at + 2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)

    # Uniform codes of n levels deviate by n / sqrt(12) steps.
    if kind == Type.Q4_0:
        put_half(0, SPREAD * 12**0.5 / 16)
    elif kind == Type.Q8_0:
        put_half(0, SPREAD * 12**0.5 / 256)
    elif kind in (Type.Q4_K, Type.Q5_K):
        levels = 16 if kind == Type.Q4_K else 32
        scale = 32  # of 64, for each of the eight groups and of their minima
        step = SPREAD * 12**0.5 / levels / scale
        put_half(0, step)
        put_half(2, step * (levels - 1) / 2)
        # The first eight bytes hold six bits of their own and the upper two of a later group, the last four the rest.
        block[:, 4:12] = scale | (scale >> 4) << 6
        block[:, 12:16] = (scale & 15) | (scale & 15) << 4
    elif kind == Type.Q6_K:
        scale = 8
        block[:, 192:208] = scale
        put_half(208, SPREAD * 12**0.5 / 64 / scale)
    else:
        sys.exit(f"no random blocks of {kind.name}")
    return block


if __name__ == "__main__":
    main()
