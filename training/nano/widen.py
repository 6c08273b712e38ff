"""Writes a nano folder 256 channels wide instead of 192: the same answers, in a shape that super-blocks of 256 divide.

    python widen.py weights wide
    margay convert wide -o wide.gguf --type f16

So formats of 2, 3 and 6 bits, which know only rows of 256, can be measured on a model whose answers mean something.

* Decoder and projector: the new channels are zero. A norm of 256 sees three quarters of the mean square, so that its
  weights are multiplied by sqrt(3/4) and epsilon is 3/4 of what it was. Two more heads have keys and values of zero.
* Tower: a layer norm takes a mean away too, which zeros would pull down. The new channels are the mean of the old ones
  instead: a linear layer that writes to the stream gets the mean of its rows as new rows, and no layer reads them.
* The norm before the first block writes to the stream itself, and the mean of what it writes is not what a norm can
  say. It is linear in its input but for the common factor, though: the new channels of the embedding are that mean over
  `AMPLIFY`, half of them with the sign turned, and the norm's weights multiply it back. Its variance is then larger by
  less than 1 part in 1000, which is all that is not exact.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

WIDTH, WIDE = 192, 256
SHARE = WIDTH / WIDE
AMPLIFY = 8.0
TOWER = "model.vision_tower.vision_tower.vision_model."


def pad(x: np.ndarray, axis: int, to: int = WIDE) -> np.ndarray:
    """Zeros behind the last of 192."""
    if x.shape[axis] != WIDTH:
        return x
    more = [(0, 0)] * x.ndim
    more[axis] = (0, to - WIDTH)
    return np.pad(x, more)


def with_means(x: np.ndarray) -> np.ndarray:
    """Rows behind the last, each the mean of all."""
    return np.concatenate([x, np.repeat(x.mean(0, keepdims=True), WIDE - WIDTH, 0)])


def norm_weight(x: np.ndarray) -> np.ndarray:
    """Of a norm over 256: what it multiplies with, any number for the new channels."""
    return np.concatenate([x, np.ones(WIDE - WIDTH, x.dtype)]) * np.float32(np.sqrt(SHARE))


def embedded(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Rows `[192, ...]` of the embedding with those for the norm before the first block behind them."""
    mean = x.mean(0, keepdims=True)
    wanted = (weight.reshape(-1, *[1] * (x.ndim - 1)) * (x - mean)).mean(0, keepdims=True) / AMPLIFY
    half = (WIDE - WIDTH) // 2
    return np.concatenate([x, np.repeat(mean + wanted, half, 0), np.repeat(mean - wanted, half, 0)])


def tower(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    first, out = tensors["pre_layrnorm.weight"], {}
    for name, x in tensors.items():
        if name == "embeddings.class_embedding" or "patch_embedding" in name:
            out[name] = embedded(x, first)
        elif "position_embedding" in name:
            out[name] = embedded(x.T, first).T
        elif name == "pre_layrnorm.weight":
            half = np.full((WIDE - WIDTH) // 2, AMPLIFY, x.dtype)
            out[name] = np.concatenate([x, half, -half]) * np.float32(np.sqrt(SHARE))
        elif name == "pre_layrnorm.bias":
            out[name] = with_means(x)
        elif "norm" in name:
            out[name] = norm_weight(x) if name.endswith("weight") else pad(x, 0)
        elif "out_proj" in name or "fc2" in name:
            out[name] = with_means(x) if x.ndim == 1 else with_means(pad(x, 1))
        else:
            out[name] = pad(x, 0) if x.ndim == 1 else pad(pad(x, 0), 1)
    return out


def widen(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    tensors = {name: x.astype(np.float32) for name, x in tensors.items()}
    out = tower({name.removeprefix(TOWER): x for name, x in tensors.items() if name.startswith(TOWER)})
    out = {TOWER + name: x for name, x in out.items()}
    for name, x in tensors.items():
        if name in out:
            continue
        if "norm" in name:
            out[name] = norm_weight(x)
        elif "peg" in name or x.ndim == 1:
            out[name] = pad(x, 0)
        else:
            out[name] = pad(pad(x, 0), 1)
    # Numbers that were not touched are float16 as before; means and norms are not, and stay float32.
    narrow = lambda x: x.astype(np.float16) if np.array_equal(x.astype(np.float16).astype(np.float32), x) else x  # noqa: E731
    return {name: np.ascontiguousarray(narrow(x)) for name, x in out.items()}


def config(old: dict) -> dict:
    new, vision = dict(old), dict(old["vision_config"])
    heads = WIDE // (WIDTH // old["num_attention_heads"])
    new.update(hidden_size=WIDE, mm_hidden_size=WIDE, num_attention_heads=heads, num_key_value_heads=heads)
    new.update(rms_norm_eps=old["rms_norm_eps"] * SHARE, _name_or_path="margay-nano-wide")
    heads = WIDE // (WIDTH // vision["num_attention_heads"])
    vision.update(hidden_size=WIDE, projection_dim=WIDE, num_attention_heads=heads)
    vision.update(layer_norm_eps=vision["layer_norm_eps"] * SHARE)
    return dict(new, vision_config=vision)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path, help="as export.py writes it")
    p.add_argument("out", type=Path)
    a = p.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    for file in a.folder.iterdir():
        if file.name not in ("model.safetensors", "config.json"):
            shutil.copy(file, a.out / file.name)
    (a.out / "config.json").write_text(json.dumps(config(json.loads((a.folder / "config.json").read_text())), indent=2) + "\n")
    save_file(widen(load_file(a.folder / "model.safetensors")), a.out / "model.safetensors", {"format": "pt"})


if __name__ == "__main__":
    main()
