"""Gradients against written-out formulas; rules; what the roundings leave behind."""

import pytest
import torch
from torch import nn

from distill import answer_loss, divergence, hidden_loss
from formats import round_rows
from layers import SMALLEST_STEP, Int8Groups, Lsq, LsqWeight, quantize, quantize_inputs, rounded, steps


def small_model():
    torch.manual_seed(0)
    model = nn.Module()
    model.embed_tokens = nn.Embedding(10, 64)
    model.blocks = nn.ModuleList(nn.ModuleDict(dict(up=nn.Linear(64, 128), down=nn.Linear(128, 64))) for _ in range(2))
    model.head = nn.Linear(64, 10, bias=False)
    return model


def run(model, ids):
    x = model.embed_tokens(ids)
    for block in model.blocks:
        x = x + block["down"](block["up"](x).relu())
    return model.head(x)


RULES = [(r"blocks\.0\.", "lsq2"), (r"up$|down$", "q4_0"), (r"embed", "q8_0"), (r"head", None)]


def test_lsq_gradients_equal_the_formula_number_by_number():
    low, high, factor = -2, 1, 0.25
    x = torch.tensor([[0.1, 0.6, -0.9, 3.0, -4.0, 0.0, 1.4, -1.0]], requires_grad=True)
    step = torch.tensor([[0.5]], requires_grad=True)
    weight = torch.tensor([[1.0, -2.0, 0.5, 3.0, -1.0, 2.0, 0.25, 1.5]])
    y = Lsq.apply(x, step, low, high, factor)
    (y * weight).sum().backward()
    of_x, of_step = [], 0.0
    for value, w in zip(x.detach()[0].tolist(), weight[0].tolist()):
        v = value / 0.5
        inside = low < v < high
        of_x.append(w if inside else 0.0)
        of_step += w * ((round(v) - v) if inside else low if v <= low else high)  # Python rounds halves to even as well
    assert y.detach()[0].tolist() == [0.0, 0.5, -1.0, 0.5, -1.0, 0.0, 0.5, -1.0]
    assert x.grad[0].tolist() == of_x
    assert step.grad.item() == pytest.approx(of_step * factor, abs=1e-6)


def test_lsq_starts_with_the_published_step_and_scales_its_gradient():
    w = torch.randn(6, 64, generator=torch.Generator().manual_seed(1))
    for bits, group in [(4, 32), (2, 64)]:
        q = LsqWeight(w, bits, group, "published")
        most = 2 ** (bits - 1) - 1
        assert q.step.shape == (6, 64 // group, 1)
        assert torch.allclose(q.step[2, 0], 2 * w[2, :group].abs().mean() / most**0.5)
        leaf = w.clone().requires_grad_(True)
        q(leaf).sum().backward()
        s = q.step.detach().half().float()
        v = leaf.detach().unflatten(-1, (-1, group)) / s
        inside = (v > q.low) & (v < q.high)
        expected = torch.where(inside, v.round() - v, v.round().clamp(q.low, q.high)).sum(-1, keepdim=True) / (group * most) ** 0.5
        assert torch.allclose(q.step.grad, expected, atol=1e-5)


def test_a_start_at_the_range_is_the_uniform_format_and_one_at_the_least_error_errs_less():
    w = torch.randn(20, 64, generator=torch.Generator().manual_seed(1))
    for bits in (2, 3, 4):
        rounds = {start: LsqWeight(w, bits, 32, start)(w).detach() for start in ("published", "range", "error")}
        uniform = round_rows(w, f"int{bits}")[0]
        # Halves apart: one rounds them to even, the other up; a step is rounded to float16 before it divides, or after.
        assert (rounds["range"] != uniform).float().mean() < 0.01
        error = {start: (y - w).square().mean() for start, y in rounds.items()}
        assert error["error"] < error["range"] and error["error"] < error["published"]


def test_steps_stay_positive_and_are_float16_whatever_the_optimizer_does():
    q = LsqWeight(torch.randn(2, 64), 4, 32, "published")
    q.step.data = torch.tensor([-1.0, 0.0, 1 / 3, 1e9]).reshape(2, 2, 1)
    x = torch.full((2, 64), 0.2)
    y = q(x).unflatten(-1, (-1, 32))[..., 0].flatten()
    third = torch.tensor(1 / 3).half().float()
    assert y.tolist() == [7 * SMALLEST_STEP, 7 * SMALLEST_STEP, third * 1, 0.0]


def test_straight_through_passes_inside_the_range_and_stops_outside():
    layer = nn.Linear(32, 1, bias=False)
    layer.weight.data = torch.zeros(1, 32)
    layer.weight.data[0, :3] = torch.tensor([-8.0, 7.9, 3.2])  # 7.9 would be code 16, and is 15
    model = nn.ModuleDict(dict(only=layer))
    assert quantize(model, [("only", "q4_0")]) == {"only": "q4_0"}
    layer(torch.arange(1.0, 33.0)).sum().backward()
    expected = torch.arange(1.0, 33.0)
    expected[1] = 0
    assert torch.equal(layer.parametrizations.weight.original.grad[0], expected)
    assert layer.weight[0, :3].tolist() == [-8.0, 7.0, 3.0]


def test_rules_decide_by_the_first_pattern_found():
    model = small_model()
    got = quantize(model, RULES)
    assert got == {
        "embed_tokens": "q8_0",
        "blocks.0.up": "lsq2",
        "blocks.0.down": "lsq2",
        "blocks.1.up": "q4_0",
        "blocks.1.down": "q4_0",
    }
    assert len(steps(model)) == 2
    ids = torch.arange(10)
    plain = rounded(model)
    assert torch.equal(run(model, ids), run(plain, ids))
    assert torch.equal(run(model, ids), run(plain, ids)), "the original goes on"
    assert set(plain.state_dict()) == set(small_model().state_dict())
    assert torch.equal(plain.blocks[1]["up"].weight, round_rows(small_model().blocks[1]["up"].weight, "q4_0")[0])


def test_every_kind_of_rule_can_be_trained():
    for rule in ("q4_0", "q4_1", "iq4_nl", "int2", "uint2:64", "lsq3", "lsq2:row"):
        model, ids = small_model(), torch.arange(10)
        quantize(model, [(r"up$|down$", rule)])
        before = run(model, ids).detach()
        adam = torch.optim.Adam(model.parameters(), 1e-2)
        losses = []
        for _ in range(8):
            loss = (run(model, ids) - ids[:, None]).square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0] and not torch.equal(run(model, ids), before), rule


def test_mistakes_in_rules_are_named():
    with pytest.raises(ValueError, match="decided by nothing"):
        quantize(small_model(), [("nothing", "q4_0")])
    with pytest.raises(ValueError, match=r"blocks\.0\.up: a row of 64 is no multiple of the 256 numbers of a block of q4_k"):
        quantize(small_model(), [(r"up$", "q4_k")])
    with pytest.raises(ValueError, match="head: no format 'q3'"):
        quantize(small_model(), [("head", "q3")])
    model = small_model()
    quantize(model, [("head", "q4_0")])
    with pytest.raises(ValueError, match="head is quantized already"):
        quantize(model, [("head", "q4_0")])


def test_a_saved_state_goes_on_where_it_was():
    model, again = small_model(), small_model()
    quantize(model, RULES), quantize(again, RULES)
    for step in steps(model):
        step.data *= 1.3
    again.load_state_dict(model.state_dict())
    assert torch.equal(run(again, torch.arange(10)), run(model, torch.arange(10)))


def test_inputs_take_the_int8_groups_of_the_processor():
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    x[1] = 0
    y = Int8Groups.apply(x)
    for row, out in zip(x.unflatten(-1, (2, 32)).flatten(0, 1), y.unflatten(-1, (2, 32)).flatten(0, 1)):
        s = row.abs().max().item() / 127
        expected = torch.tensor([s * round(v / s) if s else 0.0 for v in row.tolist()])
        assert torch.allclose(out, expected, atol=1e-7)
    model = small_model()
    quantize(model, [(r"up$", "q4_0")])
    ids = torch.arange(10)
    before = run(model, ids)
    hooks = quantize_inputs(model)
    assert len(hooks) == 2 and not torch.equal(run(model, ids), before)
    run(model, ids).sum().backward()
    assert model.embed_tokens.weight.grad.abs().sum() > 0
    for hook in hooks:
        hook.remove()
    assert torch.equal(run(model, ids), before)


def test_distillation_is_zero_at_equality_and_right_elsewhere():
    g = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(6, 9, generator=g), torch.randn(6, 9, generator=g)
    answers = torch.tensor([True, False, True, False, False, True])
    for t in (1.0, 3.0):
        assert divergence(teacher, teacher, t).abs().max() < 1e-6
        p, q = (teacher / t).softmax(-1), (student / t).softmax(-1)
        expected = (p * (p / q).log()).sum(-1) * t * t
        assert torch.allclose(divergence(student, teacher, t), expected, atol=1e-5)
    each = divergence(student, teacher)
    assert torch.allclose(answer_loss(student, teacher, answers), each[answers].mean())
    weights = torch.where(answers, 1.0, 0.5)
    assert torch.allclose(answer_loss(student, teacher, answers, 0.5), (each * weights).sum() / weights.sum())
    assert hidden_loss(teacher, teacher) == 0
    assert torch.allclose(hidden_loss(2 * teacher, teacher), torch.tensor(1.0))


def test_distillation_moves_the_student_only():
    teacher = torch.randn(4, 5, requires_grad=True)
    student = torch.randn(4, 5, requires_grad=True)
    (answer_loss(student, teacher, torch.ones(4, dtype=torch.bool), temperature=2.0) + hidden_loss(student, teacher)).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


def test_a_published_class_trains_rounds_and_reloads(tmp_path):
    transformers = pytest.importorskip("transformers")
    shape = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, vocab_size=48)
    torch.manual_seed(0)
    teacher = transformers.LlamaForCausalLM(transformers.LlamaConfig(tie_word_embeddings=False, **shape)).eval()
    student = transformers.LlamaForCausalLM(teacher.config)
    student.load_state_dict(teacher.state_dict())
    got = quantize(student, [(r"lm_head$", "q8_0"), (r"_proj$", "q4_0"), (r"embed_tokens$", None)])
    assert sorted(got.values()) == ["q4_0"] * 7 + ["q8_0"]
    ids = torch.arange(48)[None]
    adam = torch.optim.Adam(student.parameters(), 1e-3)
    answer_loss(student(ids).logits, teacher(ids).logits, torch.ones(1, 48, dtype=torch.bool)).backward()
    adam.step()
    rounded(student).save_pretrained(tmp_path)
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(again(ids).logits, student.eval()(ids).logits)
    held = again.model.layers[0].mlp.up_proj.weight
    assert torch.equal(round_rows(held, "q4_0")[0], held)
