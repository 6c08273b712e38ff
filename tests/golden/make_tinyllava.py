"""TinyLLaVA checkpoints: tinyllava/ (SigLIP whose first row is dropped, MLP, Qwen2), and tinyllava-*/ with other
decoders and with a CLIP tower; and llava-gemma/, which has the same parts under LLaVA's names.

Usage: python make_tinyllava.py [folder ...]     (after make_tokenizer.py)
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
from make_phi import NO_TEXT, phi_config, write_tokenizer
from make_text import BBPE, QWEN2_EOS, gemma_norms, qwen2_files
from make_tokenizer import write_spm_files
from make_vlm import (
    INERT,
    image_processor,
    original_config,
    phi_tokenize,
    siglip_config,
    siglip_processor,
    text_config,
    vision_config,
)
from projectors import PROJECTORS

import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaForCausalLM,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionModel,
)

CASES = usual_cases(
    "USER: <image>\nWhat does the sign say? ASSISTANT:",
    "USER: <image>\nIs it old? ASSISTANT:",
    "USER: <image>, then<image><image>\nWhich of the three is small? ASSISTANT:",
)
PARTS = {
    "vision_tower._vision_tower.vision_model.": "tower",
    "connector._connector.": "projector",
    "language_model.": "decoder",
}
HALF = [0.5] * 3


def qwen2_config(hidden, ffn):
    return Qwen2Config(
        vocab_size=608,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=QWEN2_EOS,
        attn_implementation="eager",
    )


def gemma_scale(config):
    """Until transformers 4, when these models were trained, Gemma multiplied all that enters it by the root of its
    width, pictures too; transformers 5 multiplies the rows of its table alone."""
    return config.hidden_size**0.5


def gemma_config(hidden, ffn, vocab=512):
    return GemmaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=512,
        rms_norm_eps=1e-6,
        hidden_act="gelu_pytorch_tanh",
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        attn_implementation="eager",
    )


def qwen2_tokenize(prompt, image_tokens):
    """LLaVA's way with Qwen2's tokenizer: each side of <image> on its own, no BOS."""
    tokenizer = Tokenizer.from_file(str(BBPE / "tokenizer.json"))
    first, *rest = (tokenizer.encode(side).ids for side in prompt.split("<image>"))
    return first + [i for ids in rest for i in [-1] * image_tokens + ids]


# Decoder class, tokenizer, files of the tokenizer, generation_config.json, what is no text.
QWEN2 = (Qwen2ForCausalLM, qwen2_tokenize, qwen2_files, {"eos_token_id": QWEN2_EOS}, range(597, 608))
PHI = (PhiForCausalLM, phi_tokenize, write_tokenizer, {"eos_token_id": 597}, NO_TEXT)
SPM_FILES = {"bos_token_id": 1, "eos_token_id": 2}
LLAMA = (LlamaForCausalLM, tokenize, write_spm_files, SPM_FILES, range(3))
GEMMA = (GemmaForCausalLM, tokenize, write_spm_files, SPM_FILES, range(3))

# Tower, decoder's configuration, decoder, seeds of the weights, of the wide picture and of the tall one.
FOLDERS = {
    "tinyllava": (siglip_config(36, 2, 70, 60), qwen2_config(48, 100), QWEN2, (23, 2, 1)),
    "tinyllava-phi": (siglip_config(20, 2, 38, 44), phi_config(40, 2, 60), PHI, (24, 18, 14)),
    "tinyllava-llama": (
        siglip_config(20, 2, 38, 44),
        text_config(24, 3, 1, 52, 1e-5),
        LLAMA,
        (25, 3, 1),
    ),
    "tinyllava-gemma": (siglip_config(20, 2, 38, 44), gemma_config(28, 60), GEMMA, (26, 2, 1)),
    "tinyllava-clip": (vision_config(20, 2, 38, 42), qwen2_config(24, 52), QWEN2, (27, 1, 3)),
    "llava-gemma": (vision_config(20, 2, 38, 42), gemma_config(28, 60), GEMMA, (30, 2, 4)),
}
# Places of the parts in the original repository of LLaVA.
LLAVA_PLACES = {
    "vision_tower._vision_tower.": "model.vision_tower.vision_tower.",
    "connector._connector.": "model.mm_projector.",
    "language_model.": "",
}


class TinyLlava:
    def __init__(self, vision, text, decoder):
        clip = isinstance(vision, CLIPVisionConfig)
        self.tower = (CLIPVisionModel if clip else SiglipVisionModel)(vision).eval()
        self.rows = (vision.image_size // vision.patch_size) ** 2 - int(not clip)
        self.projector = PROJECTORS["mlp2x_gelu"](vision.hidden_size, text.hidden_size).eval()
        self.decoder = decoder(text).eval()

    def random_state(self, seed):
        state = {}
        for prefix, part in PARTS.items():
            tied = part == "decoder" and self.decoder.config.tie_word_embeddings
            part = random_state(getattr(self, part), seed, prefix, embed=0.05 if tied else 0.8)
            state |= gemma_norms(part) if tied else part
        return state

    def load(self, state):
        for prefix, part in PARTS.items():
            own = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
            load(getattr(self, part), own)
        return self

    def features(self, pixels):
        """The strategy "patch" drops the first row, which in SigLIP is no class token. The tower's output is its
        patches: of CLIP without the class token."""
        hidden = self.tower(pixels, output_hidden_states=True).hidden_states[-2]
        project = self.projector(hidden[:, 1:])
        assert project.shape[1] == self.rows
        return hidden[:, -(self.tower.config.image_size // self.tower.config.patch_size) ** 2 :], project

    def embeds(self, project, ids):
        ids = torch.tensor(ids)
        embeds = self.decoder.get_input_embeddings()(ids.clamp(min=0))
        project = project.reshape(-1, project.shape[-1])
        if isinstance(self.decoder, GemmaForCausalLM):
            project = project * gemma_scale(self.decoder.config)
        embeds[ids < 0] = project
        return embeds[None]

    def logits(self, pixels, ids):
        embeds = self.embeds(self.features(pixels)[1], ids)
        return self.decoder(inputs_embeds=embeds, use_cache=False).logits[0]

    def trace(self, pixels, ids):
        encode, project = self.features(pixels)
        embeds = self.embeds(project, ids)
        hidden, logits = run_llama(self.decoder, embeds)
        golden = {"pixel_values": pixels, "encode": encode, "project": project, "input_ids": ids}
        golden |= {f"hidden.{i}": h for i, h in enumerate(hidden)}
        golden["logits"] = logits
        golden["greedy"], gap = greedy(self.decoder, embeds)
        return golden, gap


def make(name, vision, text, kind, seeds):
    decoder, tokenize, write_files, generation, no_text = kind
    clip = isinstance(vision, CLIPVisionConfig)
    as_llava = name.startswith("llava")
    folder = clean(HERE / name)
    model = TinyLlava(vision, text, decoder)
    state = model.random_state(seeds[0])
    model.load(state)
    size = vision.image_size

    def pixels_of(images):
        if clip:
            return torch.cat([preprocess(image, size, pad=as_llava) for image in images])
        return torch.cat([normalise(squash(image, size), HALF, HALF) for image in images])

    def traced(prompt, images):
        return model.trace(pixels_of(images), tokenize(prompt, model.rows))

    save_picture_cases(folder, CASES, usual_pictures(*seeds[1:]), traced, no_text)
    pixels = pixels_of([Image.open(folder / "wide.png")])
    ids = tokenize(CASES["wide"][0], model.rows)
    check_every_weight(name, state, lambda s: model.load(s).logits(pixels, ids), INERT)

    save_weights(folder / "model.safetensors", llava_names(state) if as_llava else state)
    language = json.loads(text.to_json_string())
    rope = language.pop("rope_parameters")
    language |= {k: rope[k] for k in ("rope_theta", "partial_rotary_factor") if k in rope}
    language |= {"model_type": text.model_type}
    language.pop("transformers_version", None)
    tower = {
        "hidden_act": vision.hidden_act,
        "hidden_size": vision.hidden_size,
        "image_size": vision.image_size,
        "intermediate_size": vision.intermediate_size,
        "layer_norm_eps": vision.layer_norm_eps,
        "model_type": "clip_vision_model" if clip else "siglip_vision_model",
        "num_attention_heads": vision.num_attention_heads,
        "num_hidden_layers": vision.num_hidden_layers,
        "patch_size": vision.patch_size,
    }
    config = {
        "architectures": ["TinyLlavaForConditionalGeneration"],
        "connector_type": "mlp2x_gelu",
        "hidden_size": text.hidden_size,
        "image_aspect_ratio": "square",
        "image_token_index": -200,
        "model_type": "tinyllava",
        "text_config": language,
        "tokenizer_padding_side": "right",
        "torch_dtype": "float32",
        "transformers_version": "4.40.1",
        "vision_config": tower,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "patch",
    }
    dump(folder / "config.json", llava_config(vision, text, language) if as_llava else config)
    dump(folder / "preprocessor_config.json", image_processor(size) if clip else siglip_processor(size))
    dump(folder / "generation_config.json", generation)
    write_files(folder)
    for path in folder.iterdir():
        path.chmod(0o644)


def llava_names(state):
    renamed = {}
    for name, value in state.items():
        place = next(place for place in LLAVA_PLACES if name.startswith(place))
        renamed[LLAVA_PLACES[place] + name[len(place) :]] = value
    return renamed


def llava_config(vision, text, language):
    """The decoder's fields at the top."""
    config = original_config("llava", "mlp2x_gelu", vision, text) | language
    return config | {"architectures": ["LlavaGemmaForCausalLM"], "model_type": f"llava_{text.model_type}"}


def main():
    for name in sys.argv[1:] or FOLDERS:
        make(name, *FOLDERS[name])


if __name__ == "__main__":
    sys.exit(main())
