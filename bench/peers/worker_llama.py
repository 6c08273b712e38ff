#!/usr/bin/env python3
"""llama.cpp, in a process of its own, through the C interface that `llama-cpp-python` ships.

    worker_llama.py '{"model": ..., "mmproj": null, "image": null, "threads": 2, "context": 2048}'

Does what lines of JSON on stdin order: prefill, decode, encode, study, load, memory; see `Engine`.
"""

import ctypes
import json
import resource
import sys
import time
from collections.abc import Callable

import llama_cpp as lib
from live import Refused, serve
from llama_cpp import mtmd_cpp as mtmd

BATCH = 512
# Tokens of the warm-up: enough to touch every weight and buffer.
WARM = 32
FLASH_ATTENTION = {"off": 0, "on": 1}
# ggml.h, `enum ggml_log_level`: ERROR.
ERROR = 4


def main() -> None:
    before = peak_rss()
    lib.llama_log_set(LOG, None)
    mtmd.mtmd_log_set(LOG, None)
    mtmd.mtmd_helper_log_set(LOG, None)
    lib.llama_backend_init()
    engine = Engine(json.loads(sys.argv[1]), before)
    names = ("prefill", "decode", "encode", "study", "load", "memory")
    serve({name: getattr(engine, name) for name in names})


@lib.llama_log_callback
def LOG(level: int, text: bytes, _: ctypes.c_void_p) -> None:
    """Errors only, to where failures are read from."""
    if level == ERROR:
        sys.stderr.write(text.decode(errors="replace"))


def peak_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Engine:
    """The model and its contexts, each made when it is first asked for."""

    def __init__(self, task: dict, before: int):
        self.task, self.before = task, before
        self.model: ctypes.c_void_p | None = None
        self.eye: Eye | None = None
        self.contexts: dict[str, Context] = {}
        # Tokens that a context holds, by its attention.
        self.held: dict[str, int] = {}

    def context(self, attention: str) -> "Context":
        if attention not in self.contexts:
            self.model = self.model or load(self.task["model"])
            self.contexts[attention] = Context(self.model, self.task["context"], self.task["threads"], attention)
            self.contexts[attention].warm()
        return self.contexts[attention]

    def sight(self, repack: bool = True) -> "Eye":
        if not self.eye:
            self.model = self.model or load(self.task["model"], repack)
            self.eye = Eye(self.task["mmproj"], self.model, self.task["threads"], self.task["image"])
            self.eye.encode()
        return self.eye

    def prefill(self, tokens: int, attention: str) -> dict:
        """A prompt into the emptied cache."""
        context = self.context(attention)
        context.forget(0)
        self.held[attention] = tokens
        return {"ms": timed(lambda: context.step(0, tokens))}

    def decode(self, tokens: int, attention: str) -> dict:
        """Tokens one by one behind what the cache holds, which is then as before."""
        context, depth = self.context(attention), self.held[attention]

        def steps() -> None:
            for i in range(tokens):
                context.step(depth + i, 1)

        took = timed(steps)
        context.forget(depth)
        return {"ms": took}

    def encode(self) -> dict:
        # Only the width and the vocabulary of the text model matter here, so its weights are not repacked.
        return {"ms": timed(self.sight(repack=False).encode)}

    def study(self, prompt: int, answer: int, attention: str) -> dict:
        """Milliseconds of one picture, a prompt of so many tokens with it, and an answer."""
        context, eye = self.context(attention), self.sight()
        context.forget(0)
        encoded = timed(eye.encode)
        began = time.perf_counter()
        past = eye.decode(context, 0)
        if past < prompt:
            context.step(past, prompt - past)
        prefilled = (time.perf_counter() - began) * 1000
        self.held[attention] = prompt
        # The first token of the answer comes from prefill.
        decoded = self.decode(answer - 1, attention)["ms"]
        return {"encode_ms": encoded, "prefill_ms": prefilled, "decode_ms": decoded, "ms": encoded + prefilled + decoded}

    def load(self) -> dict:
        """Milliseconds until the weights are there, and until the first token of a prompt of two."""
        began = time.perf_counter()
        model = load(self.task["model"])
        context = Context(model, self.task["context"], self.task["threads"], "off")
        loaded = time.perf_counter()
        context.step(0, 2)
        return {"load_ms": (loaded - began) * 1000, "first_ms": (time.perf_counter() - began) * 1000}

    def memory(self) -> dict:
        """One picture and a few words at a whole context. What Python and the libraries take is not the engine's."""
        model = load(self.task["model"])
        context = Context(model, self.task["context"], self.task["threads"], "off")
        eye = Eye(self.task["mmproj"], model, self.task["threads"], self.task["image"])
        context.step(eye.see(context, 0), 8)
        return {"peak_rss_bytes": peak_rss() - self.before}


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


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

    def forget(self, depth: int) -> None:
        """Takes back all behind so many tokens."""
        lib.llama_memory_seq_rm(lib.llama_get_memory(self.context), -1, depth, -1)

    def warm(self) -> None:
        """As its own bench does, though shorter: the first calls map pages and make buffers."""
        self.step(0, WARM)
        self.step(WARM, 1)
        self.forget(0)

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


if __name__ == "__main__":
    main()
