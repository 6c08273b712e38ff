#!/usr/bin/env python3
"""OpenVINO GenAI on a GGUF file, in a process of its own.

    worker_genai.py '{"model": ..., "threads": 2}'

Does what lines of JSON on stdin order: answer (a prompt and tokens behind it, which it cannot do apart), load.
"""

import json
import sys
import time

import numpy as np
import openvino
import openvino_genai
from live import Refused, serve

WARM = 32


class Engine:
    def __init__(self, task: dict):
        self.task = task
        self.random = np.random.default_rng(1)
        self.pipeline: openvino_genai.LLMPipeline | None = None

    def open(self) -> None:
        try:
            # Groups as long as Q4_0's were faster than the default. The KV cache is as it comes (8 bits on x86).
            options = {"INFERENCE_NUM_THREADS": self.task["threads"], "DYNAMIC_QUANTIZATION_GROUP_SIZE": 32}
            self.pipeline = openvino_genai.LLMPipeline(self.task["model"], "CPU", **options)
        except Exception as e:  # Whatever its reader stumbles over: a key that is not there, a vocabulary, a type.
            # The last line tells the cause, the ones before where it was noticed.
            raise Refused(f"its reader: {str(e).strip().splitlines()[-1]}") from e

    def answer(self, prompt: int, answer: int) -> dict:
        """Milliseconds of a prompt, and of each token behind the first of its answer."""
        if not self.pipeline:
            self.open()
            self.generate(WARM, 2)
        return self.generate(prompt, answer)

    def load(self) -> dict:
        began = time.perf_counter()
        self.open()
        loaded = time.perf_counter()
        self.generate(2, 1)
        return {"load_ms": (loaded - began) * 1000, "first_ms": (time.perf_counter() - began) * 1000}

    def generate(self, prompt: int, answer: int) -> dict:
        """Random tokens: never a prompt that could be in a cache."""
        ids = self.random.integers(300, 17000, (1, prompt)).astype(np.int64)
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        config = openvino_genai.GenerationConfig(max_new_tokens=answer, ignore_eos=True, do_sample=False)
        took = self.pipeline.generate(inputs, config).perf_metrics
        each = took.get_tpot().mean if answer > 1 else None
        return {"prefill_ms": took.get_ttft().mean, "token_ms": each}


if __name__ == "__main__":
    engine = Engine(json.loads(sys.argv[1]))
    serve({"answer": engine.answer, "load": engine.load})
