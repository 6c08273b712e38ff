"""Times one run of an ONNX file on random inputs of its shapes: FILE THREADS. Writes a line of JSON."""

import json
import sys
import time

import numpy
import onnxruntime

KINDS = {"float16": "float16", "float": "float32", "double": "float64", "int64": "int64", "int32": "int32"}

path, threads = sys.argv[1], int(sys.argv[2])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = threads
began = time.perf_counter()
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
loaded = time.perf_counter()
random = numpy.random.default_rng(0)
feeds = {}
for entry in session.get_inputs():
    # An axis without a size is of one picture.
    shape = [size if isinstance(size, int) and size > 0 else 1 for size in entry.shape]
    kind = KINDS.get(entry.type.removeprefix("tensor(").removesuffix(")"))
    if kind is None:
        sys.exit(f"{path}: input {entry.name} is of {entry.type}, which no picture is")
    feeds[entry.name] = random.standard_normal(shape).astype(kind)
session.run(None, feeds)
first = time.perf_counter()
session.run(None, feeds)
ended = time.perf_counter()
print(json.dumps({"load_ms": (loaded - began) * 1e3, "encode_ms": (ended - first) * 1e3}))
