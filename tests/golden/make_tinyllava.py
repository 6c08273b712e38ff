"""A TinyLLaVA checkpoint: tinyllava/. SigLIP whose first row is dropped, MLP, Qwen2.

Usage: python make_tinyllava.py     (after make_tokenizer.py)
"""

import json
import sys

from common import (
    HERE,
    check_every_weight,
    check_greedy,
    clean,
    dump,
    greedy,
    normalise,
    picture,
    random_state,
    run_llama,
    save_golden,
    save_weights,
    squash,
)
from make_text import BBPE, GREEDY, QWEN2_EOS, qwen2_files
from make_vlm import INERT, siglip_config, siglip_processor
from projectors import PROJECTORS

import torch
from tokenizers import Tokenizer
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionModel

SEED = 23
PROMPT = "USER: <image>\nWhat does the sign say? ASSISTANT:"
PARTS = {
    "vision_tower._vision_tower.vision_model.": "tower",
    "connector._connector.": "projector",
    "language_model.": "decoder",
}


def text_config():
    return Qwen2Config(
        vocab_size=608,
        hidden_size=48,
        intermediate_size=100,
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


class TinyLlava:
    def __init__(self, vision, text):
        self.tower = SiglipVisionModel(vision).eval()
        self.projector = PROJECTORS["mlp2x_gelu"](vision.hidden_size, text.hidden_size).eval()
        self.decoder = Qwen2ForCausalLM(text).eval()

    def random_state(self, seed):
        state = {}
        for prefix, part in PARTS.items():
            state |= random_state(getattr(self, part), seed, prefix)
        return state

    def load(self, state):
        for prefix, part in PARTS.items():
            own = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
            getattr(self, part).load_state_dict(own)
        return self

    def features(self, pixels):
        """The strategy "patch" drops the first row, which here is no class token."""
        encode = self.tower(pixels, output_hidden_states=True).hidden_states[-2]
        return encode, self.projector(encode[:, 1:])

    def embeds(self, pixels, ids):
        ids = torch.tensor(ids)
        embeds = self.decoder.get_input_embeddings()(ids.clamp(min=0))
        embeds[ids < 0] = self.features(pixels)[1][0]
        return embeds[None]

    def logits(self, pixels, ids):
        return self.decoder(inputs_embeds=self.embeds(pixels, ids), use_cache=False).logits[0]


def build(seed):
    vision, text = siglip_config(36, 2, 70, 60), text_config()
    model = TinyLlava(vision, text)
    state = model.random_state(seed)
    model.load(state)
    image = picture(118, 75, 7)
    half = [0.5] * 3
    pixels = normalise(squash(image, 60), half, half)
    tokenizer = Tokenizer.from_file(str(BBPE / "tokenizer.json"))
    before, after = (tokenizer.encode(side).ids for side in PROMPT.split("<image>"))
    ids = before + [-1] * 15 + after
    return vision, text, model, state, image, pixels, ids


def main():
    name = "tinyllava"
    folder = clean(HERE / name)
    vision, text, model, state, image, pixels, ids = build(SEED)
    image.save(folder / "image.png", optimize=True)
    encode, project = model.features(pixels)
    assert project.shape[1] == encode.shape[1] - 1
    embeds = model.embeds(pixels, ids)
    hidden, logits = run_llama(model.decoder, embeds)
    golden = {"pixel_values": pixels, "encode": encode, "project": project, "input_ids": ids}
    golden |= {f"hidden.{i}": h for i, h in enumerate(hidden)}
    golden["logits"] = logits
    golden["greedy"], gap = greedy(model.decoder, embeds, GREEDY)
    check_greedy(name, golden["greedy"], gap, range(597, 608))
    check_every_weight(name, state, lambda s: model.load(s).logits(pixels, ids), INERT)

    save_weights(folder / "model.safetensors", state)
    language = json.loads(text.to_json_string())
    rope = language.pop("rope_parameters")
    language |= {"model_type": "qwen2", "rope_theta": rope["rope_theta"]}
    language.pop("transformers_version", None)
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
        "vision_config": {
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": vision.hidden_size,
            "image_size": vision.image_size,
            "intermediate_size": vision.intermediate_size,
            "layer_norm_eps": 1e-06,
            "model_type": "siglip_vision_model",
            "num_attention_heads": vision.num_attention_heads,
            "num_hidden_layers": vision.num_hidden_layers,
            "patch_size": vision.patch_size,
        },
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "patch",
    }
    dump(folder / "config.json", config)
    dump(folder / "preprocessor_config.json", siglip_processor(60))
    dump(folder / "generation_config.json", {"eos_token_id": QWEN2_EOS})
    qwen2_files(folder)
    dump(folder / "prompt.json", {"prompt": PROMPT, "image": "image.png"})
    save_golden(folder, golden)


if __name__ == "__main__":
    sys.exit(main())
