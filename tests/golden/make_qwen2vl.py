"""Vision-language checkpoints whose pictures keep their size: qwen2vl/ and qwen25vl/.

Model, processor and positions are those of transformers (Qwen2VLForConditionalGeneration,
Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil). qwen2vl/ is stored as the first
releases were, with the decoder's fields at the top of config.json and weights `visual.*` and
`model.*`; qwen25vl/ as transformers 5 has them in memory, `model.visual.*` and
`model.language_model.*`, with a preprocessor_config.json of the later kind.

Usage: python make_qwen2vl.py
"""

import sys

from common import CLIP_MEAN, CLIP_STD, HERE, check_every_weight, clean, dump, load, picture, random_state

import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers.models.qwen2_5_vl import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

SEEDS = {"qwen2vl": 202, "qwen25vl": 304}
PIECES = 290  # ids of text; control tokens stand behind them
VOCABULARY = 304
PATCH, FOLD, FRAMES = 4, 2, 2
MIN_PIXELS, MAX_PIXELS = 400, 2600
GREEDY = 32
LOGIT_ROWS = 4
# Ten times the tolerance of logits.
NEAR_TIE = 1e-3
PICTURES = {"wide": (75, 40, 11), "tall": (26, 59, 12), "large": (120, 130, 13)}
SEEN = "<|vision_start|><|image_pad|><|vision_end|>"
START, END = "<|im_start|>", "<|im_end|>"
SYSTEM = f"{START}system\nYou are a helpful assistant.{END}\n"


def question(words):
    return f"{SYSTEM}{START}user\n{words}{END}\n{START}assistant\n"


CASES = {
    "wide": (question(f"{SEEN}What does the sign say?"), ["wide"]),
    "tall": (question(f"{SEEN}How many boats?"), ["tall"]),
    "three": (question(f"First{SEEN}then{SEEN}{SEEN}. Which is small?"), ["tall", "wide", "large"]),
}
CONTROL = ["<|endoftext|>", START, END, "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>"]
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# As published with Qwen2-VL, videos left out.
TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer():
    """Qwen2's pipeline with a small vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lines = (HERE / "training_text.txt").read_text(encoding="utf-8").splitlines()
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in CONTROL])
    assert tokenizer.token_to_id(CONTROL[0]) == PIECES
    return tokenizer


def text_config(tokenizer):
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "intermediate_size": 60,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [2, 3, 3]},
        "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "eos_token_id": tokenizer.token_to_id(END),
    }


def build(name, tokenizer):
    ids = {
        "image_token_id": tokenizer.token_to_id("<|image_pad|>"),
        "video_token_id": VOCABULARY - 1,
        "vision_start_token_id": tokenizer.token_to_id("<|vision_start|>"),
        "vision_end_token_id": tokenizer.token_to_id("<|vision_end|>"),
        "attn_implementation": "eager",
    }
    common = {"depth": 3, "num_heads": 2, "patch_size": PATCH, "spatial_merge_size": FOLD}
    common |= {"temporal_patch_size": FRAMES, "in_channels": 3}
    if name == "qwen2vl":
        vision = common | {"embed_dim": 24, "hidden_size": 48, "mlp_ratio": 2, "hidden_act": "quick_gelu"}
        config = Qwen2VLConfig(
            text_config=text_config(tokenizer), vision_config=vision, tie_word_embeddings=False, **ids
        )
        return Qwen2VLForConditionalGeneration(config).eval()
    vision = common | {
        "hidden_size": 24,
        "intermediate_size": 37,
        "out_hidden_size": 48,
        "hidden_act": "silu",
        "window_size": 2 * FOLD * PATCH,
        "fullatt_block_indexes": [1],
    }
    config = Qwen2_5_VLConfig(
        text_config=text_config(tokenizer), vision_config=vision, tie_word_embeddings=False, **ids
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def processor():
    return Qwen2VLImageProcessorPil(
        min_pixels=MIN_PIXELS,
        max_pixels=MAX_PIXELS,
        patch_size=PATCH,
        merge_size=FOLD,
        temporal_patch_size=FRAMES,
    )


def inputs(tokenizer, prompt, images):
    """Ids [1, T], patches and grids as Qwen2VLProcessor makes them."""
    made = processor()(images=images, return_tensors="pt")
    first, *rest = prompt.split("<|image_pad|>")
    for grid, after in zip(made["image_grid_thw"], rest, strict=True):
        first += "<|image_pad|>" * (int(grid.prod()) // FOLD**2) + after
    ids = torch.tensor([tokenizer.encode(first).ids])
    return ids, made["pixel_values"], made["image_grid_thw"]


def run(model, ids, pixels, grid):
    kinds = (ids == model.config.image_token_id).int()
    return model(
        input_ids=ids,
        pixel_values=pixels,
        image_grid_thw=grid,
        mm_token_type_ids=kinds,
        attention_mask=torch.ones_like(ids),
        use_cache=False,
    ).logits[0]


def trace(model, ids, pixels, grid):
    seen, hidden = {}, []
    text = model.model.language_model
    hooks = [
        layer.register_forward_hook(
            lambda _m, _i, out: hidden.append(out[0] if isinstance(out, tuple) else out)
        )
        for layer in text.layers
    ]
    hooks.append(
        text.layers[0].register_forward_pre_hook(
            lambda _m, args, kwargs: seen.__setitem__(
                "embeds", args[0] if args else kwargs["hidden_states"]
            ),
            with_kwargs=True,
        )
    )
    hooks.append(
        model.model.visual.register_forward_hook(
            lambda _m, _i, out: seen.update(encode=out.last_hidden_state, project=out.pooler_output)
        )
    )
    logits = run(model, ids, pixels, grid)
    for hook in hooks:
        hook.remove()
    frames = pixels.reshape(len(pixels), 3, FRAMES, PATCH, PATCH)
    assert bool((frames[:, :, 0] == frames[:, :, 1]).all())
    image = model.config.image_token_id
    golden = {"pixel_values": frames[:, :, 0].reshape(len(pixels), -1)}
    golden |= {"encode": seen["encode"], "project": seen["project"]}
    golden |= {"hidden.0": seen["embeds"][0], "logits": logits[-LOGIT_ROWS:]}
    golden |= {f"hidden.{i + 1}": h[0] for i, h in enumerate(hidden)}
    golden["input_ids"] = [-1 if i == image else i for i in ids[0].tolist()]
    return golden


def greedy(model, ids, pixels, grid):
    tokens, gap = [], float("inf")
    for _ in range(GREEDY):
        row = run(model, ids, pixels, grid)[-1]
        best = torch.topk(row, 2)
        gap = min(gap, float((best.values[0] - best.values[1]) / row.abs().max()))
        tokens.append(int(best.indices[0]))
        ids = torch.cat([ids, torch.tensor([[tokens[-1]]])], dim=1)
    return tokens, gap


def weights(model, seed):
    """As everywhere; the head hardly ever chooses a control token."""
    state = random_state(model, seed)
    state["lm_head.weight"][PIECES:] *= 0.1
    return state


def fault(tokens, gap):
    """What is wrong with a greedy sequence an engine is to be held to."""
    if gap < NEAR_TIE:
        return "near tie"
    if len(set(tokens)) < 10:
        return "repetitive"
    return None if all(i < PIECES for i in tokens) else "control token"


def save(path, golden):
    tensors = {}
    for name, value in golden.items():
        dtype = torch.int32 if name in ("input_ids", "greedy") else torch.float32
        tensors[name] = torch.as_tensor(value).to(dtype).contiguous()
    save_file(tensors, str(path))


def old_name(name):
    """As the first releases wrote it."""
    return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


def old_config(model):
    """As the first releases wrote it: the decoder's fields at the top, no type of the tower."""
    config = model.config.to_dict()
    text, vision = config["text_config"], config["vision_config"]
    kept = ["depth", "embed_dim", "mlp_ratio", "num_heads", "hidden_size", "patch_size", "spatial_merge_size"]
    flat = {k: text[k] for k in text_config(make_tokenizer()) if k != "rope_parameters"}
    rope = text["rope_parameters"]
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        **{k: v for k, v in config.items() if k.endswith("_token_id") and isinstance(v, int)},
        **flat,
        "hidden_act": "silu",
        "model_type": "qwen2_vl",
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
        "sliding_window": 1024,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.41.2",
        "use_sliding_window": False,
        "vision_config": {
            **{k: vision[k] for k in kept},
            "in_chans": 3,
            "spatial_patch_size": PATCH,
            "temporal_patch_size": FRAMES,
        },
    }


def search(name, model, tokenizer, opened):
    """The first seed from the given one on whose sequences an engine can be held to."""
    for seed in range(SEEDS[name], SEEDS[name] + 100):
        load(model, weights(model, seed))
        faults = []
        for prompt, images in CASES.values():
            given = inputs(tokenizer, prompt, [opened[i] for i in images])
            faults.append(fault(*greedy(model, *given)))
            if faults[-1]:
                break
        print(name, seed, faults)
        if not any(faults):
            return seed
    return None


def make(name):
    folder = clean(HERE / name)
    tokenizer = make_tokenizer()
    model = build(name, tokenizer)
    opened = {}
    for shape, (width, height, seed) in PICTURES.items():
        picture(width, height, seed).save(folder / f"{shape}.png", optimize=True)
        opened[shape] = Image.open(folder / f"{shape}.png")
    if "--search" in sys.argv:
        print(name, "seed", search(name, model, tokenizer, opened))
        return
    state = weights(model, SEEDS[name])
    load(model, state)

    listed = []
    for case, (prompt, images) in CASES.items():
        given = inputs(tokenizer, prompt, [opened[i] for i in images])
        golden = trace(model, *given)
        golden["greedy"], gap = greedy(model, *given)
        print(f"{name} {case}: greedy {golden['greedy']}, smallest gap {gap:.4f}")
        assert fault(golden["greedy"], gap) is None, "choose another seed"
        if len(images) > 1:
            # Of these pictures most stand in the other cases.
            for stage in ("pixel_values", "encode", "hidden.1"):
                del golden[stage]
        save(folder / f"golden.{case}.safetensors", golden)
        listed.append({"name": case, "prompt": prompt, "images": [f"{i}.png" for i in images]})
        print(name, given[2].tolist(), {k: tuple(torch.as_tensor(v).shape) for k, v in golden.items()})
    dump(folder / "prompt.json", {"cases": listed})

    given = inputs(tokenizer, CASES["wide"][0], [opened["wide"]])

    def logits_of(changed):
        load(model, changed)
        return run(model, *given)

    check_every_weight(name, state, logits_of)
    load(model, state)

    tokenizer.save(str(folder / "tokenizer.json"))
    dump(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "bos_token": None,
            "eos_token": END,
            "pad_token": "<|endoftext|>",
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
    dump(folder / "chat_template.json", {"chat_template": TEMPLATE})
    dump(folder / "generation_config.json", {"eos_token_id": [PIECES + 2, PIECES]})
    numbers = {
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "merge_size": FOLD,
        "patch_size": PATCH,
        "temporal_patch_size": FRAMES,
    }
    if name == "qwen2vl":
        dump(folder / "config.json", old_config(model))
        kept = {old_name(k): v for k, v in state.items()}
        numbers |= {"min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS}
        numbers["image_processor_type"] = "Qwen2VLImageProcessor"
    else:
        model.config.save_pretrained(str(folder))
        kept = state
        numbers |= {"size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}, "resample": 3}
        numbers["image_processor_type"] = "Qwen2VLImageProcessorFast"
    dump(folder / "preprocessor_config.json", dict(sorted(numbers.items())))
    save_file(
        {k: v.contiguous() for k, v in kept.items()},
        str(folder / "model.safetensors"),
        metadata={"format": "pt"},
    )
    for path in folder.iterdir():
        path.chmod(0o644)


def main():
    for name in SEEDS:
        make(name)


if __name__ == "__main__":
    sys.exit(main())
