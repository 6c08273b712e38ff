#!/usr/bin/env python3
"""A vision transformer of a GGUF vision file's shape in onnxruntime and OpenVINO, in a process of its own.

    worker_vit.py '{"engine": "onnxruntime", "kind": "f32", "threads": 2, "mmproj": ..., "folder": ...}'

Does what lines of JSON on stdin order: build (the ONNX files, once), encode. The graph has the blocks that a projector
reads (all but the last), random weights, no projector and no preprocessing of pictures.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from live import Refused, serve

KINDS = ("f32", "int8", "bf16")


@dataclass(frozen=True)
class Shape:
    blocks: int
    width: int
    heads: int
    ffn: int
    image: int
    patch: int
    is_clip: bool

    @property
    def tokens(self) -> int:
        return (self.image // self.patch) ** 2 + (1 if self.is_clip else 0)

    @property
    def head(self) -> int:
        return self.width // self.heads


class Engine:
    def __init__(self, task: dict):
        self.task = task
        self.shape = read_shape(task["mmproj"])
        self.folder = Path(task["folder"]) / f"vit-{self.shape.width}-{self.shape.blocks}-{self.shape.image}"
        self.infer: Callable[[], object] | None = None

    def build(self) -> dict:
        build(self.shape, self.folder)
        return {}

    def encode(self) -> dict:
        """Milliseconds of one picture; the first picture of all is not timed."""
        if not self.infer:
            side = self.shape.image
            pixels = np.random.default_rng(2).standard_normal((1, 3, side, side), dtype=np.float32)
            session = {"onnxruntime": onnxruntime_session, "openvino": openvino_session}[self.task["engine"]]
            self.infer = session(self.folder, self.task["kind"], self.task["threads"], pixels)
            if not self.infer:
                raise Refused(f"this processor has no {self.task['kind']}")
            self.infer()
        began = time.perf_counter()
        self.infer()
        return {"ms": (time.perf_counter() - began) * 1000}


def read_shape(path: str) -> Shape:
    import gguf

    fields = gguf.GGUFReader(path).fields

    def number(name: str) -> int:
        return int(fields[f"clip.vision.{name}"].contents())

    names = {"width": "embedding_length", "heads": "attention.head_count", "ffn": "feed_forward_length",
             "image": "image_size", "patch": "patch_size"}  # fmt: skip
    values = {key: number(name) for key, name in names.items()}
    is_clip = "clip.use_gelu" not in fields or not fields["clip.use_gelu"].contents()
    return Shape(blocks=number("block_count") - 1, is_clip=is_clip, **values)


def onnxruntime_session(folder: Path, kind: str, threads: int, pixels: np.ndarray) -> Callable[[], object] | None:
    import onnxruntime

    if kind == "bf16":
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    path = folder / {"f32": "fused.onnx", "int8": "fused-int8.onnx"}[kind]
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"pixels": pixels})


def openvino_session(folder: Path, kind: str, threads: int, pixels: np.ndarray) -> Callable[[], object] | None:
    import openvino

    core = openvino.Core()
    has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if kind == "bf16" and not has_bf16:
        return None
    # What is not an 8-bit product runs in bf16 where the processor has it: the faster way.
    precision = "f32" if kind == "f32" or not has_bf16 else "bf16"
    options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1,
               "PERFORMANCE_HINT": "LATENCY"}  # fmt: skip
    path = folder / {"f32": "plain.onnx", "bf16": "plain.onnx", "int8": "plain-int8.onnx"}[kind]
    request = core.compile_model(core.read_model(path), "CPU", options).create_infer_request()
    return lambda: request.infer({0: pixels})


def build(shape: Shape, folder: Path) -> None:
    """`plain.onnx` of standard operators, `fused.onnx` with onnxruntime's own attention, and each in 8 bits."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )  # fmt: skip

    folder.mkdir(parents=True, exist_ok=True)
    plain, fused = folder / "plain.onnx", folder / "fused.onnx"
    # Each file appears whole or not at all: written under another name first.
    unfinished = folder / "unfinished.onnx"
    if not plain.exists():
        Graph(shape, is_fused=False).save(unfinished)
        unfinished.rename(plain)
    if not fused.exists():
        Graph(shape, is_fused=True).save(unfinished)
        unfinished.rename(fused)
    if not (folder / "fused-int8.onnx").exists():
        quantize_dynamic(fused, unfinished, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"],
                         per_channel=True, extra_options={"DefaultTensorType": 1})  # fmt: skip
        unfinished.rename(folder / "fused-int8.onnx")

    class OnePicture(CalibrationDataReader):
        def __init__(self) -> None:
            numbers = np.random.default_rng(3).standard_normal((1, 3, shape.image, shape.image), dtype=np.float32)
            self.pictures = [{"pixels": numbers}]

        def get_next(self) -> dict | None:
            return self.pictures.pop() if self.pictures else None

    if not (folder / "plain-int8.onnx").exists():
        # The two products of attention stay floats, as they do in Margay.
        attention = [f"block{i}_{name}" for i in range(shape.blocks) for name in ("scores", "mixed")]
        quantize_static(plain, unfinished, OnePicture(), quant_format=QuantFormat.QDQ,
                        op_types_to_quantize=["MatMul"], nodes_to_exclude=attention, per_channel=True,
                        weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8)  # fmt: skip
        unfinished.rename(folder / "plain-int8.onnx")


class Graph:
    """The encoder as an ONNX graph with random weights."""

    def __init__(self, shape: Shape, is_fused: bool):
        from onnx import helper

        self.helper, self.shape = helper, shape
        self.random = np.random.default_rng(1)
        self.pool = self.random.standard_normal(1 << 23, dtype=np.float32) * np.float32(0.02)
        self.weights, self.nodes = [], []
        self.result = self.encoder(is_fused)

    def save(self, path: Path) -> None:
        import onnx

        s, info = self.shape, self.helper.make_tensor_value_info
        ins = [info("pixels", onnx.TensorProto.FLOAT, [1, 3, s.image, s.image])]
        outs = [info(self.result, onnx.TensorProto.FLOAT, [1, s.tokens, s.width])]
        graph = self.helper.make_graph(self.nodes, "vit", ins, outs, self.weights)
        sets = [self.helper.make_opsetid("", 20), self.helper.make_opsetid("com.microsoft", 1)]
        onnx.save(self.helper.make_model(graph, opset_imports=sets, ir_version=9), path)

    def encoder(self, is_fused: bool) -> str:
        s = self.shape
        side = s.image // s.patch
        x = self.op("Conv", ["pixels", self.weight("patches", s.width, 3, s.patch, s.patch)], "patched",
                    kernel_shape=[s.patch] * 2, strides=[s.patch] * 2)  # fmt: skip
        x = self.reshape(x, 1, s.width, side * side)
        x = self.op("Transpose", [x], "rows", perm=[0, 2, 1])
        if s.is_clip:
            x = self.op("Concat", [self.weight("class", 1, 1, s.width), x], "classed", axis=1)
        x = self.op("Add", [x, self.weight("positions", 1, s.tokens, s.width)], "placed")
        if s.is_clip:
            x = self.norm(x, "before")
        for i in range(s.blocks):
            x = self.block(x, f"block{i}_", is_fused)
        return x

    def block(self, x: str, name: str, is_fused: bool) -> str:
        s = self.shape
        y = self.norm(x, name + "norm1")
        q, k, v = (self.linear(y, name + letter, s.width, s.width) for letter in "qkv")
        if is_fused:
            y = self.op("MultiHeadAttention", [q, k, v], name + "attention", domain="com.microsoft",
                        num_heads=s.heads)  # fmt: skip
        else:
            y = self.attention(q, k, v, name)
        x = self.op("Add", [x, self.linear(y, name + "out", s.width, s.width)], name + "sum1")
        y = self.linear(self.norm(x, name + "norm2"), name + "up", s.width, s.ffn)
        y = self.linear(self.activation(y, name), name + "down", s.ffn, s.width)
        return self.op("Add", [x, y], name + "sum2")

    def attention(self, q: str, k: str, v: str, name: str) -> str:
        s = self.shape
        heads = [self.reshape(rows, 1, s.tokens, s.heads, s.head) for rows in (q, k, v)]
        orders = ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
        q, k, v = (self.op("Transpose", [h], h + "_turned", perm=order) for h, order in zip(heads, orders))
        scores = self.op("MatMul", [q, k], name + "scores")
        scaled = self.op("Mul", [scores, self.constant("scale", np.float32(s.head**-0.5))], name + "scaled")
        mixed = self.op("MatMul", [self.op("Softmax", [scaled], name + "softmax", axis=-1), v], name + "mixed")
        return self.reshape(self.op("Transpose", [mixed], name + "joined", perm=[0, 2, 1, 3]), 1, s.tokens, s.width)

    def activation(self, x: str, name: str) -> str:
        """CLIP's quick GELU, or SigLIP's tanh form."""
        if not self.shape.is_clip:
            return self.op("Gelu", [x], name + "gelu", approximate="tanh")
        steep = self.op("Mul", [x, self.constant("steepness", np.float32(1.702))], name + "steep")
        return self.op("Mul", [x, self.op("Sigmoid", [steep], name + "gate")], name + "gelu")

    def norm(self, x: str, name: str) -> str:
        ones = self.constant(name + "_weight", np.ones(self.shape.width, np.float32))
        zeros = self.constant(name + "_bias", np.zeros(self.shape.width, np.float32))
        return self.op("LayerNormalization", [x, ones, zeros], name, axis=-1, epsilon=1e-5)

    def linear(self, x: str, name: str, inputs: int, outputs: int) -> str:
        product = self.op("MatMul", [x, self.weight(name + "_weight", inputs, outputs)], name + "_product")
        return self.op("Add", [product, self.weight(name + "_bias", outputs)], name)

    def reshape(self, x: str, *shape: int) -> str:
        to = self.constant("to_" + "_".join(map(str, shape)), np.array(shape, np.int64))
        return self.op("Reshape", [x, to], x + "_shaped")

    def weight(self, name: str, *shape: int) -> str:
        count = int(np.prod(shape))
        start = int(self.random.integers(0, len(self.pool) - count))
        return self.constant(name, self.pool[start : start + count].reshape(shape))

    def constant(self, name: str, value: np.ndarray) -> str:
        from onnx import numpy_helper

        if all(name != known.name for known in self.weights):
            self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def op(self, kind: str, inputs: list[str], output: str, **attributes) -> str:
        self.nodes.append(self.helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output


if __name__ == "__main__":
    engine = Engine(json.loads(sys.argv[1]))
    serve({"build": engine.build, "encode": engine.encode})
