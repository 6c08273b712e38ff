"""llama.cpp's own quantizer with an importance matrix, through the library of llama-cpp-python."""

import ctypes
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

Q8_0 = 8


class Entry(ctypes.Structure):
    """llama_model_imatrix_data of llama.h; a list ends with a name of NULL."""

    _fields_ = [("name", ctypes.c_char_p), ("data", ctypes.POINTER(ctypes.c_float)), ("size", ctypes.c_size_t)]


def importance(file: Path) -> dict[str, np.ndarray]:
    """Mean squares of each weight's input, as llama-quantize takes them from a file."""
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(file).tensors}
    found = {}
    for name, sums in tensors.items():
        if name.endswith(".in_sum2"):
            weight = name.removesuffix(".in_sum2")
            counts = np.asarray(tensors[f"{weight}.counts"], np.float32).reshape(-1, 1)
            sums = np.asarray(sums, np.float32).reshape(len(counts), -1)
            found[weight] = np.ascontiguousarray(sums / np.maximum(counts, 1)).ravel()
    return found


def run(source: Path, out: Path, file_type: int, matrix: Path | None, threads: int, pure: bool = True) -> None:
    """Quantizes every matrix to one type, but for the table and the head, which get 8 bits."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype, params.pure = threads, file_type, pure
    if pure:
        params.output_tensor_type = params.token_embedding_type = Q8_0
    if matrix:
        values = importance(matrix)
        entries = (Entry * (len(values) + 1))()
        for entry, (name, data) in zip(entries, values.items(), strict=False):
            entry.name, entry.size = name.encode(), data.size
            entry.data = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = ctypes.cast(entries, type(params.imatrix))
    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, None)
    if llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params)):
        raise RuntimeError(f"llama.cpp could not quantize {source}")
