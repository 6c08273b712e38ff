#!/usr/bin/env python3
"""Text logits of Margay and of llama.cpp for the same GGUF file and the same tokens."""
import argparse
import ctypes
import subprocess
import sys
import tempfile
from pathlib import Path

import llama_cpp as lib
import numpy as np
from safetensors.numpy import load_file


def margay_logits(binary, model, prompt):
    """Token ids [T] and logits [T, vocabulary] of `margay trace`."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "stages.safetensors"
        command = [binary, "trace", model, "--prompt", prompt, "--raw-prompt", "-o", str(out)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        stages = load_file(out)
    return stages["input_ids"].astype(np.int32), stages["logits"]


def llama_cpp_logits(model, ids, threads):
    """Logits [T, vocabulary] of llama.cpp for `ids`."""
    lib.llama_backend_init()
    params = lib.llama_model_default_params()
    handle = lib.llama_model_load_from_file(model.encode(), params)
    if not handle:
        sys.exit(f"llama.cpp does not load {model}")
    context_params = lib.llama_context_default_params()
    context_params.n_ctx = 512
    context_params.n_threads = context_params.n_threads_batch = threads
    context = lib.llama_init_from_model(handle, context_params)
    batch = lib.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i] = int(token)
        batch.pos[i] = i
        batch.n_seq_id[i] = 1
        batch.seq_id[i][0] = 0
        batch.logits[i] = 1
    if lib.llama_decode(context, batch) != 0:
        sys.exit("llama.cpp fails to decode")
    vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(handle))
    rows = []
    for i in range(len(ids)):
        row = lib.llama_get_logits_ith(context, i)
        rows.append(np.ctypeslib.as_array(ctypes.cast(row, ctypes.POINTER(ctypes.c_float)), (vocabulary,)).copy())
    return np.stack(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("binary")
    parser.add_argument("model")
    parser.add_argument("--prompt", default="What is in this picture? A small red square and a sign.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--least-cosine", type=float, default=0.999)
    args = parser.parse_args()
    ids, ours = margay_logits(args.binary, args.model, args.prompt)
    theirs = llama_cpp_logits(args.model, ids, args.threads)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    cosine = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    spread = theirs.std()
    worst = np.abs(ours - theirs).max() / spread
    same = (ours.argmax(1) == theirs.argmax(1)).mean()
    print(f"{len(ids)} positions, {ours.shape[1]} logits each")
    print(f"cosine: least {cosine.min():.6f}, mean {cosine.mean():.6f}")
    print(f"largest difference: {worst:.3f} of the logits' standard deviation")
    print(f"same likeliest token: {same:.0%}")
    if cosine.min() < args.least_cosine:
        sys.exit(f"the logits differ: cosine {cosine.min():.6f} is below {args.least_cosine}")


if __name__ == "__main__":
    main()
