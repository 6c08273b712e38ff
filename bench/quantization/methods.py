"""How well each method keeps the answers, at each number of bits, on each side of the model.

    methods.py --margay target/release/margay --model wide.gguf --suite SUITE --calibration DIR --out cells.jsonl
    methods.py --report cells.jsonl --html cells.html           the table of what was measured; nothing runs

The model is margay-nano, 256 channels wide (`training/nano/widen.py`), so that every format fits; SUITE is what
`training/nano/suite.py` writes, DIR another such folder, of other pictures: `--seed calibration`. A cell is a file
made by `margay quantize` and judged by `margay compare` against float16: answers to the whole suite, and the
divergence of the logits (KL, nats, mean over the positions of question and answer of 512 of its questions: what stands
behind a visual token nobody reads). `imatrix` is what llama.cpp's quantizer makes, byte for byte: `same_as_llama.py`.

Each cell is appended to --out when it is measured. Ctrl-C stops; the same command goes on behind it.
"""

import argparse
import html as escape_html
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

TYPES = {8: "q8_0", 6: "q6_k", 5: "q5_k", 4: "q4_k", 3: "q3_k", 2: "q2_k"}
SIDES = {"vision": ["encode", "project"], "decoder": ["text"], "both": ["encode", "project", "text"]}
METHODS = ["rtn", "imatrix", "clip", "smoothquant", "awq+rtn", "mbq", "awq", "mbq+clip", "qvlm", "gptq", "awq+gptq", "vlmq", "outlier", "outlier+gptq"]
# Those that tell visual tokens from others, which a tower cannot.
BY_MODALITY = ("mbq", "mbq+clip", "vlmq")
# At 5 bits and more methods do not differ by what could be measured here.
AT_MANY_BITS = ("rtn", "imatrix", "gptq")
WALKS = ("gptq", "vlmq")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--margay", type=Path)
    parser.add_argument("--model", type=Path, help="float16 GGUF")
    parser.add_argument("--suite", type=Path)
    parser.add_argument("--calibration", type=Path, help="a suite of other pictures")
    parser.add_argument("--out", type=Path, help="where cells are kept")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--bits", default="4,3,2,8,6,5")
    parser.add_argument("--sides", default="decoder,both,vision")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--report", type=Path, metavar="FILE")
    parser.add_argument("--html", type=Path)
    args = parser.parse_args()
    if not args.report:
        measure(args)
    cells = read(args.report or args.out)
    print(markdown(cells))
    if args.html:
        args.html.write_text(page(cells))


def read(path: Path) -> list[dict]:
    """The last cell of each kind."""
    cells = {}
    if path.exists():
        for line in path.read_text().splitlines():
            cell = json.loads(line)
            cells[cell["side"], cell["bits"], cell["method"]] = cell
    return list(cells.values())


def wanted(args: argparse.Namespace) -> list[tuple[str, int, str]]:
    methods = args.methods.split(",")
    cells = []
    for bits in map(int, args.bits.split(",")):
        for side in args.sides.split(","):
            for method in methods:
                if side == "vision" and method in BY_MODALITY:
                    continue
                if bits > 4 and method not in AT_MANY_BITS:
                    continue
                cells.append((side, bits, method))
    return cells


def measure(args: argparse.Namespace) -> None:
    done = {(cell["side"], cell["bits"], cell["method"]) for cell in read(args.out)}
    cells = [cell for cell in wanted(args) if cell not in done]
    with tempfile.TemporaryDirectory() as temp:
        bench = Bench(args, Path(temp))
        for at, (side, bits, method) in enumerate(cells):
            print(f"{at + 1} of {len(cells)}: {side}, {bits} bits, {method}", file=sys.stderr, flush=True)
            cell = bench.cell(side, bits, method)
            with args.out.open("a") as file:
                file.write(json.dumps(cell) + "\n")


class Bench:
    def __init__(self, args: argparse.Namespace, temp: Path):
        self.args, self.temp = args, temp
        questions = {}
        for line in (args.calibration / "questions.jsonl").read_text().splitlines():
            question = json.loads(line)
            questions.setdefault(question["image"], question)
        # One question a picture, in the order of the pictures; pictures without one are left out.
        images, lines = temp / "images", []
        images.mkdir()
        for name, question in sorted(questions.items()):
            (images / name).symlink_to((args.calibration / "images" / name).resolve())
            lines.append(f"{question['question']}\t{question['answer']}")
        (temp / "text").write_text("\n".join(lines) + "\n")
        self.asked = ["--images", images, "--text", temp / "text", "--samples", str(len(lines))]
        self.stats, self.balanced = temp / "stats.safetensors", temp / "balanced.safetensors"
        self.margay("calibrate", args.model, *self.asked, "-o", self.stats)
        # With gradients, ranges and importances go by them too: only for the methods that are about that.
        self.margay("calibrate", args.model, *self.asked, "--gradients", "-o", self.balanced)

    def margay(self, *words: object) -> str:
        command = [str(word) for word in (self.args.margay.resolve(), *words)]
        done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
        return done.stdout

    def cell(self, side: str, bits: int, method: str) -> dict[str, object]:
        out = self.temp / "cell.gguf"
        self.quantize(side, bits, method, out)
        told = json.loads(
            self.margay(
                "compare", self.args.model, out, "--suite", "nano", "--data", self.args.suite, "--samples", 512,
                "--ref-answers", self.args.out.with_suffix(".reference"), "--threads", self.args.threads, "--json",
            )
        )  # fmt: skip
        suite, off = told["suite"]["paired"], told["difference"]
        of_text = [kind for name, kind in off["kinds"] if name != "visual"]
        positions = sum(kind["positions"] for kind in of_text)
        return dict(
            side=side, bits=bits, method=method, bytes=sum(file.stat().st_size for file in self.files(out)),
            accuracy=suite["candidate"]["value"], low=suite["candidate"]["interval"]["low"],
            high=suite["candidate"]["interval"]["high"], questions=suite["candidate"]["questions"], drop=suite["drop"],
            drop_interval=[suite["drop_interval"][end] for end in ("low", "high")], reference=suite["reference"]["value"],
            kl=sum(kind["mean"] * kind["positions"] for kind in of_text) / max(positions, 1),
            kl_of={name: kind["mean"] for name, kind in off["kinds"]} | {"all": off["all"]["mean"]},
            same_top1={name: kind["same_top1"] for name, kind in off["kinds"]},
        )  # fmt: skip

    def files(self, out: Path) -> list[Path]:
        return [out, out.with_name("mmproj-" + out.name)]

    def quantize(self, side: str, bits: int, method: str, out: Path) -> None:
        recipe = self.temp / "recipe.toml"
        stages = json.dumps(SIDES[side])
        recipe.write_text(
            f'about = "{side} at {bits} bits"\n'
            f'[[rule]]\nstage = {stages}\nrole = ["attention", "ffn", "projector"]\ntype = "{TYPES[bits]}"\n'
            + ('[[rule]]\nstage = ["text"]\nrole = ["token_embedding", "output"]\ntype = "q8_0"\n' if side != "vision" else "")
        )
        words = ["quantize", self.args.model, "-o", out, "--recipe", recipe, "--method", method]
        if method != "rtn":
            words += ["--calibration", self.balanced if method in BY_MODALITY else self.stats]
        if any(part in WALKS for part in method.split("+")):
            words += self.asked
        self.margay(*words)


def ordered(cells: list[dict]) -> list[tuple[str, list[str], list[int]]]:
    """Of each side that was measured, the methods and bits."""
    order = METHODS
    sides = []
    for side in SIDES:
        here = [cell for cell in cells if cell["side"] == side]
        methods = sorted({cell["method"] for cell in here}, key=lambda m: order.index(m) if m in order else len(order))
        if here:
            sides.append((side, methods, sorted({cell["bits"] for cell in here}, reverse=True)))
    return sides


def markdown(cells: list[dict]) -> str:
    """Accuracy with its interval, and KL in 1/1000 nat, a table a side."""
    if not cells:
        return "nothing was measured"
    by = {(cell["side"], cell["bits"], cell["method"]): cell for cell in cells}
    first = cells[0]
    lines = [f"{first['questions']} questions; float16 answers {first['reference']:.2f}%"]
    for side, methods, bits in ordered(cells):
        lines += ["", f"**{side}**: % right (95% interval), mean KL in 1/1000 nat", ""]
        lines += ["| bits (MB) | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
        for b in bits:
            sizes = {by[side, b, m]["bytes"] for m in methods if (side, b, m) in by}
            size = "–".join(f"{size / 1e6:.2f}" for size in sorted({min(sizes), max(sizes)}))
            row = []
            for method in methods:
                cell = by.get((side, b, method))
                row.append(
                    f"{cell['accuracy']:.1f} ({cell['low']:.1f}–{cell['high']:.1f}), {cell['kl'] * 1000:.3g}" if cell else ""
                )
            lines.append(f"| {b} ({size}) | " + " | ".join(row) + " |")
    return "\n".join(lines)


STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#1c2430;background:#fff}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;margin:1rem 0}
td,th{padding:.25rem .7rem;border-bottom:1px solid #d9dee6;text-align:right;white-space:nowrap}
svg{max-width:100%;height:auto} text{font:12px system-ui,sans-serif;fill:currentColor} .scroll{overflow-x:auto}
.few{color:#b3261e}
@media (prefers-color-scheme:dark){body{color:#e3e7ee;background:#14181f}td,th{border-color:#333b47}.few{color:#ff8a80}}
"""
COLOURS = ["#888", "#4e79a7", "#9c755f", "#edc948", "#ffbe7d", "#d4a6c8", "#f28e2b", "#b07aa1", "#e15759", "#59a14f",
           "#86bcb6", "#1f9bcf"]  # fmt: skip


def page(cells: list[dict]) -> str:
    by = {(cell["side"], cell["bits"], cell["method"]): cell for cell in cells}
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>Methods and bits</title><style>{STYLE}</style><h1>What quantization keeps, by method and bits</h1>",
        f"<p>{cells[0]['questions']} held-out questions; float16 answers {cells[0]['reference']:.2f}% of them.",
    ]
    for side, methods, bits in ordered(cells):
        parts.append(f"<h2>{side}</h2>" + chart(by, side, methods, bits))
        head = "".join(f"<th>{escape_html.escape(m)}" for m in methods)
        body = ""
        for b in bits:
            body += f"<tr><th>{b} bits"
            for method in methods:
                cell = by.get((side, b, method))
                few = " class=few" if cell and cell["drop_interval"][0] > 1 else ""
                body += f"<td{few}>{cell['accuracy']:.1f} · {cell['kl']:.2g}" if cell else "<td>"
        parts.append(f"<div class=scroll><table><tr><th>% right · KL{head}{body}</table></div>")
    parts.append("<p>Red: more than a point is lost, by the lower end of the paired 95% interval.")
    return "\n".join(parts) + "\n"


def chart(by: dict, side: str, methods: list[str], bits: list[int]) -> str:
    """Mean KL over bits, logarithmic: the lower the better."""
    values = [cell["kl"] for (s, _, _), cell in by.items() if s == side and cell["kl"] > 0]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    left, top, width, height = 70, 20, 620, 300
    x = lambda b: left + (8 - b) / 6 * width  # noqa: E731
    y = lambda kl: top + (high - math.log10(max(kl, 1e-9))) / max(high - low, 1) * height  # noqa: E731
    shapes = []
    for power in range(low, high + 1):
        at = y(10**power)
        shapes.append(f'<line x1="{left}" x2="{left + width}" y1="{at:.1f}" y2="{at:.1f}" stroke="currentColor" opacity=".15"/>')
        shapes.append(f'<text x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    for b in bits:
        shapes.append(f'<text x="{x(b):.1f}" y="{top + height + 20}" text-anchor="middle">{b} bits</text>')
    for i, method in enumerate(methods):
        points = [(x(b), y(by[side, b, method]["kl"])) for b in bits if (side, b, method) in by]
        colour = COLOURS[i % len(COLOURS)]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        shapes.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        shapes += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.5" fill="{colour}"/>' for px, py in points]
        shapes.append(f'<rect x="{left + width + 20}" y="{top + i * 20}" width="12" height="12" fill="{colour}"/>')
        shapes.append(f'<text x="{left + width + 40}" y="{top + i * 20 + 11}">{escape_html.escape(method)}</text>')
    label = f'<text x="{left}" y="12">mean KL of the logits, nats: lower is better</text>'
    return f'<svg viewBox="0 0 860 {top + height + 34}" role="img" aria-label="KL by bits, {side}">{label}{"".join(shapes)}</svg>'


if __name__ == "__main__":
    main()
