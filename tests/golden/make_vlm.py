"""Vision-language checkpoints: llava-hf/, siglip/, llava/, mobilevlm-v1/, mobilevlm-v2/, imp/.

The towers and decoders are those of transformers (CLIPVisionModel, SiglipVisionModel,
LlamaForCausalLM, PhiForCausalLM, LlavaForConditionalGeneration); the projectors are in projectors.py.

Usage: python make_vlm.py [folder ...]     (after make_tokenizer.py)
"""

import json
import sys

from common import (
    CLIP_MEAN,
    CLIP_STD,
    HERE,
    check_every_weight,
    clean,
    dump,
    greedy,
    load,
    normalise,
    preprocess,
    random_state,
    run_llama,
    save_picture_cases,
    save_weights,
    squash,
    tokenize,
    usual_cases,
    usual_pictures,
)
from make_phi import NO_TEXT, TOKENIZER, phi_config, write_tokenizer
from make_tokenizer import OUT, convert_spm, write_spm_files
from projectors import PROJECTORS

import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PhiForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.llava import LlavaConfig, LlavaForConditionalGeneration

TOWER = "model.vision_tower.vision_tower.vision_model."
PROJECTOR = "model.mm_projector."
SEEDS = {"llava-hf": 34, "siglip": 153, "llava": 41, "mobilevlm-v2": 51, "mobilevlm-v1": 61, "imp": 92}

# Seeds of the wide and of the tall picture, such that no greedy sequence is a near tie.
PICTURE_SEEDS = {
    "llava-hf": (5, 6),
    "siglip": (1, 3),
    "llava": (2, 1),
    "mobilevlm-v2": (2, 3),
    "mobilevlm-v1": (1, 1),
    "imp": (21, 12),
}
PICTURES = {name: usual_pictures(*seeds) for name, seeds in PICTURE_SEEDS.items()}

# What cannot move the logits: the vision layer after the selected one, the final norm and the
# pooling head of the tower, and its key biases (they add the same number to every score of a
# softmax row).
INERT = ("encoder.layers.2.", "post_layernorm", ".head.", "encoder.*k_proj.bias")


def vision_config(hidden, heads, ffn, size):
    return CLIPVisionConfig(
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=3,
        num_attention_heads=heads,
        image_size=size,
        patch_size=14,
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
        projection_dim=hidden,
        attn_implementation="eager",
    )


def text_config(hidden, heads, kv, ffn, eps, vocab=512):
    return LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        max_position_embeddings=2048,
        rms_norm_eps=eps,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        attn_implementation="eager",
    )


class Composite:
    """Tower, projector and decoder under the names of the original repositories."""

    def __init__(self, vision, text, projector):
        self.clip = isinstance(vision, CLIPVisionConfig)
        self.tower = (CLIPVisionModel if self.clip else SiglipVisionModel)(vision).eval()
        self.projector = PROJECTORS[projector](vision.hidden_size, text.hidden_size).eval()
        llama = isinstance(text, LlamaConfig)
        self.decoder = (LlamaForCausalLM if llama else PhiForCausalLM)(text).eval()

    def random_state(self, seed):
        state = random_state(self.tower, seed, TOWER)
        state |= random_state(self.projector, seed, PROJECTOR)
        state |= random_state(self.decoder, seed)
        return state

    def load(self, state):
        def part(prefix):
            return {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}

        self.tower.load_state_dict(part(TOWER))
        self.projector.load_state_dict(part(PROJECTOR))
        rest = {k: v for k, v in state.items() if not k.startswith((TOWER, PROJECTOR))}
        self.decoder.load_state_dict(rest)
        return self

    def features(self, pixels):
        out = self.tower(pixels, output_hidden_states=True)
        assert len(out.hidden_states) == self.tower.config.num_hidden_layers + 1
        encode = out.hidden_states[-2][:, int(self.clip) :]
        return encode, self.projector(encode)

    def splice(self, ids, project):
        ids = torch.tensor(ids)
        embeds = self.decoder.get_input_embeddings()(ids.clamp(min=0))
        embeds[ids < 0] = project.reshape(-1, project.shape[-1])
        return embeds[None]

    def logits(self, pixels, ids):
        _, project = self.features(pixels)
        return self.decoder(inputs_embeds=self.splice(ids, project), use_cache=False).logits[0]


def pixels_of(images, one):
    return torch.cat([one(image) for image in images])


def trace(model, pixels, prompt, tokenize=tokenize):
    """`pixels` [pictures, 3, H, W]."""
    encode, project = model.features(pixels)
    ids = tokenize(prompt, project.shape[1])
    embeds = model.splice(ids, project)
    hidden, logits = run_llama(model.decoder, embeds)
    golden = {"pixel_values": pixels, "encode": encode, "project": project}
    golden |= {"input_ids": ids, "logits": logits}
    golden |= {f"hidden.{i}": h for i, h in enumerate(hidden)}
    golden["greedy"], gap = greedy(model.decoder, embeds)
    return golden, gap


def image_processor(size, old=False):
    """preprocessor_config.json as CLIP and LLaVA folders hold it."""
    config = {
        "crop_size": size if old else {"height": size, "width": size},
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "resample": 3,
        "size": size if old else {"shortest_edge": size},
    }
    if not old:
        config |= {
            "do_convert_rgb": True,
            "do_rescale": True,
            "image_processor_type": "CLIPImageProcessor",
            "rescale_factor": 0.00392156862745098,
        }
    return dict(sorted(config.items()))


def original_config(kind, projector, vision, text):
    """config.json in the style of the LLaVA and MobileVLM repositories, plus vision_config."""
    llava = kind == "llava"
    config = {
        "architectures": ["LlavaLlamaForCausalLM" if llava else "MobileLlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "freeze_mm_mlp_adapter": False,
        "hidden_act": "silu",
        "hidden_size": text.hidden_size,
        "image_aspect_ratio": "pad",
        "image_grid_pinpoints": None,
        "initializer_range": 0.02,
        "intermediate_size": text.intermediate_size,
        "max_position_embeddings": text.max_position_embeddings,
        "mm_hidden_size": vision.hidden_size,
        "mm_projector_type": projector,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "model_type": kind,
        "num_attention_heads": text.num_attention_heads,
        "num_hidden_layers": text.num_hidden_layers,
        "num_key_value_heads": text.num_key_value_heads,
        "pad_token_id": 0,
        "pretraining_tp": 1,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.31.0" if llava else "4.33.1",
        "tune_mm_mlp_adapter": False,
        "use_cache": True,
        "use_mm_proj": True,
        "vision_config": {
            "hidden_act": "quick_gelu",
            "hidden_size": vision.hidden_size,
            "image_size": vision.image_size,
            "intermediate_size": vision.intermediate_size,
            "layer_norm_eps": 1e-05,
            "model_type": "clip_vision_model",
            "num_attention_heads": vision.num_attention_heads,
            "num_channels": 3,
            "num_hidden_layers": vision.num_hidden_layers,
            "patch_size": vision.patch_size,
        },
        "vocab_size": text.vocab_size,
    }
    if llava:
        config["mm_resampler_type"] = None
        config["unfreeze_mm_vision_tower"] = True
    else:
        config["vision_tower_type"] = "clip"
        config["rope_theta"] = 10000.0
    return dict(sorted(config.items()))


def make_original(name, kind, projector, vision, text, cases, old_processor=False):
    folder = clean(HERE / name)
    model = Composite(vision, text, projector)
    state = model.random_state(SEEDS[name])
    model.load(state)

    def one(image):
        return preprocess(image, vision.image_size, pad=True)

    def traced(prompt, images):
        golden, gap = trace(model, pixels_of(images, one), prompt)
        if kind == "llava":
            cross_check(state, vision, text, golden)
        return golden, gap

    save_picture_cases(folder, cases, PICTURES[name], traced)
    check_weights(name, model, state, one, cases["wide"][0])

    save_weights(folder / "model.safetensors", state)
    dump(folder / "config.json", original_config(kind, projector, vision, text))
    dump(folder / "preprocessor_config.json", image_processor(vision.image_size, old_processor))
    dump(
        folder / "generation_config.json",
        {
            "bos_token_id": 1,
            "eos_token_id": 2,
            "max_length": 2048,
            "pad_token_id": 0,
            "transformers_version": "4.31.0" if kind == "llava" else "4.33.1",
        },
    )
    write_spm_files(folder)


def check_weights(name, model, state, one, prompt, tokenize=tokenize):
    """Every weight matters to the wide case."""
    pixels = one(Image.open(HERE / name / "wide.png"))
    ids = tokenize(prompt, model.features(pixels)[1].shape[1])
    check_every_weight(name, state, lambda s: model.load(s).logits(pixels, ids), INERT)
    model.load(state)


def phi_tokenize(prompt, image_tokens):
    """LLaVA's way with Phi's tokenizer: each side of <image> on its own, no BOS."""
    tokenizer = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    first, *rest = (tokenizer.encode(side).ids for side in prompt.split("<image>"))
    return first + [i for ids in rest for i in [-1] * image_tokens + ids]


def imp():
    """SigLIP, MLP and Phi under the names of Imp's training repository."""
    name = "imp"
    cases = usual_cases(
        "USER: <image>\nWhat does the sign say? ASSISTANT:",
        "USER: <image>\nIs it old? ASSISTANT:",
        "USER: <image>, then<image><image>\nWhich of the three is small? ASSISTANT:",
    )
    folder = clean(HERE / name)
    size, half = 60, [0.5] * 3
    vision, text = siglip_config(36, 2, 70, size), phi_config(40, 2, 96)
    model = Composite(vision, text, "mlp2x_gelu")
    state = model.random_state(SEEDS[name])
    model.load(state)

    def one(image):
        return normalise(squash(image, size), half, half)

    def traced(prompt, images):
        return trace(model, pixels_of(images, one), prompt, phi_tokenize)

    save_picture_cases(folder, cases, PICTURES[name], traced, NO_TEXT)
    check_weights(name, model, state, one, cases["wide"][0], phi_tokenize)

    save_weights(folder / "model.safetensors", state)
    config = json.loads(text.to_json_string())
    del config["rope_parameters"]
    config |= {
        "architectures": ["ImpForCausalLM"],
        "image_aspect_ratio": "square",
        "mm_hidden_size": vision.hidden_size,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "google/siglip-so400m-patch14-384",
        "model_type": "imp",
        "partial_rotary_factor": 0.4,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "torch_dtype": "float32",
        "transformers_version": "4.36.0",
        "vision_config": {
            "hidden_size": vision.hidden_size,
            "image_size": size,
            "intermediate_size": vision.intermediate_size,
            "layer_norm_eps": 1e-06,
            "model_type": "siglip_vision_model",
            "num_attention_heads": vision.num_attention_heads,
            "num_hidden_layers": vision.num_hidden_layers,
            "patch_size": vision.patch_size,
        },
    }
    dump(folder / "config.json", dict(sorted(config.items())))
    dump(folder / "preprocessor_config.json", siglip_processor(size))
    dump(folder / "generation_config.json", {"bos_token_id": 597, "eos_token_id": 597})
    write_tokenizer(folder)


def siglip_processor(size):
    """preprocessor_config.json as SigLIP's folders hold it."""
    return {
        "do_convert_rgb": None,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5] * 3,
        "image_processor_type": "SiglipImageProcessor",
        "image_std": [0.5] * 3,
        "processor_class": "SiglipProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": size, "width": size},
    }


def siglip_config(hidden, heads, ffn, size, layers=3):
    return SiglipVisionConfig(
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=size,
        patch_size=14,
        attn_implementation="eager",
    )


def llava_model(vision, text, image_token):
    clip = isinstance(vision, CLIPVisionConfig)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_layer=-2 if clip else -1,
        vision_feature_select_strategy="default" if clip else "full",
        projector_hidden_act="gelu",
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    return LlavaForConditionalGeneration(config).eval()


def cross_check(state, vision, text, golden):
    """The same weights in transformers' own LLaVA give the same features and logits."""
    wide = LlamaConfig(**{**text.to_dict(), "vocab_size": text.vocab_size + 1})
    model = llava_model(vision, wide, text.vocab_size)
    renamed = {}
    for key, value in state.items():
        if key.startswith(TOWER):
            key = "model.vision_tower." + key[len(TOWER) :]
        elif key.startswith(PROJECTOR):
            part = {"0": "linear_1", "2": "linear_2"}[key[len(PROJECTOR)]]
            key = "model.multi_modal_projector." + part + key[len(PROJECTOR) + 1 :]
        elif key.startswith("model."):
            key = "model.language_model." + key[len("model.") :]
        if value.shape[0] == text.vocab_size:
            value = torch.cat([value, torch.zeros(1, value.shape[1])])
        renamed[key] = value
    load(model, renamed)
    ids = torch.tensor([[text.vocab_size if i < 0 else i for i in golden["input_ids"]]])
    out = model(input_ids=ids, pixel_values=golden["pixel_values"])
    want = golden["logits"]
    error = (out.logits[0, :, : text.vocab_size] - want).abs().max() / want.abs().max()
    assert error < 1e-5, error
    print(f"llava: transformers' LlavaForConditionalGeneration agrees, relative {error:.1e}")


# ---------------------------------------------------------------- llava-hf

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{# Images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{# Then the text #}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' ' }}{% endfor %}"
    "{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' ' }}{% endgeneration %}{% endfor %}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def trace_whole(model, ids, pixels, image_token):
    """Stages of transformers' own composition. Greedy over the whole vocabulary, its padding rows included."""
    seen = {}
    hidden = []
    layers = model.model.language_model.layers
    hooks = [
        layer.register_forward_hook(
            lambda _m, _i, out: hidden.append(out[0] if isinstance(out, tuple) else out)
        )
        for layer in layers
    ]
    hooks.append(
        layers[0].register_forward_pre_hook(
            lambda _m, args, kwargs: seen.__setitem__(
                "embeds", args[0] if args else kwargs["hidden_states"]
            ),
            with_kwargs=True,
        )
    )
    hooks.append(
        model.model.multi_modal_projector.register_forward_hook(
            lambda _m, args, out: seen.update(encode=args[0], project=out)
        )
    )
    logits = model(input_ids=ids, pixel_values=pixels, use_cache=False).logits[0]
    for hook in hooks:
        hook.remove()
    golden = {"pixel_values": pixels, "encode": seen["encode"], "project": seen["project"]}
    golden |= {"hidden.0": seen["embeds"][0], "logits": logits}
    golden |= {f"hidden.{i + 1}": h[0] for i, h in enumerate(hidden)}
    golden["input_ids"] = [-1 if i == image_token else i for i in ids[0].tolist()]
    golden["greedy"], gap = greedy(model, seen["embeds"])
    assert golden["greedy"][0] == int(logits[-1].argmax())
    return golden, gap


def make_llava_hf(name, vision, image_processor, preprocess_own, stored, cases):
    """A checkpoint as LlavaForConditionalGeneration writes it, with its processor.

    `preprocess_own` is our own arithmetic for the same pixels, `stored` the preprocessor_config.json
    of published folders."""
    from transformers import LlavaProcessor, PreTrainedTokenizerFast

    pieces, vocab = 512, 576
    clip = isinstance(vision, CLIPVisionConfig)
    folder = clean(HERE / name)
    text = text_config(32, 4, 2, 96, 1e-5, vocab)
    model = llava_model(vision, text, pieces)
    state = random_state(model, SEEDS[name])
    load(model, state)

    # A processor as transformers writes it today: <image> and <pad> after the pieces, the
    # vocabulary of the weights padded to a multiple of 64.
    backend = convert_spm(OUT / "spm" / "tokenizer.model", legacy=False)
    extra = [AddedToken(t, normalized=False, special=True) for t in ("<image>", "<pad>")]
    backend.add_special_tokens(extra)
    assert backend.token_to_id("<image>") == pieces
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        padding_side="left",
        extra_special_tokens={"image_token": "<image>"},
    )
    processor = LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy=model.config.vision_feature_select_strategy,
        num_additional_image_tokens=int(clip),
        chat_template=CHAT_TEMPLATE,
    )

    def inputs(prompt, images):
        made = processor(images=images, text=prompt, return_tensors="pt")
        pixels = made["pixel_values"]
        own = pixels_of(images, preprocess_own)
        assert torch.equal(pixels, own), (pixels - own).abs().max()
        return made["input_ids"], pixels

    def traced(prompt, images):
        ids, pixels = inputs(prompt, images)
        return trace_whole(model, ids, pixels, pieces)

    save_picture_cases(folder, cases, PICTURES[name], traced, [0, 1, 2, *range(pieces, vocab)])
    ids, pixels = inputs(cases["wide"][0], [Image.open(folder / "wide.png")])

    def logits_of(changed):
        load(model, changed)
        return model(input_ids=ids, pixel_values=pixels, use_cache=False).logits[0]

    check_every_weight(name, state, logits_of, INERT)
    load(model, state)
    logits = logits_of(state)

    model.generation_config.bos_token_id = 1
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = pieces + 1
    model.save_pretrained(str(folder))
    processor.save_pretrained(str(folder))
    # transformers 5 puts the image processor inside processor_config.json; the published folders
    # hold it as preprocessor_config.json too, and so does this one.
    dump(folder / "preprocessor_config.json", stored)
    # How transformers 4 names the same tensors (the published llava-hf folders).
    from safetensors import safe_open

    with safe_open(str(folder / "model.safetensors"), "pt") as stored:
        names = sorted(stored.keys())
    renames = {
        n: n.replace("vision_tower.", "vision_tower.vision_model.", 1)
        for n in names
        if n.startswith("vision_tower.") and not n.startswith("vision_tower.vision_model.")
    }
    dump(folder / "names.transformers4.json", renames)
    back = LlavaForConditionalGeneration.from_pretrained(
        str(folder), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    again = back(input_ids=ids, pixel_values=pixels, use_cache=False).logits[0]
    assert torch.equal(again, logits)


def llava_hf():
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    size = 56
    make_llava_hf(
        "llava-hf",
        vision_config(24, 3, 56, size),
        LlavaImageProcessorPil(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size}
        ),
        lambda opened: preprocess(opened, size, pad=False),
        image_processor(size) | {"image_processor_type": "CLIPImageProcessor"},
        usual_cases(
            "USER: <image>\nWhat is in the picture? ASSISTANT:",
            "USER: <image>\nIs it old? ASSISTANT:",
            "USER: <image>\n<image> and <image>\nWhich of the three is small? ASSISTANT:",
        ),
    )


def siglip():
    """60 pixels in patches of 14 leave a border of 4, as 384 leave one of 6."""
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    size = 60
    half = [0.5] * 3
    make_llava_hf(
        "siglip",
        siglip_config(36, 2, 70, size, layers=2),
        SiglipImageProcessorPil(size={"height": size, "width": size}),
        lambda opened: normalise(squash(opened, size), half, half),
        siglip_processor(size),
        usual_cases(
            "USER: <image>\nWhat stands on the table? ASSISTANT:",
            "USER: <image>\nIs it old? ASSISTANT:",
            "USER: <image>\n<image> and <image>\nWhich of the three is small? ASSISTANT:",
        ),
    )


def llava():
    make_original(
        "llava",
        "llava",
        "mlp2x_gelu",
        vision_config(32, 4, 64, 56),
        text_config(32, 4, 4, 96, 1e-5),
        usual_cases(
            "USER: <image>\nWhat does the sign say? ASSISTANT:",
            "USER: <image>\nIs it old? ASSISTANT:",
            "USER: <image>, then<image><image>\nWhich of the three is small? ASSISTANT:",
        ),
    )


def mobilevlm_v2():
    make_original(
        "mobilevlm-v2",
        "mobilevlm",
        "ldpnetv2",
        vision_config(24, 3, 56, 84),
        text_config(32, 4, 4, 96, 1e-6),
        usual_cases(
            "USER: <image>\nIs it old? ASSISTANT:",
            "USER: <image>\nWhere is the small cat? ASSISTANT:",
            "USER: <image>, then<image><image>\nWhich of the three is small? ASSISTANT:",
        ),
    )


def mobilevlm_v1():
    make_original(
        "mobilevlm-v1",
        "mobilevlm",
        "ldpnet",
        vision_config(24, 3, 56, 84),
        text_config(32, 4, 4, 96, 1e-6),
        usual_cases(
            "USER: <image>\nHow many boats are there? ASSISTANT:",
            "USER: <image>\nIs it old? ASSISTANT:",
            "USER: <image>, then<image><image>\nWhich of the three is small? ASSISTANT:",
        ),
        old_processor=True,
    )


FOLDERS = {
    "llava-hf": llava_hf,
    "siglip": siglip,
    "llava": llava,
    "mobilevlm-v2": mobilevlm_v2,
    "mobilevlm-v1": mobilevlm_v1,
    "imp": imp,
}


def main():
    for name in sys.argv[1:] or FOLDERS:
        FOLDERS[name]()


if __name__ == "__main__":
    sys.exit(main())
