"""Whether llama.cpp's own quantizer makes the same bytes from the same importance matrix as `--method imatrix`.

    same_as_llama.py --margay target/release/margay --model wide.gguf --calibration DIR

A line a type; exits with 1 where a tensor differs. Needs llama-cpp-python (`bench/peers/run.py --install`).
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import llama_quantize

# As llama.h names the types of files in which every matrix has one.
TYPES = {"q8_0": 7, "q6_k": 18, "q5_k": 16, "q5_1": 9, "q5_0": 8, "q4_k": 14, "q4_1": 3, "q4_0": 2, "iq4_nl": 25,
         "iq4_xs": 30, "q3_k": 11, "q2_k": 10}  # fmt: skip
RECIPE = """about = "as llama.cpp"
[[rule]]
stage = ["text"]
role = ["attention", "ffn"]
type = "{}"
[[rule]]
stage = ["text"]
role = ["token_embedding", "output"]
type = "q8_0"
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--margay", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="float16 GGUF")
    parser.add_argument("--calibration", type=Path, required=True, help="a folder of pictures")
    args = parser.parse_args()
    differ = False
    with tempfile.TemporaryDirectory() as temp:
        matrix, theirs, ours, recipe = (Path(temp) / name for name in ("matrix.gguf", "theirs.gguf", "ours.gguf", "r.toml"))
        quiet = dict(check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        subprocess.run([args.margay, "calibrate", args.model, "--images", args.calibration, "-o", matrix], **quiet)
        for name, file_type in TYPES.items():
            recipe.write_text(RECIPE.format(name))
            words = [args.margay, "quantize", args.model, "-o", ours, "--recipe", recipe]
            subprocess.run([*words, "--method", "imatrix", "--calibration", matrix], **quiet)
            llama_quantize.run(args.model, theirs, file_type, matrix, threads=2)
            tensors = [{t.name: (t.tensor_type, t.data.tobytes()) for t in gguf.GGUFReader(f).tensors} for f in (theirs, ours)]
            others = [tensor for tensor in tensors[0] if tensors[0][tensor] != tensors[1].get(tensor)]
            print(f"{name}: {len(others)} of {len(tensors[0])} tensors differ{': ' if others else ''}{', '.join(others[:3])}")
            differ |= bool(others)
    sys.exit(differ)


if __name__ == "__main__":
    main()
