#!/usr/bin/env python3
"""llama.cpp, in a process of its own, through the C interface that `llama-cpp-python` ships.

    worker_llama.py '{"do": "text", "model": ..., "threads": 2, "depths": [512], "decoded": 64, "attention": ["off"]}'

Prints one JSON object on its last line. `do`: text, encode, load, memory, study.
"""

import ctypes
import json
import resource
import statistics
import sys
import time

import llama_cpp as lib
from llama_cpp import mtmd_cpp as mtmd

BATCH = 512
# Tokens of the warm-up: enough to touch every weight and buffer.
WARM = 32
FLASH_ATTENTION = {"off": 0, "on": 1}
# ggml.h, `enum ggml_log_level`: ERROR.
ERROR = 4


class Refused(Exception):
    """The engine does not take the file."""


def main() -> None:
    task = json.loads(sys.argv[1])
    before = peak_rss()
    lib.llama_log_set(LOG, None)
    mtmd.mtmd_log_set(LOG, None)
    mtmd.mtmd_helper_log_set(LOG, None)
    lib.llama_backend_init()
    try:
        result = DO[task["do"]](task)
    except Refused as e:
        result = {"refused": str(e)}
    # What Python and the libraries take by themselves is not the engine's.
    result["peak_rss_bytes"] = peak_rss() - before
    print(json.dumps(result))


@lib.llama_log_callback
def LOG(level: int, text: bytes, _: ctypes.c_void_p) -> None:
    """Errors only, to where failures are read from."""
    if level == ERROR:
        sys.stderr.write(text.decode(errors="replace"))


def peak_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def text(task: dict) -> dict:
    """Prefill and decode rates at each depth, without and with flash attention."""
    model = load(task["model"])
    result: dict = {"attention": {}}
    for attention in task["attention"]:
        rates = {}
        for depth in task["depths"]:
            context = Context(model, depth + task["decoded"] + 2, task["threads"], attention)
            context.warm()
            rates[depth] = context.rates(max(depth, 2), task["decoded"])
            context.free()
        result["attention"][attention] = rates
    return result


def encode(task: dict) -> dict:
    """Milliseconds of one picture: the median of some after a first."""
    # Only the width and the vocabulary of the text model matter here, so its weights are not repacked.
    model = load(task["model"], repack=False)
    eye = Eye(task["mmproj"], model, task["threads"], task["image"])
    eye.encode()
    times = []
    for _ in range(task["repeats"]):
        began = time.perf_counter()
        eye.encode()
        times.append((time.perf_counter() - began) * 1000)
    return {"encode_ms": statistics.median(times)}


def load_time(task: dict) -> dict:
    """Milliseconds until the weights are there, and until the first token of a prompt of two."""
    began = time.perf_counter()
    model = load(task["model"])
    context = Context(model, task["context"], task["threads"], "off")
    loaded = time.perf_counter()
    context.step(0, 2)
    return {"load_ms": (loaded - began) * 1000, "first_ms": (time.perf_counter() - began) * 1000}


def memory(task: dict) -> dict:
    """One picture and a few words at a whole context; the caller reads the peak."""
    model = load(task["model"])
    context = Context(model, task["context"], task["threads"], "off")
    eye = Eye(task["mmproj"], model, task["threads"], task["image"])
    past = eye.see(context, 0)
    context.step(past, 8)
    return {"tokens": past + 8}


def study(task: dict) -> dict:
    """Milliseconds of one picture, a prompt of so many tokens with it, and an answer."""
    model = load(task["model"])
    eye = Eye(task["mmproj"], model, task["threads"], task["image"])
    eye.encode()
    return {"attention": {how: answer(task, model, eye, how) for how in task["attention"]}}


def answer(task: dict, model: ctypes.c_void_p, eye: "Eye", attention: str) -> dict:
    context = Context(model, task["depth"] + task["decoded"] + 2, task["threads"], attention)
    context.warm()
    began = time.perf_counter()
    eye.encode()
    encoded = time.perf_counter()
    past = eye.decode(context, 0)
    if past < task["depth"]:
        context.step(past, task["depth"] - past)
    prefilled = time.perf_counter()
    # The first token of the answer comes from prefill.
    for i in range(task["decoded"] - 1):
        context.step(task["depth"] + i, 1)
    ended = time.perf_counter()
    context.free()
    return {
        "encode_ms": (encoded - began) * 1000,
        "prefill_ms": (prefilled - encoded) * 1000,
        "decode_ms": (ended - prefilled) * 1000,
        "total_ms": (ended - began) * 1000,
        "prompt_tokens": max(past, task["depth"]),
    }


def load(path: str, repack: bool = True) -> ctypes.c_void_p:
    params = lib.llama_model_default_params()
    params.use_extra_bufts = repack
    model = lib.llama_model_load_from_file(path.encode(), params)
    if not model:
        raise Refused("does not load the file")
    return model


class Context:
    """A sequence of tokens that do not matter."""

    def __init__(self, model: ctypes.c_void_p, size: int, threads: int, attention: str):
        params = lib.llama_context_default_params()
        params.n_ctx = max(size, WARM + 2)
        params.n_batch = params.n_ubatch = BATCH
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = FLASH_ATTENTION[attention]
        self.context = lib.llama_init_from_model(model, params)
        if not self.context:
            raise Refused("makes no context")

    def free(self) -> None:
        lib.llama_free(self.context)

    def warm(self) -> None:
        """As its own bench does, though shorter: the first calls map pages and make buffers."""
        self.step(0, WARM)
        self.step(WARM, 1)
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)

    def step(self, first: int, count: int) -> None:
        """Computes so many tokens from position `first` on, in batches, and the logits of the last."""
        end = first + count
        for at in range(first, end, BATCH):
            size = min(BATCH, end - at)
            batch = lib.llama_batch_init(size, 0, 1)
            batch.n_tokens = size
            for i in range(size):
                batch.token[i] = 300 + (at + i) % 200
                batch.pos[i] = at + i
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = 0
                batch.logits[i] = at + i == end - 1
            failed = lib.llama_decode(self.context, batch)
            lib.llama_synchronize(self.context)
            lib.llama_batch_free(batch)
            if failed:
                raise Refused(f"llama_decode fails with {failed}")

    def rates(self, prompt: int, decoded: int) -> dict:
        began = time.perf_counter()
        self.step(0, prompt)
        prefilled = time.perf_counter()
        for i in range(decoded):
            self.step(prompt + i, 1)
        ended = time.perf_counter()
        return {"prefill": prompt / (prefilled - began), "decode": decoded / (ended - prefilled)}


class Eye:
    """The image encoder with one picture, tokenized once."""

    def __init__(self, path: str, model: ctypes.c_void_p, threads: int, picture: str):
        params = mtmd.mtmd_context_params_default()
        params.use_gpu = False
        params.print_timings = False
        params.n_threads = threads
        params.warmup = False
        self.eye = mtmd.mtmd_init_from_file(path.encode(), model, params)
        if not self.eye:
            raise Refused("does not load the vision file")
        bitmap = mtmd.mtmd_helper_bitmap_init_from_file(self.eye, picture.encode(), False)
        if not bitmap:
            raise Refused("does not read the picture")
        marker = mtmd.mtmd_default_marker()
        words = mtmd.mtmd_input_text(text=marker, text_len=len(marker), add_special=True, parse_special=True)
        self.chunks = mtmd.mtmd_input_chunks_init()
        bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
        if mtmd.mtmd_tokenize(self.eye, self.chunks, ctypes.byref(words), bitmaps, 1):
            raise Refused("does not tokenize the picture")
        chunks = (mtmd.mtmd_input_chunks_get(self.chunks, i) for i in range(mtmd.mtmd_input_chunks_size(self.chunks)))
        self.chunk = next(c for c in chunks if mtmd.mtmd_input_chunk_get_type(c) == mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE)

    def encode(self) -> None:
        failed = mtmd.mtmd_encode_chunk(self.eye, self.chunk)
        if failed:
            raise Refused(f"mtmd_encode_chunk fails with {failed}")

    def decode(self, context: Context, past: int) -> int:
        """Puts what was encoded into the context; the next free position."""
        following = lib.llama_pos(0)
        failed = mtmd.mtmd_helper_decode_image_chunk(
            self.eye, context.context, self.chunk, mtmd.mtmd_get_output_embd(self.eye), past, 0, BATCH,
            ctypes.byref(following), mtmd.mtmd_helper_post_decode_callback(), None,
        )  # fmt: skip
        if failed:
            raise Refused(f"the picture's tokens fail with {failed}")
        lib.llama_synchronize(context.context)
        return following.value

    def see(self, context: Context, past: int) -> int:
        self.encode()
        return self.decode(context, past)


DO = {"text": text, "encode": encode, "load": load_time, "memory": memory, "study": study}

if __name__ == "__main__":
    main()
