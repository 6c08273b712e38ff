"""Moondream checkpoints: overlapping tiles, a stitched map, a picture that sees itself whole: moondream/, and
moondream-ids/, whose prompts are written with control tokens as those since 2025-06 are.

transformers has no Moondream. The module here was written after the published implementation
(vikhyat/moondream, moondream/torch/{image_crops,vision,text,rope}.py, 2025-06) and bears its names;
pictures are resized as it does without pyvips, by Pillow. Numbers are float32 throughout (the original
rounds pixels to bfloat16).

Usage: python make_moondream.py
"""

import json
import math
import sys

from common import HERE, check_every_weight, clean, dump, picture, random_tensor, save_weights

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

SEED, NEWER_SEED = 7, 4
TILE, PATCH, MARGIN, MOST = 20, 4, 1, 12
GRID = TILE // PATCH
VISION = {
    "enc_dim": 18,
    "enc_patch_size": PATCH,
    "enc_n_layers": 2,
    "enc_ff_dim": 34,
    "enc_n_heads": 2,
    "proj_out_dim": 40,
    "crop_size": TILE,
    "in_channels": 3,
    "max_crops": MOST,
    "overlap_margin": MARGIN,
    "proj_inner_dim": 52,
}
TEXT = {
    "dim": 40,
    "ff_dim": 72,
    "n_layers": 2,
    "vocab_size": 608,
    "max_context": 2048,
    "n_heads": 2,
    "prefix_attn": 1 + GRID * GRID,
}
PIECES = 597  # ids of text; control tokens and rows without a token stand behind them
GREEDY = 32
LOGIT_ROWS = 4
NEAR_TIE = 1e-3
BOS, IMAGE = "<|endoftext|>", "<image>"
PICTURES = {"wide": (75, 40, 11), "tall": (30, 88, 12), "small": (34, 20, 13)}
CASES = {
    "small": "What does the sign say?",
    "wide": "How many 12 boats are there?",
    "tall": "Which is small?",
}
NEWER_CASES = {"small": "What does the sign say?", "wide": "Is 7 on it?"}
CONTROL = [f"<|md_reserved_{i}|>" for i in range(3)]
# A key bias adds the same number to every score of a softmax row; it is the middle of `attn.qkv.bias`,
# whose other parts matter.
INERT = ()


# ---------------------------------------------------------------- pictures


def tiling(height, width, window, most):
    """Rows and columns of tiles; image_crops.py, select_tiling."""
    if min(height, width) <= window:
        return 1, 1
    least = math.ceil(height / window), math.ceil(width / window)
    if least[0] * least[1] > most:
        ratio = math.sqrt(most / (least[0] * least[1]))
        return tuple(max(1, math.floor(n * ratio)) for n in least)
    rows = max(math.floor(math.sqrt(most * height / width)), least[0])
    columns = max(math.floor(math.sqrt(most * width / height)), least[1])
    if rows * columns > most:
        if columns > rows:
            columns = math.floor(most / rows)
        else:
            rows = math.floor(most / columns)
    return max(1, rows), max(1, columns)


def crops(image, tile=TILE, patch=PATCH, margin=MARGIN, most=MOST):
    """The whole picture and its tiles as bytes, and how many rows and columns of tiles there are."""
    image = image.convert("RGB")
    edges = 2 * margin * patch
    window = tile - edges
    rows, columns = tiling(image.height - edges, image.width - edges, window, most)
    stretched = image.resize((columns * window + edges, rows * window + edges), Image.Resampling.LANCZOS)
    cut = [image.resize((tile, tile), Image.Resampling.LANCZOS)]
    for row in range(rows):
        for column in range(columns):
            x, y = column * window, row * window
            cut.append(stretched.crop((x, y, x + tile, y + tile)))
    return np.stack([np.asarray(c) for c in cut]), (rows, columns)


def pixels(cut):
    x = torch.from_numpy(cut.transpose(0, 3, 1, 2).copy()).float()
    return (x / 255.0 - 0.5) / 0.5


def stitch(features, rows, columns):
    """[rows*columns, GRID, GRID, C] to one map: inner margins of a tile are its neighbour's."""
    lines = []
    for row in range(rows):
        line = []
        for column in range(columns):
            x = features[row * columns + column]
            top, bottom = (0 if row == 0 else MARGIN), (GRID if row == rows - 1 else GRID - MARGIN)
            left = 0 if column == 0 else MARGIN
            right = GRID if column == columns - 1 else GRID - MARGIN
            line.append(x[top:bottom, left:right])
        lines.append(torch.cat(line, dim=1))
    return torch.cat(lines, dim=0)


# ---------------------------------------------------------------- model


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)


class Mlp(nn.Module):
    def __init__(self, width, inner, out):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, out)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class VisionBlock(nn.Module):
    def __init__(self):
        super().__init__()
        width = VISION["enc_dim"]
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = Attention(width), Mlp(width, VISION["enc_ff_dim"], width)

    def forward(self, x):
        heads = VISION["enc_n_heads"]
        q, k, v = (
            t.unflatten(-1, (heads, -1)).transpose(1, 2)
            for t in self.attn.qkv(self.ln1(x)).chunk(3, dim=-1)
        )
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        x = x + self.attn.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.ln2(x))


class Vision(nn.Module):
    def __init__(self):
        super().__init__()
        width = VISION["enc_dim"]
        self.patch_emb = nn.Linear(3 * PATCH * PATCH, width)
        self.pos_emb = nn.Parameter(torch.zeros(1, GRID * GRID, width))
        self.blocks = nn.ModuleList(VisionBlock() for _ in range(VISION["enc_n_layers"]))
        self.post_ln = nn.LayerNorm(width)
        self.proj_mlp = Mlp(2 * width, VISION["proj_inner_dim"], VISION["proj_out_dim"])

    def encode(self, tiles):
        x = tiles.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)  # [N, 3, GRID, GRID, PATCH, PATCH]
        x = self.patch_emb(x.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)) + self.pos_emb
        for block in self.blocks:
            x = block(x)
        return self.post_ln(x)

    def project(self, features, rows, columns):
        whole, local = features[0], features[1:].unflatten(1, (GRID, GRID))
        pooled = F.adaptive_avg_pool2d(stitch(local, rows, columns).permute(2, 0, 1), (GRID, GRID))
        pooled = pooled.permute(1, 2, 0).flatten(0, 1)
        return self.proj_mlp(torch.cat([whole, pooled], dim=-1))


class TextBlock(nn.Module):
    def __init__(self):
        super().__init__()
        width = TEXT["dim"]
        self.ln = nn.LayerNorm(width)
        self.attn, self.mlp = Attention(width), Mlp(width, TEXT["ff_dim"], width)

    def forward(self, x, turn, mask):
        heads = TEXT["n_heads"]
        h = self.ln(x)
        q, k, v = (
            t.unflatten(-1, (heads, -1)).transpose(0, 1) for t in self.attn.qkv(h).chunk(3, dim=-1)
        )
        scores = turn(q) @ turn(k).transpose(-1, -2) / math.sqrt(q.shape[-1])
        attended = scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v
        return x + self.attn.proj(attended.transpose(0, 1).flatten(1)) + self.mlp(h)


def rotary(tokens, head_dim):
    """Half of a head turns; pairs lie half of that apart and are written side by side."""
    turning = head_dim // 2
    frequency = 10000.0 ** (-torch.arange(0, turning, 2).double() / turning)
    angle = torch.arange(tokens).double()[:, None] * frequency
    cos, sin = angle.cos().float(), angle.sin().float()

    def turn(x):
        a, b, rest = x.split([turning // 2, turning // 2, head_dim - turning], dim=-1)
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
        return torch.cat([turned, rest], dim=-1)

    return turn


class Text(nn.Module):
    def __init__(self):
        super().__init__()
        width = TEXT["dim"]
        self.wte = nn.Parameter(torch.zeros(TEXT["vocab_size"], width))
        self.blocks = nn.ModuleList(TextBlock() for _ in range(TEXT["n_layers"]))
        self.post_ln = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, TEXT["vocab_size"])

    def forward(self, x):
        tokens, prefix = len(x), TEXT["prefix_attn"]
        mask = torch.ones(tokens, tokens, dtype=torch.bool).tril()
        mask[:prefix, :prefix] = True
        turn = rotary(tokens, TEXT["dim"] // TEXT["n_heads"])
        hidden = [x]
        for block in self.blocks:
            hidden.append(block(hidden[-1], turn, mask))
        return hidden, self.lm_head(self.post_ln(hidden[-1]))


class Moondream(nn.Module):
    """`region`, which points at things, is left out; the published checkpoints hold it."""

    def __init__(self):
        super().__init__()
        self.vision, self.text = Vision(), Text()


def words(tokenizer, question):
    """BOS, the picture, and the query template of the code's defaults until 2025-05, as texts."""
    query = tokenizer.encode("\n\nQuestion: " + question + "\n\nAnswer:").ids
    apart = [tokenizer.encode(t).ids for t in ("\n\nQuestion:", " " + question, "\n\nAnswer:")]
    assert query == sum(apart, []), "the template's ids are those of its texts"
    ids = [tokenizer.token_to_id(BOS)] + [-1] * (GRID * GRID) + query
    return ids, f"{BOS}{IMAGE}\n\nQuestion: {question}\n\nAnswer:"


def control_tokens(tokenizer, question):
    """That since 2025-06: [1, "query", 2] in front of the question and [3] behind it."""
    query, answer = query_template(tokenizer).values()
    ids = [0] + [-1] * (GRID * GRID) + query + tokenizer.encode(question).ids + answer
    return ids, f"{BOS}{IMAGE}{CONTROL[0]}query{CONTROL[1]}{question}{CONTROL[2]}"


def query_template(tokenizer):
    return {"prefix": [1, tokenizer.token_to_id("query"), 2], "suffix": [3]}


def newer_tokenizer():
    """Control tokens in front of a small byte-level vocabulary, as in moondream/starmie-v1."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(text, special=True, normalized=False) for text in (BOS, *CONTROL)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    text = (HERE / "training_text.txt").read_text(encoding="utf-8")
    tokenizer.train_from_iterator([text, "query\n" * 999], trainer)
    assert tokenizer.encode("query").ids == [tokenizer.token_to_id("query")]
    return tokenizer


def embed(model, ids, visual):
    table = model.text.wte[torch.tensor(ids).clamp(min=0)]
    table[1 : 1 + len(visual)] = visual
    return table


def trace(model, ids, cut, size):
    tiles = pixels(cut)
    features = model.vision.encode(tiles)
    project = model.vision.project(features, *size)
    if size == (1, 1):  # the only tile is the whole picture again
        assert torch.equal(tiles[0], tiles[1]), "one tile is the picture"
        tiles, features = tiles[:1], features[:1]
    hidden, logits = model.text(embed(model, ids, project))
    golden = {"pixel_values": tiles, "encode": features, "project": project[None]}
    golden |= {f"hidden.{i}": h for i, h in enumerate(hidden)}
    golden |= {"logits": logits[-LOGIT_ROWS:], "input_ids": ids}
    return golden


def greedy(model, ids, visual):
    tokens, gap = [], float("inf")
    for _ in range(GREEDY):
        row = model.text(embed(model, ids + tokens, visual))[1][-1]
        best = torch.topk(row, 2)
        gap = min(gap, float((best.values[0] - best.values[1]) / row.abs().max()))
        tokens.append(int(best.indices[0]))
    return tokens, gap


def weights(model, seed, said):
    """`said` are the ids that may be said."""
    state = {}
    for name, p in model.named_parameters():
        if name.endswith("wte"):
            state[name] = random_tensor("embed_tokens", tuple(p.shape), seed)
        elif name.endswith("pos_emb"):
            state[name] = random_tensor("position_embedding", tuple(p.shape), seed)
        else:
            state[name] = random_tensor(name, tuple(p.shape), seed)
    # Queries and keys that tell tokens apart; a head that hardly ever ends the text.
    for name in state:
        if name.endswith("attn.qkv.weight"):
            state[name][: 2 * len(state[name]) // 3] *= 1.5
    for kind in ("weight", "bias"):
        head = state[f"text.lm_head.{kind}"]
        for rows in (head[: said.start], head[said.stop :]):
            rows *= 0.1
    return state


def make(name, seed, tokenizer, pieces, prompt, cases, own):
    """A folder. `pieces` are the ids of text, `prompt` gives a question's ids and its raw text, `own` is the
    configuration's `tokenizer`."""
    folder = clean(HERE / name)
    model = Moondream().eval()
    state = weights(model, seed, pieces)
    model.load_state_dict(state)
    listed, opened = [], {}
    for case in cases:
        width, height, picture_seed = PICTURES[case]
        picture(width, height, picture_seed).save(folder / f"{case}.png", optimize=True)
        opened[case] = Image.open(folder / f"{case}.png")
    for case, question in cases.items():
        ids, raw = prompt(tokenizer, question)
        cut, size = crops(opened[case])
        golden = trace(model, ids, cut, size)
        golden["greedy"], gap = greedy(model, ids, golden["project"][0])
        print(f"{case}: tiles {size}, greedy {golden['greedy']}, smallest gap {gap:.4f}")
        assert gap > NEAR_TIE and len(set(golden["greedy"])) >= 10, "choose another seed"
        assert all(t in pieces for t in golden["greedy"]), "choose another seed"
        tensors = {
            k: torch.as_tensor(v).to(torch.int32 if k in ("input_ids", "greedy") else torch.float32)
            for k, v in golden.items()
        }
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / f"golden.{case}.safetensors")
        listed.append({"name": case, "prompt": raw, "images": [f"{case}.png"]})
        print(case, {k: tuple(v.shape) for k, v in tensors.items()})
    dump(folder / "prompt.json", {"cases": listed})

    case = "wide"
    cut, size = crops(opened[case])
    ids, _ = prompt(tokenizer, cases[case])

    def logits_of(changed):
        model.load_state_dict(changed)
        visual = model.vision.project(model.vision.encode(pixels(cut)), *size)
        return model.text(embed(model, ids, visual))[1]

    check_every_weight(name, state, logits_of, INERT)
    save_weights(folder / "model.safetensors", {f"model.{k}": v for k, v in state.items()})
    config = {
        "architectures": ["HfMoondream"],
        "auto_map": {
            "AutoConfig": "hf_moondream.HfConfig",
            "AutoModelForCausalLM": "hf_moondream.HfMoondream",
        },
        "config": {"text": TEXT, "vision": VISION, "tokenizer": own},
        "model_type": "moondream1",
        "torch_dtype": "float32",
    }
    dump(folder / "config.json", config)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": BOS, "eos_token": BOS, "unk_token": BOS, "tokenizer_class": "CodeGenTokenizer"}
    dump(folder / "tokenizer_config.json", {"add_prefix_space": False, **special})
    end = tokenizer.token_to_id(BOS)
    dump(folder / "generation_config.json", {"bos_token_id": end, "eos_token_id": end})
    for path in folder.iterdir():
        path.chmod(0o644)


def main():
    tokenizer = Tokenizer.from_file(str(HERE / "tokenizers/bbpe/tokenizer.json"))
    end = tokenizer.token_to_id(BOS)
    make("moondream", SEED, tokenizer, range(PIECES), words, CASES, {"bos_id": end, "eos_id": end})

    tokenizer = newer_tokenizer()
    VISION["enc_n_layers"] = TEXT["n_layers"] = 1
    TEXT["vocab_size"] = tokenizer.get_vocab_size() + 8
    pieces = range(1 + len(CONTROL), tokenizer.get_vocab_size())
    own = {"bos_id": 0, "eos_id": 0, "templates": {"query": query_template(tokenizer)}}
    make("moondream-ids", NEWER_SEED, tokenizer, pieces, control_tokens, NEWER_CASES, own)


if __name__ == "__main__":
    sys.exit(main())
