"""Which visual tokens VisionZip and PruMerge keep: tests/golden/reduction/.

For small checkpoints of this folder: attention weights and keys of the block whose output is the features, as transformers
computes them, and the two methods over the golden projected tokens, written in torch after the published code
(dvlab-research/VisionZip `visionzip/clip_encoder.py`, 42Shawn/LLaVA-PruMerge `llava/model/multimodal_encoder/clip_encoder.py`).
Margay's own choices are kept: merging behind the projector, no row of the class token, PruMerge's tokens in the picture's order
and its attention in the block of the features. Where a token comes from a square of patches, attention and keys are summed
over it.

Each file holds `<method>.<keep>`, [keep, E], and `prumerge.auto`.

Usage: python make_reduction.py
"""

import json

from common import HERE, torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

OUT = HERE / "reduction"
# Folder, picture, hidden state that is the features.
CASES = [("llava", "wide", -2), ("llava", "tall", -2), ("siglip", "wide", -1), ("mobilevlm-v2", "wide", -2)]
KEEP = [2, 5, 8]


def tower(folder):
    config = json.loads((folder / "config.json").read_text())["vision_config"]
    clip = config["model_type"] == "clip_vision_model"
    kind = (CLIPVisionConfig, CLIPVisionModel) if clip else (SiglipVisionConfig, SiglipVisionModel)
    model = kind[1](kind[0](**config, attn_implementation="eager")).eval()
    inner = next(iter(model.state_dict())).startswith("vision_model.")
    state = {}
    for name, value in load_file(folder / "model.safetensors").items():
        for mark in ("vision_model.", "vision_tower."):
            if mark in name:
                rest = name.rsplit(mark, 1)[1]
                state["vision_model." * inner + rest] = value
                break
    missing, _ = model.load_state_dict(state, strict=False)
    assert not [m for m in missing if "position_ids" not in m], missing
    return model, clip


def looked_at(folder, picture, select):
    model, clip = tower(folder)
    golden = load_file(folder / f"golden.{picture}.safetensors")
    held = {}
    encoder = [m for name, m in model.named_modules() if name.endswith("encoder.layers")][0]
    block = len(encoder) + select  # The block whose output is that hidden state.
    attention = encoder[block].self_attn
    attention.q_proj.register_forward_hook(lambda _m, _i, out: held.update(q=out[0]))
    attention.k_proj.register_forward_hook(lambda _m, _i, out: held.update(k=out[0]))
    out = model(golden["pixel_values"][:1], output_attentions=True, output_hidden_states=True)
    features = out.hidden_states[select][0, int(clip) :]
    # The reference's own check that this is the right block.
    assert torch.allclose(features, golden["encode"][0], atol=1e-4), (features - golden["encode"][0]).abs().max()
    weights = out.attentions[block][0]  # [H, N, N]
    q, k = held["q"], held["k"]
    whole = torch.softmax(q @ k.T * q.shape[-1] ** -0.5, -1)
    heads = weights.shape[0]
    split = k.reshape(len(k), heads, -1).mean(1)  # raw_key_states.mean(1)
    if clip:
        by_head, whole = weights[:, 0, 1:].sum(0), whole[0, 1:]
        split, k = split[1:], k[1:]
    else:
        by_head, whole = weights.mean(1).sum(0), whole.mean(0)
    project = golden["project"][0]
    grid = round(len(k) ** 0.5)
    side = grid // round(len(project) ** 0.5)

    def pooled(x):
        x = x.reshape(grid, grid, -1).unfold(0, side, side).unfold(1, side, side).sum((-1, -2))
        return x.reshape(len(project), -1)

    return project, pooled(by_head)[:, 0], pooled(split), pooled(whole)[:, 0], pooled(k)


def visionzip(x, attention, metric, keep):
    dominant = -(-keep * 54 // 64)
    contextual = keep - dominant
    top = torch.zeros(len(x), dtype=torch.bool)
    top[attention.topk(dominant).indices] = True
    kept, rest, metric = x[top], x[~top], metric[~top]
    metric = metric / metric.norm(dim=-1, keepdim=True)
    if contextual == 0:
        return kept
    step = max(1, len(rest) // contextual)
    targets = torch.arange(0, len(rest), step)[:contextual]
    others = ~torch.isin(torch.arange(len(rest)), targets)
    likest = (metric[others] @ metric[targets].T).argmax(1)
    one_hot = torch.zeros(int(others.sum()), contextual).scatter_(1, likest[:, None], 1)
    counts = one_hot.sum(0).clamp(min=1)[:, None]
    merged = x[~top][targets] + one_hot.T @ rest[others] / counts
    return torch.cat([kept, merged])


def prumerge(x, attention, keys, keep):
    idx = attention.topk(keep - 1).indices.sort().values
    keys = torch.nn.functional.normalize(keys, p=2, dim=-1)
    rows = []
    for i in idx.tolist():
        others = [j for j in range(len(x)) if j != i]
        near = (keys[others] @ keys[i]).topk(min(32, len(others))).indices
        near = torch.tensor(others)[near]
        rows.append(x[i] + (attention[near, None] * x[near]).sum(0))
    left = torch.ones(len(x), dtype=torch.bool)
    left[idx] = False
    rows.append((attention[left, None] * x[left]).sum(0))
    return torch.stack(rows)


def main():
    OUT.mkdir(exist_ok=True)
    for name, picture, select in CASES:
        x, by_head, split, whole, keys = looked_at(HERE / name, picture, select)
        out = {}
        for keep in KEEP:
            out[f"visionzip.{keep}"] = visionzip(x, by_head, split, keep)
            out[f"prumerge.{keep}"] = prumerge(x, whole, keys, keep)
        quartiles = torch.quantile(whole.double(), torch.tensor([0.25, 0.75]).double())
        bound = quartiles[1] + 1.5 * (quartiles[1] - quartiles[0])
        outliers = int((whole.double() > bound).sum())
        out["prumerge.auto"] = prumerge(x, whole, keys, outliers + 1)
        print(name, picture, len(x), outliers + 1)
        save_file({k: v.contiguous() for k, v in out.items()}, OUT / f"{name}.{picture}.safetensors")


if __name__ == "__main__":
    main()
