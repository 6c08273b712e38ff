"""Writes a run as a Hugging Face style MobileVLM V2 folder.

    python export.py RUN_FOLDER OUT_DIR [--dtype float16] [--random]

The tower gets one more layer than was trained: the family takes `hidden_states[-2]`, so the last layer is never
used. It is written as an identity (its two output projections are zero). `reload` reads a folder back.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from model import MEAN, STD, Config, Nano
from scene import PATCH, SIDE
from tokenizer import CHAT_TEMPLATE

TOWER = "model.vision_tower.vision_tower.vision_model."


def tensors(model: Nano) -> dict:
    c = model.config
    out = {k: v.detach().clone() for k, v in model.state_dict().items()}
    first, spare = f"{TOWER}encoder.layers.0.", f"{TOWER}encoder.layers.{c.v_layers}."
    for k in [k for k in out if k.startswith(first)]:
        fresh = torch.zeros_like(out[k])
        if "layer_norm" in k and k.endswith("weight"):
            fresh.fill_(1)
        elif k.endswith("weight") and "out_proj" not in k and "fc2" not in k:
            fresh.normal_(0, 0.02, generator=torch.Generator().manual_seed(0))
        out[spare + k[len(first) :]] = fresh
    out[TOWER + "post_layernorm.weight"] = torch.ones(c.v_width)
    out[TOWER + "post_layernorm.bias"] = torch.zeros(c.v_width)
    return out


def config_json(c: Config, dtype: str) -> dict:
    vision = dict(
        model_type="clip_vision_model",
        hidden_size=c.v_width,
        intermediate_size=c.v_ffn,
        num_hidden_layers=c.v_layers + 1,
        num_attention_heads=c.v_heads,
        image_size=SIDE,
        patch_size=PATCH,
        num_channels=3,
        layer_norm_eps=1e-5,
        hidden_act="quick_gelu",
        projection_dim=c.v_width,
    )
    return dict(
        _name_or_path="margay-nano",
        model_type="mobilevlm",
        architectures=["MobileLlamaForCausalLM"],
        mm_projector_type="ldpnetv2",
        mm_hidden_size=c.v_width,
        mm_vision_select_layer=-2,
        mm_vision_select_feature="patch",
        mm_use_im_start_end=False,
        mm_use_im_patch_token=False,
        image_aspect_ratio="pad",
        vision_tower_type="clip",
        hidden_size=c.width,
        intermediate_size=c.ffn,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        num_key_value_heads=c.heads,
        hidden_act="silu",
        attention_bias=False,
        rms_norm_eps=c.eps,
        rope_theta=c.rope_theta,
        vocab_size=c.vocab,
        max_position_embeddings=c.context,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        torch_dtype=dtype,
        use_cache=True,
        vision_config=vision,
    )


def write(model: Nano, tokenizer: Path, folder: Path, dtype="float16") -> None:
    from transformers import LlamaTokenizerFast

    temp = folder.with_name(folder.name + ".new")
    shutil.rmtree(temp, ignore_errors=True)
    temp.mkdir(parents=True)
    save_file({k: v.to(getattr(torch, dtype)).contiguous().cpu() for k, v in tensors(model).items()}, temp / "model.safetensors", {"format": "pt"})
    put = lambda name, what: (temp / name).write_text(json.dumps(what, indent=2) + "\n")  # noqa: E731
    shutil.copy(tokenizer, temp / "tokenizer.model")
    settings = dict(unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>", add_bos_token=True, add_eos_token=False)
    fast_tokenizer(temp, LlamaTokenizerFast, settings)
    put("config.json", config_json(model.config, dtype))
    put("generation_config.json", dict(bos_token_id=1, eos_token_id=2, pad_token_id=0, do_sample=False, max_new_tokens=64))
    put(
        "tokenizer_config.json",
        dict(
            tokenizer_class="LlamaTokenizer",
            legacy=True,
            model_max_length=model.config.context,
            clean_up_tokenization_spaces=False,
            sp_model_kwargs={},
            chat_template=CHAT_TEMPLATE,
            **settings,
        ),
    )
    put(
        "preprocessor_config.json",
        dict(
            image_processor_type="CLIPImageProcessor",
            do_resize=True,
            size=dict(shortest_edge=SIDE),
            do_center_crop=True,
            crop_size=dict(height=SIDE, width=SIDE),
            do_rescale=True,
            rescale_factor=1 / 255,
            do_normalize=True,
            image_mean=list(MEAN),
            image_std=list(STD),
            resample=3,
            do_convert_rgb=True,
        ),
    )
    shutil.rmtree(folder, ignore_errors=True)
    for path in temp.iterdir():
        path.chmod(0o644)
    temp.rename(folder)


def fast_tokenizer(folder: Path, cls, settings) -> None:
    """tokenizer.json from tokenizer.model, in the layout that LLaMA checkpoints publish: like SentencePiece, every
    piece of text between special tokens gets its own leading space (newer converters give it to the first only)."""
    cls.from_pretrained(str(folder), **settings).save_pretrained(str(folder))
    path = folder / "tokenizer.json"
    held = json.loads(path.read_text())
    spaces = dict(type="Replace", pattern=dict(String=" "), content="▁")
    held["normalizer"] = dict(type="Sequence", normalizers=[dict(type="Prepend", prepend="▁"), spaces])
    held["pre_tokenizer"] = None
    path.write_text(json.dumps(held, indent=2, ensure_ascii=False) + "\n")
    for extra in ("special_tokens_map.json", "added_tokens.json"):
        (folder / extra).unlink(missing_ok=True)


def reload(folder: Path) -> Nano:
    c = json.loads((folder / "config.json").read_text())
    v = c["vision_config"]
    model = Nano(
        Config(
            vocab=c["vocab_size"],
            width=c["hidden_size"],
            layers=c["num_hidden_layers"],
            heads=c["num_attention_heads"],
            ffn=c["intermediate_size"],
            rope_theta=c["rope_theta"],
            eps=c["rms_norm_eps"],
            context=c["max_position_embeddings"],
            v_width=v["hidden_size"],
            v_layers=v["num_hidden_layers"] - 1,
            v_heads=v["num_attention_heads"],
            v_ffn=v["intermediate_size"],
        )
    )
    held = {k: t.float() for k, t in load_file(folder / "model.safetensors").items()}
    model.load_state_dict({k: held[k] for k in model.state_dict()})
    return model.eval()


def main():
    p = argparse.ArgumentParser()
    p.add_argument("run", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("--tokenizer", type=Path, default=Path(__file__).parent / "tokenizer.model")
    p.add_argument("--dtype", default="float16")
    p.add_argument("--random", action="store_true", help="random weights of the final shape; RUN is not read")
    a = p.parse_args()
    if a.random:
        torch.manual_seed(0)
        model = Nano(Config())
    else:
        from evaluate import restore

        model = restore(a.run, a.tokenizer)[0]
    write(model, a.tokenizer, a.out, a.dtype)
    print(a.out, f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")


if __name__ == "__main__":
    main()
