"""A MiniCPM-V 2.6 checkpoint: slices of any shape, a resampler, pictures that are numbered: minicpmv/.

The model's code is not part of transformers: `openbmb/MiniCPM-V-2_6` brings its own. What is written here follows it,
over modules of transformers and PyTorch:

* slices and placeholders: image_processing_minicpmv.py, MiniCPMVImageProcessor (`slice_image`, `get_sliced_grid`,
  `find_best_resize`, `get_refine_size`, `get_slice_image_placeholder`, `reshape_by_patch`), and the same functions of
  OpenBMB/MiniCPM-V finetune/dataset.py, lines 438-590; resized by Pillow;
* prompt: processing_minicpmv.py, `_convert_images_texts_to_inputs`, and modeling_minicpmv.py, `chat`: each picture is
  `(<image>./</image>)`, parts of a message are joined by line breaks, the template is Qwen2's;
* tower: modeling_navit_siglip.py, `SiglipVisionEmbeddings.forward` with `tgt_sizes` (the position ids, by
  `torch.bucketize` as it stands there), then transformers' SiglipEncoder and a norm. All tiles are of one picture size
  here, one after the other, so that there is nothing to mask;
* resampler: resampler.py, `Resampler.forward`; vLLM model_executor/models/minicpmv.py, `Resampler2_5`, is the same;
  torch.nn.MultiheadAttention in it;
* decoder: transformers' Qwen2ForCausalLM, whose embeddings the visual tokens replace (`get_vllm_embedding`).

The checkpoint is stored in BF16, as the published one; golden tensors belong to the rounded weights, in F32.

Usage: python make_minicpmv.py [--search]
"""

import math
import sys

import make_qwen2vl
from common import (
    HERE,
    check_every_weight,
    clean,
    dump,
    fault,
    greedy,
    load,
    normalise,
    picture,
    random_state,
    run_llama,
    save_picture_cases,
)

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipEncoder

SEED = 2
PIECES, VOCABULARY = make_qwen2vl.PIECES, 304
CONTROL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<unk>",
    "<image>",
    "</image>",
    "<slice>",
    "</slice>",
    "<image_id>",
    "</image_id>",
]
PATCH, TABLE, RESOLUTION, MOST, QUERIES = 4, 12, 32, 9, 6
# A head of the resampler has 128 columns.
WIDTH = 128
VISION = {
    "hidden_size": 20,
    "image_size": TABLE * PATCH,
    "intermediate_size": 37,
    "model_type": "siglip",
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "patch_size": PATCH,
}
TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
}
MARK = "(<image>./</image>)"
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
PICTURES = {"small": (28, 21, 13), "wide": (104, 48, 11), "tall": (24, 60, 12)}


def question(words):
    return f"{SYSTEM}<|im_start|>user\n{words}<|im_end|>\n<|im_start|>assistant\n"


CASES = {
    "small": (question(f"{MARK}\nWhat does the sign say?"), ["small"]),
    "wide": (question(f"{MARK}\nHow many boats?"), ["wide"]),
    "tall": (question(f"{MARK}\nWhich is small?"), ["tall"]),
    "three": (question(f"{MARK}\n{MARK}\nthen\n{MARK}\nWhich is large?"), ["tall", "small", "wide"]),
}
# The key bias adds the same number to every score of a softmax row; that of the resampler is a part of
# `attn.in_proj_bias`, whose other parts matter.
INERT = ("encoder.*k_proj.bias",)


# ---------------------------------------------------------------- pictures


def ensure_divide(length, size):
    return max(round(length / size) * size, size)


def best_resize(size, grows=False):
    width, height = size
    if width * height > RESOLUTION * RESOLUTION or grows:
        r = width / height
        height = int(RESOLUTION / math.sqrt(r))
        width = int(height * r)
    return ensure_divide(width, PATCH), ensure_divide(height, PATCH)


def sliced_grid(size):
    """Columns and rows, or None."""
    width, height = size
    log_ratio = math.log(width / height)
    multiple = min(math.ceil(width * height / (RESOLUTION * RESOLUTION)), MOST)
    if multiple <= 1:
        return None
    best, least = None, float("inf")
    for count in (multiple - 1, multiple, multiple + 1):
        if count == 1 or count > MOST:
            continue
        for columns in range(1, count + 1):
            if count % columns == 0:
                error = abs(log_ratio - math.log(columns / (count // columns)))
                if error < least:
                    best, least = (columns, count // columns), error
    return best


def slices(image):
    """The whole picture and its slices, and the grid of these."""
    grid = sliced_grid(image.size)
    whole = image.resize(best_resize(image.size, grid is None), Image.Resampling.BICUBIC)
    if grid is None:
        return [whole], None
    each = [ensure_divide(side, count) / count for side, count in zip(image.size, grid)]
    width, height = best_resize(each, True)
    refined = image.resize((width * grid[0], height * grid[1]), Image.Resampling.BICUBIC)
    corners = [(x * width, y * height) for y in range(grid[1]) for x in range(grid[0])]
    return [whole, *(refined.crop((x, y, x + width, y + height)) for x, y in corners)], grid


def placeholder(number, grid):
    tokens = "<unk>" * QUERIES
    text = f"<image_id>{number}</image_id><image>{tokens}</image>"
    if grid is not None:
        row = f"<slice>{tokens}</slice>" * grid[0]
        text += "\n".join([row] * grid[1])
    return text


# ---------------------------------------------------------------- model


class Embeddings(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, PATCH, PATCH, padding="valid")
        self.position_embedding = nn.Embedding(TABLE * TABLE, config.hidden_size)

    def forward(self, pixels):
        x = self.patch_embedding(pixels)
        size = torch.tensor(x.shape[-2:], dtype=torch.int32)
        boundaries = torch.arange(1 / TABLE, 1.0, 1 / TABLE)
        rows, columns = (
            torch.bucketize(torch.arange(0, 1 - 1e-6, 1 / side), boundaries, right=True) for side in size
        )
        ids = (rows[:, None] * TABLE + columns).flatten()
        return x.flatten(2).transpose(1, 2) + self.position_embedding(ids), size


class Vpm(nn.Module):
    def __init__(self):
        super().__init__()
        given = {k: v for k, v in VISION.items() if k != "model_type"}
        config = SiglipVisionConfig(**given, attn_implementation="eager")
        self.embeddings = Embeddings(config)
        self.encoder = SiglipEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixels):
        x, size = self.embeddings(pixels)
        out = self.encoder(inputs_embeds=x)
        x = out.last_hidden_state if hasattr(out, "last_hidden_state") else out[0]
        return self.post_layernorm(x), size


def sincos(width, places):
    """[H, W, width] of places [H, W]; resampler.py, get_1d_sincos_pos_embed_from_grid_new."""
    omega = np.arange(width // 2, dtype=np.float32)
    omega /= width / 2.0
    omega = 1.0 / 10000**omega
    out = np.einsum("hw,d->hwd", places, omega)
    return np.concatenate([np.sin(out), np.cos(out)], axis=-1)


def positions(width, height, columns):
    grid = np.meshgrid(np.arange(columns, dtype=np.float32), np.arange(height, dtype=np.float32))
    made = np.concatenate([sincos(width // 2, places) for places in grid], axis=-1)
    return torch.from_numpy(made).float()


class Resampler(nn.Module):
    def __init__(self):
        super().__init__()
        self.query = nn.Parameter(torch.zeros(QUERIES, WIDTH))
        self.kv_proj = nn.Linear(VISION["hidden_size"], WIDTH, bias=False)
        self.attn = nn.MultiheadAttention(WIDTH, WIDTH // 128)
        self.ln_q, self.ln_kv, self.ln_post = (nn.LayerNorm(WIDTH, eps=1e-6) for _ in range(3))
        self.proj = nn.Parameter(torch.zeros(WIDTH, WIDTH))

    def forward(self, x, size):
        height, columns = size.tolist()
        pos = positions(WIDTH, height, columns).reshape(height * columns, 1, WIDTH)
        x = self.ln_kv(self.kv_proj(x)).permute(1, 0, 2)
        q = self.ln_q(self.query)
        out = self.attn(q.unsqueeze(1), x + pos, x)[0]
        return self.ln_post(out.permute(1, 0, 2)) @ self.proj


class MiniCpmV(nn.Module):
    def __init__(self):
        super().__init__()
        self.vpm, self.resampler = Vpm(), Resampler()
        self.llm = Qwen2ForCausalLM(Qwen2Config(**TEXT, attn_implementation="eager"))


def patches(pixels):
    """[P, 3*PATCH*PATCH] of [1, 3, H, W], as `reshape_by_patch` orders them for the convolution."""
    return nn.functional.unfold(pixels, PATCH, stride=PATCH)[0].T


def inputs(tokenizer, prompt, images):
    """Ids [T] and the pixels of each tile."""
    first, *rest = prompt.split(MARK)
    tiles = []
    for number, (image, after) in enumerate(zip(images, rest, strict=True)):
        cut, grid = slices(image.convert("RGB"))
        tiles += [normalise(tile, [0.5] * 3, [0.5] * 3) for tile in cut]
        first += placeholder(number, grid) + after
    return tokenizer.encode(first).ids, tiles


def embed(model, tokenizer, ids, tiles):
    encoded = [model.vpm(tile) for tile in tiles]
    projected = torch.cat([model.resampler(x, size)[0] for x, size in encoded])
    embeds = model.llm.get_input_embeddings()(torch.tensor([ids])).clone()
    seen = torch.tensor(ids) == tokenizer.token_to_id("<unk>")
    embeds[0, seen] = projected
    return torch.cat([x[0] for x, _ in encoded]), projected, embeds


def trace(model, tokenizer, prompt, images):
    ids, tiles = inputs(tokenizer, prompt, images)
    encoded, projected, embeds = embed(model, tokenizer, ids, tiles)
    hidden, logits = run_llama(model.llm, embeds)
    unknown = tokenizer.token_to_id("<unk>")
    golden = {"pixel_values": torch.cat([patches(tile) for tile in tiles])}
    golden |= {"encode": encoded, "project": projected, "logits": logits}
    golden |= {"hidden.1": hidden[1], f"hidden.{len(hidden) - 1}": hidden[-1]}
    golden["input_ids"] = [-1 if i == unknown else i for i in ids]
    golden["greedy"], gap = greedy(model.llm, embeds)
    print([tuple(tile.shape[2:]) for tile in tiles], len(ids), "tokens")
    return golden, gap


def weights(model, seed):
    """As everywhere, rounded; the head hardly ever chooses a control token."""
    state = random_state(model, seed)
    state["llm.lm_head.weight"][PIECES:] *= 0.1
    state["resampler.query"] *= math.sqrt(WIDTH)
    state["resampler.attn.in_proj_weight"] *= 1.5
    bias = "resampler.attn.in_proj_bias"
    state[bias] = 0.2 * torch.from_numpy(
        np.random.default_rng([seed, 9]).standard_normal(3 * WIDTH).astype(np.float32)
    )
    return {name: value.bfloat16().float() for name, value in state.items()}


def main():
    folder = clean(HERE / "minicpmv")
    make_qwen2vl.CONTROL = CONTROL
    tokenizer = make_qwen2vl.make_tokenizer()
    model = MiniCpmV().eval()
    if "--search" in sys.argv:
        opened = {name: picture(*given) for name, given in PICTURES.items()}
        for seed in range(SEED, SEED + 100):
            load(model, weights(model, seed))
            faults = []
            for prompt, images in CASES.values():
                ids, tiles = inputs(tokenizer, prompt, [opened[i] for i in images])
                tokens, gap = greedy(model.llm, embed(model, tokenizer, ids, tiles)[2])
                faults.append(fault(tokens, gap, range(PIECES, VOCABULARY)))
                if faults[-1]:
                    break
            print(seed, faults)
            if not any(faults):
                return
    state = weights(model, SEED)
    load(model, state)
    save_picture_cases(
        folder,
        CASES,
        PICTURES,
        lambda prompt, images: trace(model, tokenizer, prompt, images),
        range(PIECES, VOCABULARY),
    )
    ids, tiles = inputs(tokenizer, CASES["wide"][0], [Image.open(folder / "wide.png")])

    def logits_of(changed):
        load(model, changed)
        return model.llm(inputs_embeds=embed(model, tokenizer, ids, tiles)[2], use_cache=False).logits[0]

    check_every_weight("minicpmv", state, logits_of, INERT)
    load(model, state)

    save_file(
        {name: value.bfloat16().contiguous() for name, value in state.items()},
        str(folder / "model.safetensors"),
        metadata={"format": "pt"},
    )
    # As published, what is only of the code's concern left out.
    dump(
        folder / "config.json",
        {
            "architectures": ["MiniCPMV"],
            "version": 2.6,
            **TEXT,
            "batch_vision_input": True,
            "bos_token_id": PIECES,
            "drop_vision_last_layer": False,
            "eos_token_id": PIECES + 2,
            "hidden_act": "silu",
            "image_size": RESOLUTION,
            "model_type": "minicpmv",
            "patch_size": PATCH,
            "query_num": QUERIES,
            "slice_config": {"max_slice_nums": MOST, "model_type": "minicpmv", "patch_size": PATCH},
            "slice_mode": True,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.40.0",
            "use_cache": True,
            "use_sliding_window": False,
            "vision_config": VISION,
        },
    )
    dump(
        folder / "preprocessor_config.json",
        {
            "im_end": "</image>",
            "im_id_end": "</image_id>",
            "im_id_start": "<image_id>",
            "im_start": "<image>",
            "image_feature_size": QUERIES,
            "image_processor_type": "MiniCPMVImageProcessor",
            "max_slice_nums": MOST,
            "norm_mean": [0.5] * 3,
            "norm_std": [0.5] * 3,
            "patch_size": PATCH,
            "processor_class": "MiniCPMVProcessor",
            "scale_resolution": RESOLUTION,
            "slice_end": "</slice>",
            "slice_mode": True,
            "slice_start": "<slice>",
            "unk": "<unk>",
            "use_image_id": True,
            "version": 2.6,
        },
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    dump(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "bos_token": "<|im_start|>",
            "chat_template": TEMPLATE,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "tokenizer_class": "MiniCPMVTokenizerFast",
            "unk_token": "<unk>",
        },
    )
    dump(folder / "generation_config.json", {"eos_token_id": [PIECES + 2, PIECES]})
    for path in folder.iterdir():
        path.chmod(0o644)


# As published with Qwen2.
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


if __name__ == "__main__":
    sys.exit(main())
