"""Shared by the make_*.py scripts: weights, pictures, preprocessing, tracing, checks."""

import json
import os
import zlib
from fnmatch import fnmatchcase
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import sentencepiece as spm
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

torch.set_num_threads(1)
torch.set_grad_enabled(False)

HERE = Path(__file__).resolve().parent

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
IMAGE_TOKEN = -1
GREEDY = 32
LOGIT_ROWS = 4
# Ten times the tolerance of logits.
NEAR_TIE = 1e-3


# ---------------------------------------------------------------- weights


def random_tensor(name, shape, seed, embed=0.8):
    """A weight that matters: norms near 1, biases not 0, matrices of unit gain.

    The numbers depend on the seed and the name only (NumPy PCG64), not on the torch version.
    """
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    value = rng.standard_normal(shape)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "bias":
        value *= 0.2
    elif len(shape) == 1 and leaf == "weight":  # a norm
        value = 1.0 + 0.2 * value
    elif "embed_tokens" in name:
        value *= embed
    elif "embedding" in name and "patch" not in name:  # class, position
        value *= 0.5
    else:
        gain = 1.5 if ("q_proj" in name or "k_proj" in name or "lm_head" in name) else 1.0
        value *= gain / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(value.astype(np.float32)).contiguous()


def random_state(module, seed, prefix="", embed=0.8):
    return {
        prefix + name: random_tensor(prefix + name, tuple(p.shape), seed, embed)
        for name, p in module.named_parameters()
    }


def load(module, state):
    """Load exactly `state`; tied weights and non-persistent buffers may be missing."""
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= {"lm_head.weight"}, missing
    if hasattr(module, "tie_weights"):
        module.tie_weights()
    return module.eval()


# ---------------------------------------------------------------- files


def dump(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_weights(path, state):
    save_file({k: v.contiguous() for k, v in state.items()}, str(path), metadata={"format": "pt"})


def save_golden(folder, case, golden):
    """golden.CASE.safetensors; of logits the last rows."""
    tensors = {}
    for name, value in golden.items():
        dtype = torch.int32 if name in ("input_ids", "greedy") else torch.float32
        tensors[name] = torch.as_tensor(value).to(dtype).contiguous()
    tensors["logits"] = tensors["logits"][-LOGIT_ROWS:].contiguous()
    save_file(tensors, str(folder / f"golden.{case}.safetensors"))
    for path in folder.iterdir():
        path.chmod(0o644)


def save_text_case(folder, prompt, golden):
    """The one case of a text model."""
    dump(folder / "prompt.json", {"cases": [{"name": "text", "prompt": prompt, "images": []}]})
    save_golden(folder, "text", golden)


def save_picture_cases(folder, cases, pictures, trace, control=(0, 1, 2)):
    """Cases `{name: (prompt, pictures)}` over `pictures`, `{name: (width, height, seed)}`.

    `trace(prompt, images)` gives the golden tensors and the smallest gap of the greedy ids. Tiles of
    several pictures stand in the cases that have one."""
    opened = {}
    for name, (width, height, seed) in pictures.items():
        picture(width, height, seed).save(folder / f"{name}.png", optimize=True)
        opened[name] = Image.open(folder / f"{name}.png")
    listed = []
    for name, (prompt, images) in cases.items():
        golden, gap = trace(prompt, [opened[i] for i in images])
        check_greedy(f"{folder.name}/{name}", golden["greedy"], gap, control)
        if len(images) > 1:
            for stage in ("pixel_values", "encode", "hidden.1"):
                del golden[stage]
        save_golden(folder, name, golden)
        listed.append({"name": name, "prompt": prompt, "images": [f"{i}.png" for i in images]})
    dump(folder / "prompt.json", {"cases": listed})


def usual_pictures(wide, tall):
    return {"wide": (118, 75, wide), "tall": (75, 118, tall)}


def usual_cases(wide, tall, three):
    """A wide picture, a tall one, and three of both shapes with words between them."""
    return {
        "wide": (wide, ["wide"]),
        "tall": (tall, ["tall"]),
        "three": (three, ["tall", "wide", "tall"]),
    }


def clean(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    return folder


# ---------------------------------------------------------------- text


def pieces():
    return spm.SentencePieceProcessor(model_file=str(HERE / "tokenizers/spm/tokenizer.model"))


def tokenize(prompt, image_tokens=0):
    """LLaVA's way: each side of <image> on its own, one BOS, the image's positions as -1."""
    processor = pieces()
    chunks = prompt.split("<image>")
    ids = [processor.bos_id()]
    for i, chunk in enumerate(chunks):
        if i:
            ids += [IMAGE_TOKEN] * image_tokens
        ids += processor.encode(chunk)
    return ids


# ---------------------------------------------------------------- pictures


def picture(width, height, seed):
    """A small picture with edges, gradients, fine texture and no symmetry."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    base = np.stack(
        [
            60 + 150 * x / width,
            200 - 120 * y / height,
            110 + 70 * np.sin(0.11 * x + 0.17 * y),
        ],
        axis=-1,
    )
    image = Image.fromarray(np.clip(base, 0, 255).astype(np.uint8), "RGB")
    draw = ImageDraw.Draw(image)
    rng = np.random.default_rng(seed)
    for _ in range(5):
        cx, cy = rng.uniform(0, width), rng.uniform(0, height)
        r = rng.uniform(5, 0.25 * min(width, height))
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        box = [cx - r, cy - 0.7 * r, cx + r, cy + 0.7 * r]
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)(box, fill=colour)
    for i in range(0, width, 6):
        draw.line([i, height - 12, i + 3, height - 2], fill=(250, 250, 240))
    draw.text((4, 3), "MARGAY", fill=(10, 10, 30))
    return image


def normalise(image, mean=CLIP_MEAN, std=CLIP_STD):
    """Hugging Face's arithmetic: rescale in f64, round to f32, normalise in f32."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.uint8)
    scaled = (pixels.astype(np.float64) * (1 / 255)).astype(np.float32)
    out = (scaled - np.array(mean, np.float32)) / np.array(std, np.float32)
    return torch.from_numpy(out.transpose(2, 0, 1).copy())[None]


def resize_shortest(image, size):
    width, height = image.size
    short, long = min(width, height), max(width, height)
    new_long = int(size * long / short)
    target = (size, new_long) if width <= height else (new_long, size)
    return image.resize(target, Image.Resampling.BICUBIC)


def centre_crop(image, size):
    width, height = image.size
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def squash(image, size):
    return image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)


def expand_to_square(image):
    """LLaVA's expand2square with the CLIP mean as fill: (122, 116, 104)."""
    width, height = image.size
    fill = tuple(int(m * 255) for m in CLIP_MEAN)
    assert fill == (122, 116, 104)
    side = max(width, height)
    square = Image.new("RGB", (side, side), fill)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def preprocess(image, size, pad):
    image = image.convert("RGB")
    if pad:
        image = expand_to_square(image)
    return normalise(centre_crop(resize_shortest(image, size), size))


# ---------------------------------------------------------------- tracing


def run_llama(model, embeds):
    """Hidden states before the final norm (by hooks) and logits at all positions."""
    hidden = [embeds]
    hooks = []
    for layer in model.model.layers:
        hooks.append(
            layer.register_forward_hook(
                lambda _m, _i, out: hidden.append(out[0] if isinstance(out, tuple) else out)
            )
        )
    logits = model(inputs_embeds=embeds, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    assert len(hidden) == len(model.model.layers) + 1
    return [h[0] for h in hidden], logits[0]


def greedy(model, embeds, steps=GREEDY):
    """Greedy tokens (no stop token) and the smallest relative gap between the two best."""
    ids, gap = [], float("inf")
    for _ in range(steps):
        logits = model(inputs_embeds=embeds, use_cache=False).logits[0, -1]
        best = torch.topk(logits, 2)
        ids.append(int(best.indices[0]))
        gap = min(gap, float((best.values[0] - best.values[1]) / logits.abs().max()))
        token = model.get_input_embeddings()(torch.tensor([[ids[-1]]]))
        embeds = torch.cat([embeds, token], dim=1)
    return ids, gap


def fault(ids, gap, control):
    """What is wrong with a greedy sequence an engine is to be held to."""
    if gap < NEAR_TIE:
        return "near tie"
    if len(set(ids)) < 10:
        return "repetitive"
    return "control token" if set(ids) & set(control) else None


def check_greedy(name, ids, gap, control=(0, 1, 2)):
    print(f"{name}: greedy {ids}, smallest gap {gap:.4f}")
    assert fault(ids, gap, control) is None, f"{name}: {fault(ids, gap, control)}, choose another seed"


def check_every_weight(name, state, logits_of, inert=()):
    """Zeroing any one tensor must move the logits, except those that cannot matter."""
    base = logits_of(state)
    scale = base.abs().max()
    smallest, where = float("inf"), None
    for key in sorted(state):
        changed = dict(state)
        changed[key] = torch.zeros_like(state[key])
        moved = float((logits_of(changed) - base).abs().max() / scale)
        if any(fnmatchcase(key, f"*{part}*") for part in inert):
            assert moved < 1e-4, f"{name}: {key} was expected to be inert, moved {moved:.1e}"
            continue
        assert moved > 1e-3, f"{name}: zeroing {key} moves the logits by {moved:.1e} only"
        if moved < smallest:
            smallest, where = moved, key
    print(f"{name}: {len(state)} tensors, smallest effect {smallest:.4f} ({where})")
