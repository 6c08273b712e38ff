"""A packed row equals separate conversations; a reloaded export equals the model; the tokenizer keeps letters apart."""

import random
from pathlib import Path

import pytest
import torch

from export import reload, tensors, write
from model import Config, Nano, n_visual
from questions import ANY, QA, ask_many, one
from rows import Row, collate, mask_of
from scene import make_scene, pick_word
from tokenizer import CHAT_TEMPLATE, EOS, Tokenizer

MODEL = Path(__file__).parent / "tokenizer.model"


@pytest.fixture(scope="module")
def tok():
    return Tokenizer(MODEL)


@pytest.fixture(scope="module")
def model(tok):
    torch.manual_seed(0)
    return Nano(Config(vocab=tok.size)).eval()


def logits(model, rows, visual):
    b = collate(rows)
    with torch.no_grad():
        return model.decode(b["ids"], visual, rows[0].gap, b["pos"], mask_of(b["block"], b["blind"]))


def test_packed_row_equals_separate_conversations(tok, model):
    rng = random.Random(0)
    visual = torch.randn(1, n_visual(), model.config.width)
    scene = make_scene(rng)
    while len(scene.things) < 2:
        scene = make_scene(rng)
    asked = [one("count", scene, rng), one("describe", scene, rng), *ask_many(scene, rng)[:4]]
    packed = Row(tok)
    packed.add(asked[:1])
    packed.add([QA("no_picture", "What is it?", "Nothing.")], picture=False)
    for qa in asked[1:4]:
        packed.add([qa])
    packed.add(asked[4:6])
    together = logits(model, [packed], visual)[0]
    for turns in ([asked[1]], [asked[3]], asked[4:6]):
        alone = Row(tok)
        alone.add(turns)
        apart = logits(model, [alone], visual)[0]
        for qa, first, last in alone.spans:
            _, f, t = next(s for s in packed.spans if s[0] is qa)
            assert torch.allclose(together[f:t], apart[first:last], atol=1e-4)
    # without a picture: plain causal text
    _, f, t = packed.spans[1]
    ids = torch.tensor([[1, *tok.turn("What is it?"), *tok.answer("Nothing.")]])
    n = ids.shape[1]
    with torch.no_grad():
        plain = model.decode(ids, None, 0, torch.arange(n)[None], torch.ones(n, n, dtype=torch.bool).tril()[None, None])[0]
    assert torch.allclose(together[f:t], plain[-(t - f) - 1 : -1], atol=1e-4)


def test_phrases_are_marked_at_their_last_token(tok):
    rng, seen = random.Random(0), 0
    for _ in range(200):
        row = Row(tok)
        for qa in ask_many(make_scene(rng), rng, mix="hard", most=30):
            row.add([qa])
        piece = lambda at: tok.sp.id_to_piece(row.ids[at]).strip("▁")  # noqa: E731
        for at, thing in row.points:
            told = piece(at) in ("A", "a") and piece(at + 1) == thing.size
            assert told or piece(at) in (thing.shape, thing.colour, *ANY)
            seen += 1
        for at, many in row.counts:
            assert piece(at).rstrip("s") in ("circle", "square", "triangle", "star", "cros", "crosse", "heart", *ANY)
        for at, numbers in row.numbers:
            answer = next(qa.answer for qa, first, _ in row.spans if first == at)
            if answer in ("left", "right", "above", "below"):
                dx, dy = numbers[:2]
                assert answer == ("left" if dx < 0 else "right") if abs(dx) > abs(dy) else ("above" if dy < 0 else "below")
    assert seen > 500


def test_export_reload_gives_equal_logits(tok, model, tmp_path):
    write(model, MODEL, tmp_path / "out", dtype="float32")
    again = reload(tmp_path / "out")
    pixels = torch.randint(0, 256, (2, 144, 144, 3), dtype=torch.uint8)
    row = Row(tok)
    row.add([QA("x", "Is there a red circle?", "Yes")])
    with torch.no_grad():
        a, b = model.see(pixels), again.see(pixels)
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert torch.equal(logits(model, [row], a[1][:1]), logits(again, [row], b[1][:1]))


def test_tower_equals_the_published_clip_class(model):
    transformers = pytest.importorskip("transformers")
    c = model.config
    config = transformers.CLIPVisionConfig(
        hidden_size=c.v_width,
        intermediate_size=c.v_ffn,
        num_hidden_layers=c.v_layers + 1,
        num_attention_heads=c.v_heads,
        image_size=144,
        patch_size=12,
        layer_norm_eps=1e-5,
        hidden_act="quick_gelu",
    )
    tower = transformers.CLIPVisionModel(config).eval()
    prefix = "model.vision_tower.vision_tower."
    held = {k[len(prefix) :]: v for k, v in tensors(model).items() if k.startswith(prefix)}
    names = set(tower.state_dict())
    strip = "vision_model." if not any(n.startswith("vision_model.") for n in names) else ""
    missing = tower.load_state_dict({k[len(strip) :]: v for k, v in held.items()}, strict=False).missing_keys
    assert all("position_ids" in m for m in missing)
    x = torch.randn(1, 3, 144, 144)
    with torch.no_grad():
        theirs = tower(x, output_hidden_states=True).hidden_states[-2][:, 1:]
        assert torch.allclose(model.vision(x), theirs, atol=1e-4)


def test_decoder_equals_the_published_llama_class(model):
    transformers = pytest.importorskip("transformers")
    c = model.config
    config = transformers.LlamaConfig(
        vocab_size=c.vocab,
        hidden_size=c.width,
        intermediate_size=c.ffn,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        num_key_value_heads=c.heads,
        rms_norm_eps=c.eps,
        rope_theta=c.rope_theta,
        tie_word_embeddings=False,
    )
    llama = transformers.LlamaForCausalLM(config).eval()
    held = {k: v for k, v in tensors(model).items() if "vision" not in k and "mm_proj" not in k}
    assert not llama.load_state_dict(held, strict=False).missing_keys
    ids = torch.randint(3, c.vocab, (1, 40))
    mask = torch.ones(40, 40, dtype=torch.bool).tril()[None, None]
    with torch.no_grad():
        ours = model.decode(ids, None, 0, torch.arange(40)[None], mask)
        assert torch.allclose(ours, llama(ids).logits, atol=1e-4)


def test_sign_words_are_one_piece_a_letter(tok):
    rng = random.Random(0)
    for _ in range(2000):
        word = pick_word(rng, rng.choice(["train", "eval"]))
        assert len(tok.answer(word)) == len(word) + 1
        assert tok.decode(tok.answer(word)) == word


def test_tokenizer_json_equals_sentencepiece(tok, model, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    write(model, MODEL, tmp_path / "out")
    fast = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    rng = random.Random(0)
    texts = ["USER: ", " é 日本 😀 x  y", "  lead"]
    for _ in range(60):
        for qa in ask_many(make_scene(rng), rng):
            texts += [f"\n{qa.question} ASSISTANT:", qa.answer]
    for text in texts:
        assert fast.encode(text, add_special_tokens=False).ids == list(tok.encode(text))


def test_chat_template_writes_what_was_trained(tok):
    jinja2 = pytest.importorskip("jinja2")
    template = jinja2.Template(CHAT_TEMPLATE)
    picture = [dict(type="image"), dict(type="text", text="Read the sign.")]
    talk = [dict(role="user", content=picture), dict(role="assistant", content="KAFED"), dict(role="user", content="How many?")]
    text = template.render(messages=talk, bos_token="<s>", eos_token="</s>", add_generation_prompt=True)
    assert text == "<s>USER: <image>\nRead the sign. ASSISTANT: KAFED</s>USER: How many? ASSISTANT:"
    row = Row(tok)
    row.add([QA("read", "Read the sign.", "KAFED"), QA("count_all", "How many?", "2")])
    left, right = text[len("<s>") :].split("<image>")
    first, second = right.split("</s>")
    assert row.ids[: row.gap] == [1, *tok.encode(left)]
    rest = [*tok.encode(first), EOS, *tok.encode(second)]
    assert row.ids[row.gap + n_visual() :][: len(rest)] == rest
