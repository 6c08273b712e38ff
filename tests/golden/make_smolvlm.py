"""A vision-language checkpoint whose pictures are cut into tiles: smolvlm/.

Model, processor and chat template are those of transformers (SmolVLMForConditionalGeneration,
SmolVLMImageProcessorPil, processing_smolvlm.py).

Usage: python make_smolvlm.py
"""

import json
import sys

from common import (
    HERE,
    check_every_weight,
    clean,
    dump,
    greedy,
    load,
    random_state,
    save_picture_cases,
)

import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.models.smolvlm import SmolVLMConfig, SmolVLMForConditionalGeneration
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import (
    DEFAULT_CHAT_TEMPLATE,
    get_image_prompt_string,
)

SEED = 101
PIECES = 300  # ids of text; control tokens of pictures stand behind them
VOCABULARY = 352
TILE, LONGEST, PATCH, FOLD = 20, 60, 5, 2
TILE_TOKENS = (TILE // PATCH // FOLD) ** 2
FAKE, GLOBAL, IMAGE = "<fake_token_around_image>", "<global-img>", "<image>"
PICTURES = {"wide": (75, 40, 11), "tall": (30, 88, 12)}
CASES = {
    "wide": ("<|im_start|>User:<image>What does the sign say?<end_of_utterance>\nAssistant:", ["wide"]),
    "tall": ("<|im_start|>User:<image>\n12 boats?<end_of_utterance>\nAssistant:", ["tall"]),
    "three": (
        "<|im_start|>User: First<image>then<image><image>. Which is small?<end_of_utterance>\nAssistant:",
        ["tall", "wide", "tall"],
    ),
}
# Key biases add the same number to every score of a softmax row.
INERT = ("encoder.*k_proj.bias",)


def make_tokenizer():
    """SmolLM2's pipeline: single digits, bytes; "\\n\\n" is one piece, as in its vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lines = (HERE / "training_text.txt").read_text(encoding="utf-8").splitlines()
    tokenizer.train_from_iterator(lines + ["\n\n"] * 1000, trainer)
    places = [f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)]
    control = [GLOBAL, *places, FAKE, IMAGE, "<end_of_utterance>"]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in control])
    assert tokenizer.token_to_id(GLOBAL) == PIECES
    assert len(tokenizer.encode("\n\n").ids) == 1
    return tokenizer


def config(tokenizer):
    return SmolVLMConfig(
        vision_config={
            "hidden_size": 18,
            "intermediate_size": 34,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": TILE,
            "patch_size": PATCH,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": VOCABULARY,
            "hidden_size": 30,
            "intermediate_size": 44,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
            "pad_token_id": 2,
            "bos_token_id": 1,
            "eos_token_id": tokenizer.token_to_id("<end_of_utterance>"),
        },
        scale_factor=FOLD,
        image_token_id=tokenizer.token_to_id(IMAGE),
        tie_word_embeddings=False,
        pad_token_id=2,
        attn_implementation="eager",
    )


def processor():
    half = [0.5] * 3
    return SmolVLMImageProcessorPil(
        size={"longest_edge": LONGEST},
        max_image_size={"longest_edge": TILE},
        image_mean=half,
        image_std=half,
    )


def inputs(tokenizer, prompt, images):
    """Ids [1, T] and pixels [1, tiles, 3, TILE, TILE] as SmolVLMProcessor makes them."""
    made = processor()(images=[images], return_row_col_info=True, return_tensors="pt")
    assert bool((made["pixel_attention_mask"] == 1).all())
    text, *rest = prompt.split(IMAGE)
    for rows, columns, after in zip(made["rows"][0], made["cols"][0], rest, strict=True):
        shown = get_image_prompt_string(rows, columns, TILE_TOKENS, FAKE, IMAGE, GLOBAL)
        text += shown + after
    return torch.tensor([tokenizer.encode(text).ids]), made["pixel_values"]


def trace(model, ids, pixels):
    seen, hidden = {}, []
    text = model.model.text_model
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
        model.model.connector.register_forward_hook(
            lambda _m, args, out: seen.update(encode=args[0], project=out)
        )
    )
    logits = model(input_ids=ids, pixel_values=pixels, use_cache=False).logits[0]
    for hook in hooks:
        hook.remove()
    image = model.config.image_token_id
    golden = {"pixel_values": pixels[0], "encode": seen["encode"], "project": seen["project"]}
    golden |= {"hidden.0": seen["embeds"][0], "logits": logits}
    golden |= {f"hidden.{i + 1}": h[0] for i, h in enumerate(hidden)}
    golden["input_ids"] = [-1 if i == image else i for i in ids[0].tolist()]
    golden["greedy"], gap = greedy(model, seen["embeds"])
    return golden, gap


def weights(model, seed):
    """As everywhere; the head hardly ever chooses a control token."""
    state = random_state(model, seed)
    state["lm_head.weight"][:3] *= 0.1
    state["lm_head.weight"][PIECES:] *= 0.1
    return state


def main():
    folder = clean(HERE / "smolvlm")
    tokenizer = make_tokenizer()
    model = SmolVLMForConditionalGeneration(config(tokenizer)).eval()
    state = weights(model, SEED)
    load(model, state)

    def traced(prompt, images):
        return trace(model, *inputs(tokenizer, prompt, images))

    control = [*range(3), *range(PIECES, VOCABULARY)]
    save_picture_cases(folder, CASES, PICTURES, traced, control)
    opened = Image.open(folder / "wide.png")
    ids, pixels = inputs(tokenizer, CASES["wide"][0], [opened])

    def logits_of(changed):
        load(model, changed)
        return model(input_ids=ids, pixel_values=pixels, use_cache=False).logits[0]

    check_every_weight("smolvlm", state, logits_of, INERT)
    load(model, state)

    model.save_pretrained(str(folder))
    tokenizer.save(str(folder / "tokenizer.json"))
    dump(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "bos_token": "<|im_start|>",
            "eos_token": "<end_of_utterance>",
            "pad_token": "<|im_end|>",
            "tokenizer_class": "GPT2Tokenizer",
            "unk_token": "<|endoftext|>",
        },
    )
    dump(folder / "chat_template.json", {"chat_template": DEFAULT_CHAT_TEMPLATE})
    dump(
        folder / "preprocessor_config.json",
        {
            "do_convert_rgb": True,
            "do_image_splitting": True,
            "do_normalize": True,
            "do_pad": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.5] * 3,
            "image_processor_type": "SmolVLMImageProcessor",
            "image_std": [0.5] * 3,
            "max_image_size": {"longest_edge": TILE},
            "processor_class": "SmolVLMProcessor",
            "resample": 1,
            "rescale_factor": 0.00392156862745098,
            "size": {"longest_edge": LONGEST},
        },
    )
    for path in folder.iterdir():
        path.chmod(0o644)
    stored = json.loads((folder / "config.json").read_text())
    print(stored["model_type"], stored["vision_config"]["model_type"], sorted(stored))


if __name__ == "__main__":
    sys.exit(main())
