"""margay-nano: CLIP-style ViT, LDPv2 projector, LLaMA decoder. Parameter names are those of the published checkpoints.

Shapes: B pictures, P patches, V visual tokens, T text tokens, E decoder width, C vision width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from scene import CELLS, CODE, CODES, GRID, GROUP, LETTERS, LONGEST, NAMES, PATCH, SHAPES, SIDE, SIZES

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass
class Config:
    vocab: int = 768
    width: int = 192
    layers: int = 5
    heads: int = 6
    ffn: int = 512
    rope_theta: float = 10000.0
    eps: float = 1e-5
    context: int = 1024
    v_width: int = 192
    v_layers: int = 4  # trained; the exported file carries one more, never used
    v_heads: int = 6
    v_ffn: int = 768


def container(**children) -> nn.Module:
    out = nn.Module()
    for name, child in children.items():
        out.add_module(name, child)
    return out


class VisionBlock(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        w = c.v_width
        self.heads = c.v_heads
        self.layer_norm1 = nn.LayerNorm(w, eps=1e-5)
        self.self_attn = container(q_proj=nn.Linear(w, w), k_proj=nn.Linear(w, w), v_proj=nn.Linear(w, w), out_proj=nn.Linear(w, w))
        self.layer_norm2 = nn.LayerNorm(w, eps=1e-5)
        self.mlp = container(fc1=nn.Linear(w, c.v_ffn), fc2=nn.Linear(c.v_ffn, w))

    def forward(self, x):  # [B, 1 + P, C]
        a, h = self.self_attn, self.layer_norm1(x)
        q, k, v = (p(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (a.q_proj, a.k_proj, a.v_proj))
        x = x + a.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        h = self.mlp.fc1(self.layer_norm2(x))
        return x + self.mlp.fc2(h * torch.sigmoid(1.702 * h))  # quick_gelu


class Embeddings(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(c.v_width) * 0.02)
        self.patch_embedding = nn.Conv2d(3, c.v_width, PATCH, PATCH, bias=False)
        self.position_embedding = nn.Embedding(GRID * GRID + 1, c.v_width)

    def forward(self, pixels):
        x = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # [B, P, C]
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1)
        return x + self.position_embedding.weight


class Vision(nn.Module):
    """`features` equals the published `hidden_states[-2]` without the class token, once the spare layer is appended."""

    def __init__(self, c: Config):
        super().__init__()
        self.embeddings = Embeddings(c)
        self.pre_layrnorm = nn.LayerNorm(c.v_width, eps=1e-5)
        self.encoder = container(layers=nn.ModuleList(VisionBlock(c) for _ in range(c.v_layers)))

    def forward(self, pixels):  # [B, 3, SIDE, SIDE] -> [B, P, C]
        x = self.pre_layrnorm(self.embeddings(pixels))
        for layer in self.encoder.layers:
            x = layer(x)
        return x[:, 1:]


class Projector(nn.Module):
    """LDPv2."""

    def __init__(self, c: Config):
        super().__init__()
        self.mlp = container(mlp=nn.Sequential(nn.Linear(c.v_width, c.width), nn.GELU(), nn.Linear(c.width, c.width)))
        self.peg = container(peg=nn.Sequential(nn.Conv2d(c.width, c.width, 3, padding=1, groups=c.width)))

    def forward(self, x):  # [B, P, C] -> [B, V, E]
        x = self.mlp.mlp(x).transpose(1, 2).unflatten(2, (GRID, GRID))
        x = F.avg_pool2d(x, 2)
        return (self.peg.peg(x) + x).flatten(2).transpose(1, 2)


class RMSNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


def rope_table(c: Config, positions):  # [B, T] -> cos, sin [B, 1, T, D]
    d = c.width // c.heads
    freq = c.rope_theta ** (-torch.arange(0, d, 2, device=positions.device, dtype=torch.float32) / d)
    angle = positions[:, None, :, None].float() * torch.cat([freq, freq])
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


class Block(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        w = c.width
        self.heads = c.heads
        self.input_layernorm = RMSNorm(w, c.eps)
        self.self_attn = container(**{n: nn.Linear(w, w, bias=False) for n in ("q_proj", "k_proj", "v_proj", "o_proj")})
        self.post_attention_layernorm = RMSNorm(w, c.eps)
        self.mlp = container(
            gate_proj=nn.Linear(w, c.ffn, bias=False), up_proj=nn.Linear(w, c.ffn, bias=False), down_proj=nn.Linear(c.ffn, w, bias=False)
        )

    def forward(self, x, cos, sin, mask):  # [B, T, E]
        a, h = self.self_attn, self.input_layernorm(x)
        q, k, v = (p(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (a.q_proj, a.k_proj, a.v_proj))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        x = x + a.o_proj(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))
        h = self.post_attention_layernorm(x)
        return x + self.mlp.down_proj(F.silu(self.mlp.gate_proj(h)) * self.mlp.up_proj(h))


class Nano(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.config = c
        self.model = container(
            embed_tokens=nn.Embedding(c.vocab, c.width),
            layers=nn.ModuleList(Block(c) for _ in range(c.layers)),
            norm=RMSNorm(c.width, c.eps),
            vision_tower=container(vision_tower=container(vision_model=Vision(c))),
            mm_projector=Projector(c),
        )
        self.lm_head = nn.Linear(c.width, c.vocab, bias=False)
        self.apply(self._init)
        nn.init.normal_(self.model.embed_tokens.weight, std=0.4)
        for layer in self.model.layers:
            for p in (layer.self_attn.o_proj, layer.mlp.down_proj):
                nn.init.normal_(p.weight, std=0.02 / (2 * c.layers) ** 0.5)

    @staticmethod
    def _init(m):
        if isinstance(m, nn.Linear):
            nn.init.normal_(m.weight, std=0.02 if m.bias is None else m.in_features**-0.5)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
        elif isinstance(m, nn.Embedding):
            nn.init.normal_(m.weight, std=0.02)

    @property
    def vision(self) -> Vision:
        return self.model.vision_tower.vision_tower.vision_model

    def see(self, pixels):
        """uint8 [B, SIDE, SIDE, 3] -> patch features [B, P, C] and visual tokens [B, V, E]."""
        mean, std = (torch.tensor(v, device=pixels.device) * 255 for v in (MEAN, STD))
        x = ((pixels.float() - mean) / std).permute(0, 3, 1, 2)
        features = self.vision(x)
        return features, self.model.mm_projector(features)

    def decode(self, ids, visual, gap: int, positions, mask, at=None, tap=None):
        """Logits; `visual` replaces ids[:, gap : gap + V]. `mask` is True where attention is allowed [B, 1, T, T].
        `at` (flat indices into B * T) limits the logits to where they are needed; the outputs of the blocks TAPS
        [B, T, E] are appended to `tap`."""
        x = self.model.embed_tokens(ids)
        if visual is not None:
            x = torch.cat([x[:, :gap], visual.to(x.dtype), x[:, gap + visual.shape[1] :]], 1)
        cos, sin = rope_table(self.config, positions)
        for i, layer in enumerate(self.model.layers):
            x = layer(x, cos, sin, mask)
            if tap is not None and i in TAPS:
                tap.append(x)
        if at is not None:
            x = x.flatten(0, 1)[at]
        return self.lm_head(self.model.norm(x))


def codebook(width: int, norm: float = 4.0):
    """Fixed orthogonal directions, one a code [len(CODES), E]. Row, column and offsets are kept quieter."""
    g = torch.Generator().manual_seed(1234)
    q, _ = torch.linalg.qr(torch.randn(width, width, generator=g, dtype=torch.float64))
    return q[: len(CODES)].float() * norm


@torch.no_grad()
def name_words(model: Nano, tok, groups=("shape", "colour", "size", "left", "right")) -> None:
    """Words start at the directions of what they name, in the embedding and in the head: what a visual token says
    then only has to be carried to the answer. Without it reading had not begun after 1000 steps (README.md)."""
    book = codebook(model.config.width, 1.0)
    direction = {}
    for i, (group, name) in enumerate(CODES):
        if group in groups:
            for piece in {"left": (name, f"▁{name}"), "right": (name, f"▁{name}")}.get(group, (f"▁{name}",)):
                direction[piece] = direction.get(piece, 0) + book[i]
    for table in (model.model.embed_tokens.weight, model.lm_head.weight):
        norm = table.norm(dim=-1).median()
        for piece, d in direction.items():
            i = tok.sp.piece_to_id(piece)
            assert i > 2, piece
            table[i] = 0.9 * norm * d.to(table.device) / d.norm() + 0.3 * table[i]


# Blocks after which a phrase should have found what it points at, and the last word of a question the evidence.
TAPS = (2, 3)
EVIDENCE = 5  # numbers (rows.evidence)

# Of the codes of which a cell holds one or none, the weight in the loss.
WEIGHT = dict(shape=1, colour=1, size=0.7, signcolour=0.3, left=1.5, right=1.5, lplace=0.4, rplace=0.4, rank=0.5)


class Aux(nn.Module):
    """Training only: what the patches and the projected tokens say about the scene."""

    def __init__(self, c: Config):
        super().__init__()
        self.patch = nn.Linear(c.v_width, 3 + len(SHAPES) + len(NAMES) + len(LETTERS))
        self.point = nn.Sequential(RMSNorm(c.width, c.eps), nn.Linear(c.width, len(SHAPES) + len(NAMES) + len(SIZES) + 2))
        self.point_count = nn.Sequential(RMSNorm(c.width, c.eps), nn.Linear(c.width, 1))
        self.point_letter = nn.Sequential(RMSNorm(c.width, c.eps), nn.Linear(c.width, LONGEST + 1))
        self.point_numbers = nn.Sequential(RMSNorm(c.width, c.eps), nn.Linear(c.width, EVIDENCE))
        self.register_buffer("book", codebook(c.width))

    def read(self, tokens):
        """Codes that the tokens hold: [B, V, E] -> [B, V, codes]."""
        return tokens @ self.book.T / self.book[0].square().sum()

    def pointed(self, hidden, at, to):
        """At the end of a phrase ("the red heart") the decoder should know the thing: its shape, colour, size, place.
        `at` are flat indices into hidden [B, T, E], `to` the facts [N, FACTS]. Comparing two things is then easy."""
        said = self.point(hidden.flatten(0, 1)[at].float())
        shape, colour, size, place = said.split([len(SHAPES), len(NAMES), len(SIZES), 2], -1)
        names = sum(F.cross_entropy(s, to[:, i].long()) for i, s in enumerate((shape, colour, size)))
        return names + 2 * F.smooth_l1_loss(place, to[:, 3:])

    def counted(self, hidden, at, counts):
        """At the end of "red hearts" the decoder should know how many there are [N]."""
        return F.smooth_l1_loss(self.point_count(hidden.flatten(0, 1)[at].float())[:, 0], counts, beta=0.5)

    def spelling(self, hidden, at, number):
        """Within a word the decoder should know which letter comes next [N]: the tokens of a sign say theirs."""
        return F.cross_entropy(self.point_letter(hidden.flatten(0, 1)[at].float()), number)

    def evident(self, hidden, at, numbers):
        """Before an answer the decoder should hold the numbers that it follows from (rows.evidence) [N, EVIDENCE]: a
        difference is learned at once where it is asked for as one, and not for long from "left" or "above" alone."""
        said = self.point_numbers(hidden.flatten(0, 1)[at].float())
        known = ~numbers.isnan()
        return F.smooth_l1_loss(said[known], numbers[known], beta=0.5)

    def loss(self, features, tokens, codes, labels):
        """Cross entropy of each code group against "none" at 0.5, plus the squared distance to the exact code."""
        said, parts = self.read(tokens), {}
        for group, weight in WEIGHT.items():
            a, b = GROUP[group]
            logits = torch.cat([8 * said[..., a:b], torch.full_like(said[..., :1], 4.0)], -1)
            truth = codes[..., a:b]
            target = torch.where(truth.sum(-1) > 0, truth.argmax(-1), b - a)
            parts[group] = weight * balanced_ce(logits, target, b - a)
        for group in ("row", "col"):  # slow to appear without a loss of their own
            a, b = GROUP[group]
            parts[group] = 0.4 * F.cross_entropy(8 * said[..., a:b].flatten(0, 1), codes[..., a:b].argmax(-1).flatten())
        a = CODE["x", ""]
        thing = codes[..., CODE["occupied", ""]] > 0
        if thing.any():
            parts["place"] = 2 * F.smooth_l1_loss(said[thing][:, a : a + 2], codes[thing][:, a : a + 2])
        norm = self.book[0].square().sum()
        error = (tokens - codes @ self.book).square().sum(-1) / norm
        busy = (codes[..., CODE["occupied", ""]] + codes[..., CODE["sign", ""]] > 0).float()
        parts["code"] = (error * (0.3 + busy)).sum() / (0.3 + busy).sum()
        sizes = [len(SHAPES) + 1, len(NAMES) + 1, len(LETTERS) + 1]
        for name, logits, target, weight in zip(
            ("p_shape", "p_colour", "p_letter"), self.patch(features).split(sizes, -1), labels.unbind(1), (0.5, 0.3, 1)
        ):
            parts[name] = weight * balanced_ce(logits, target, 0)
        return parts

    @torch.no_grad()
    def accuracy(self, tokens, codes) -> dict:
        """Of the cells that hold something, the share read correctly; `extra` is the share of empty cells filled."""
        said, out = self.read(tokens), {}
        for group in WEIGHT:
            a, b = GROUP[group]
            full = codes[..., a:b].sum(-1) > 0
            right = (said[..., a:b].argmax(-1) == codes[..., a:b].argmax(-1)) & (said[..., a:b].amax(-1) > 0.5)
            out[group] = (right[full].sum().item(), full.sum().item())
            if group in ("shape", "left"):
                out[group + "_extra"] = ((said[..., a:b].amax(-1) > 0.5)[~full].sum().item(), (~full).sum().item())
        return out


def balanced_ce(logits, target, none: int):
    """Cross entropy, half of it from the cells that hold something and half from the others."""
    ce = F.cross_entropy(logits.flatten(0, -2).float(), target.flatten(), reduction="none")
    full = (target.flatten() != none).float()
    return 0.75 * (ce * full).sum() / full.sum().clamp(min=1) + 0.25 * (ce * (1 - full)).sum() / (1 - full).sum().clamp(min=1)


def n_visual() -> int:
    return CELLS * CELLS


assert SIDE == GRID * PATCH
