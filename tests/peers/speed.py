#!/usr/bin/env python3
"""Prefill and decode of Margay and of llama.cpp on the same GGUF file, run in turn."""
import argparse
import json
import statistics
import subprocess
import sys


def margay(binary, model, tokens, decode, threads):
    """Prefill and decode rates, tokens a second, of one question of about `tokens` tokens."""
    # Every word of the prompt is one token of a vocabulary with word pieces, or several bytes: the count is reported.
    prompt = " ".join(["a"] * tokens)
    command = [binary, "run", "--model", model, "--prompt", prompt, "--max-tokens", str(decode + 1), "--json"]
    # Room for the chat template around the words.
    command += ["--threads", str(threads), "--context", str(tokens + decode + 512)]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    stages = answer["stages"]
    rates = {"prefill_tokens": stages["prefill_tokens"]}
    rates["prefill"] = stages["prefill_tokens"] * 1000 / stages["prefill_ms"]
    if stages["decode_tokens"]:
        rates["decode"] = stages["decode_tokens"] * 1000 / stages["decode_ms"]
    return rates


def llama_cpp(model, tokens, decode, threads):
    """The same of llama.cpp, in a process of its own."""
    command = [sys.executable, __file__, "--worker", model, str(tokens), str(decode), str(threads)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def worker(model, tokens, decode, threads):
    import time

    import llama_cpp as lib

    lib.llama_backend_init()
    handle = lib.llama_model_load_from_file(model.encode(), lib.llama_model_default_params())
    params = lib.llama_context_default_params()
    params.n_ctx = tokens + decode + 64
    params.n_batch = params.n_ubatch = 512
    params.n_threads = params.n_threads_batch = threads
    context = lib.llama_init_from_model(handle, params)

    def step(first, count):
        batch = lib.llama_batch_init(count, 0, 1)
        batch.n_tokens = count
        for i in range(count):
            batch.token[i] = 100 + (first + i) % 200
            batch.pos[i] = first + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = i == count - 1
        assert lib.llama_decode(context, batch) == 0
        lib.llama_synchronize(context)
        lib.llama_batch_free(batch)

    # One warm-up, as its own bench does: the first call maps pages and makes buffers.
    step(0, min(tokens, 512))
    lib.llama_memory_clear(lib.llama_get_memory(context), True)
    began = time.perf_counter()
    for first in range(0, tokens, 512):
        step(first, min(512, tokens - first))
    prefilled = time.perf_counter()
    for i in range(decode):
        step(tokens + i, 1)
    ended = time.perf_counter()
    print(json.dumps({"prefill": tokens / (prefilled - began), "decode": decode / (ended - prefilled)}))


def main():
    if sys.argv[1:2] == ["--worker"]:
        return worker(sys.argv[2], *map(int, sys.argv[3:6]))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("binary")
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--decode", type=int, default=64)
    args = parser.parse_args()
    ours, theirs = [], []
    for run in range(args.runs):
        ours.append(margay(args.binary, args.model, args.tokens, args.decode, args.threads))
        theirs.append(llama_cpp(args.model, ours[-1]["prefill_tokens"], args.decode, args.threads))
        print(f"run {run + 1}: margay {ours[-1]}, llama.cpp {theirs[-1]}", file=sys.stderr)
    print(f"{'':8} {'margay':>9} {'llama.cpp':>9} {'ratio':>6}   tokens/s, medians of {args.runs}")
    for stage in ("prefill", "decode"):
        a, b = [r[stage] for r in ours], [r[stage] for r in theirs]
        ratio = statistics.median(x / y for x, y in zip(a, b))
        print(f"{stage:8} {statistics.median(a):9.1f} {statistics.median(b):9.1f} {ratio:6.2f}")


if __name__ == "__main__":
    main()
