"""What training rounds is what the file holds: blocks, the converter, and logits in Margay (MARGAY=PATH/TO/margay)."""

import os
import subprocess

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize
from safetensors.torch import load_file

import train
from check import differences
from formats import round_rows
from layers import LsqWeight
from measure import size_bytes, variant
from nano import NANO
from store import blocks, store
from test_blocks import adversarial

MARGAY = os.environ.get("MARGAY")
# Sums of up to 768 products of float32 in another order, through ten blocks; a wrong step or row would show as tenths.
ORDER_OF_SUMS = 2e-3


def held(x, kind):
    data, found = blocks(x.reshape(-1, 32), kind)
    return torch.from_numpy(dequantize(data, GGMLQuantizationType[kind])).reshape(x.shape), found


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_blocks_hold_a_learned_grid_exactly(bits):
    w = torch.randn(40, 96, generator=torch.Generator().manual_seed(bits))
    w[3] = 0
    q = LsqWeight(w, bits, 32)
    q.step.data *= torch.empty(40, 3, 1).uniform_(0.1, 3, generator=torch.Generator().manual_seed(0))
    y = q(w).detach()
    for kind in ("Q4_0", "Q5_0", "Q8_0"):
        got, found = held(y, kind)
        assert found.all() and torch.equal(got, y), kind


@pytest.mark.parametrize("name, kind", [("int2", "Q4_0"), ("int3:64", "Q4_0"), ("uint2", "Q4_1"), ("uint3", "Q4_1"), ("q4_1", "Q4_1")])
def test_blocks_hold_uniform_groups_exactly(name, kind):
    y = round_rows(torch.randn(40, 64, generator=torch.Generator().manual_seed(1)), name)[0]
    got, found = held(y, kind)
    assert found.all() and torch.equal(got, y)


def test_what_no_block_holds_is_told():
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    x[1], x[3] = 0.5, 0
    assert blocks(x, "Q4_0")[1].tolist() == [False, True, False, True, False]
    assert not blocks(torch.full((1, 32), 0.1), "Q4_1")[1].any()  # no float16


@pytest.mark.parametrize("name", ["q4_0", "q5_0", "q8_0"])
def test_rounding_twice_is_rounding_once(name):
    once = round_rows(adversarial(64), name)[0]
    assert torch.equal(round_rows(once, name)[0], once)
    assert blocks(once.reshape(-1, 32), name.upper())[1].all()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Exports of nano that were only rounded, by method and bits."""
    out = tmp_path_factory.mktemp("runs")
    for method, bits in [("ste", 4), ("lsq", 2)]:
        train.main(["--out", str(out / f"{method}{bits}"), "--bits", str(bits), "--method", method, "--seconds", "0"])
    return out


@pytest.fixture
def margay():
    if not MARGAY:
        pytest.skip("MARGAY is not set: it names the program to compare with")
    return MARGAY


def test_an_export_holds_the_rounded_weights(runs):
    held = load_file(runs / "ste4" / "export" / "model.safetensors")
    source = load_file(NANO / "weights" / "model.safetensors")
    name = "model.layers.2.mlp.up_proj.weight"
    assert torch.equal(held[name], round_rows(source[name].float(), "q4_0")[0])
    assert torch.equal(held["model.norm.weight"], source["model.norm.weight"].float())


def test_the_converter_writes_a_rounded_folder_as_it_is(runs, margay, tmp_path):
    """`margay convert --type q4_0` of the folder, and the file that store.py makes, hold the same numbers."""
    plain, stored = tmp_path / "plain.gguf", tmp_path / "stored.gguf"
    export = runs / "ste4" / "export"
    subprocess.run([margay, "convert", export, "-o", plain, "--type", "q4_0", "--vision-type", "q4_0", "--single"], check=True, capture_output=True)
    assert store(export, stored, margay)
    ours = {t.name: t for t in GGUFReader(stored).tensors}
    for t in GGUFReader(plain).tensors:
        a, b = (dequantize(np.array(x.data), x.tensor_type) for x in (t, ours[t.name]))
        assert np.array_equal(a, b), t.name
    model, got = variant(str(runs / "ste4"), NANO / "weights")
    assert size_bytes(model, got) == sum(t.n_bytes for t in ours.values())


@pytest.mark.parametrize("run", ["ste4", "lsq2"])
def test_margay_computes_the_logits_of_training(run, runs, margay, tmp_path):
    export, gguf = runs / run / "export", tmp_path / "nano.gguf"
    kinds = store(export, gguf, margay)
    assert len(kinds) == 69 and kinds["blk.0.attn_q.weight"] == "Q4_0" and kinds["output.weight"] == "Q8_0"
    most, spread, same = differences(export, gguf, margay, 1, "reference")
    assert most < ORDER_OF_SUMS * spread and same == 1


def test_numbers_that_are_not_rounded_are_refused(margay, tmp_path):
    with pytest.raises(ValueError, match=r"\.weight: no block of Q4_0 holds the numbers of [1-9]\d* of \d+ groups exactly"):
        store(NANO / "weights", tmp_path / "no.gguf", margay)
    assert not list(tmp_path.iterdir())


def test_a_run_goes_on_where_it_stopped(tmp_path):
    words = ["--out", str(tmp_path), "--bits", "4", "--method", "lsq", "--part", "decoder", "--seconds", "1e9", "--batch", "1"]
    train.main([*words, "--pictures", "1"])
    train.main([*words, "--pictures", "2", "--resume"])
    log = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [line[line.index('"step"') :].split(",")[0] for line in log] == ['"step": 1', '"step": 2']
    first = torch.load(tmp_path / "last.pt", weights_only=True)
    assert first["seen"] == 2
