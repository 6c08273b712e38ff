#!/usr/bin/env python3
"""OpenVINO GenAI on a GGUF file, in a process of its own.

    worker_genai.py '{"do": "text", "model": ..., "threads": 2, "depths": [0, 512], "decoded": 64}'

Prints one JSON object on its last line. `do`: text, load.
"""

import json
import resource
import sys
import time

import numpy as np
import openvino
import openvino_genai

WARM = 32


def main() -> None:
    task = json.loads(sys.argv[1])
    before = peak_rss()
    began = time.perf_counter()
    try:
        # Groups as long as Q4_0's were faster than the default. The KV cache is as it comes (8 bits on x86).
        options = {"INFERENCE_NUM_THREADS": task["threads"], "DYNAMIC_QUANTIZATION_GROUP_SIZE": 32}
        pipeline = openvino_genai.LLMPipeline(task["model"], "CPU", **options)
    except Exception as e:  # Whatever its reader stumbles over: a key that is not there, a vocabulary, a type.
        # The last line tells the cause, the ones before where it was noticed.
        print(json.dumps({"refused": f"its reader: {str(e).strip().splitlines()[-1]}"}))
        return
    loaded = time.perf_counter()
    random = np.random.default_rng(1)
    if task["do"] == "load":
        generate(pipeline, random, 2, 1)
        result = {"load_ms": (loaded - began) * 1000, "first_ms": (time.perf_counter() - began) * 1000}
    else:
        generate(pipeline, random, WARM, 2)
        depths = {depth: generate(pipeline, random, max(depth, 2), task["decoded"] + 1) for depth in task["depths"]}
        result = {"depths": depths}
    print(json.dumps(result | {"peak_rss_bytes": peak_rss() - before}))


def generate(pipeline: openvino_genai.LLMPipeline, random: np.random.Generator, prompt: int, answer: int) -> dict:
    """Rates of a prompt and an answer of random tokens: never one that could be in a cache."""
    ids = random.integers(300, 17000, (1, prompt)).astype(np.int64)
    inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
    config = openvino_genai.GenerationConfig(max_new_tokens=answer, ignore_eos=True, do_sample=False)
    took = pipeline.generate(inputs, config).perf_metrics
    rates = {"prefill": prompt * 1000 / took.get_ttft().mean}
    if answer > 1:
        rates["decode"] = 1000 / took.get_tpot().mean
    return rates


def peak_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
