"""Writes perplexity.json: both definitions of perplexity, computed with transformers in float32.

    python make_perplexity.py        # needs torch, transformers, sentencepiece

The model is tests/golden/llama, the text tests/golden/training_text.txt. Windows: GPTQ's llama.py, `llama_eval`. Chunks:
llama.cpp's tools/perplexity, `perplexity` (chunks that do not overlap, BOS first, the second half scored).
"""

import json
import math
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
GOLDEN = HERE.parents[3] / "tests/golden"


def nll(model, ids: list, targets: list) -> torch.Tensor:
    """Of targets[i + 1] behind ids[: i + 1]."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    return torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(targets[1:]), reduction="none")


def windows(model, ids: list, size: int) -> dict:
    count, losses = len(ids) // size, []
    for i in range(count):
        window = ids[i * size : (i + 1) * size]
        losses.append(nll(model, window, window).mean() * size)
    return dict(window=size, scored=count * (size - 1), perplexity=torch.exp(torch.stack(losses).sum() / (count * size)).item())


def chunks(model, ids: list, size: int, bos: int) -> dict:
    count, sums, squares, n = len(ids) // size, 0.0, 0.0, 0
    for i in range(count):
        chunk = ids[i * size : (i + 1) * size]
        for one in nll(model, [bos] + chunk[1:], chunk)[size // 2 :].tolist():
            sums, squares, n = sums + one, squares + one * one, n + 1
    mean = sums / n
    perplexity = math.exp(mean)
    error = ((squares / n - mean * mean) / (n - 1)) ** 0.5 * perplexity
    return dict(window=size, scored=n, perplexity=perplexity, standard_error=error)


def main():
    model = AutoModelForCausalLM.from_pretrained(GOLDEN / "llama", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "llama")
    ids = tokenizer((GOLDEN / "training_text.txt").read_text()).input_ids
    assert ids[0] == tokenizer.bos_token_id and ids[1] != tokenizer.bos_token_id
    found = dict(
        tokens=len(ids),
        windows=[windows(model, ids, size) for size in (64, 600)],
        chunks=[chunks(model, ids, size, tokenizer.bos_token_id) for size in (64, 128)],
    )
    (HERE / "perplexity.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
