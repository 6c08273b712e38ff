#!/usr/bin/env python3
"""Margay beside its peers: the same files, the same machine, in turn, with the machine's limits of the same minute.

    run.py --install                                            the peers, into this Python
    run.py --margay target/release/margay --preset short --shapes DIR
    run.py --margay target/release/margay --models m.gguf --mmproj v.gguf --only prefill,decode --rounds 3
    run.py --report results.jsonl --html table.html             the table again, nothing measured

Every figure is written to a file (--out) as soon as it is there. Ctrl-C stops; the table of what there is comes out.
"""

import argparse
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import plan
import report
from engines import GENAI, Failed, Missing, Refused, Row, Setting, doctor, engines_of, inspect
from plan import DEPTHS, STAGES, Job
from work import Work, of_inspection

HERE = Path(__file__).parent
PEERS = ("llama-cpp-python", "openvino", "openvino-genai", "onnxruntime", "onnx")
# Limits older than this are measured again before an engine's turn, and after one that took longer.
FRESH_S = 20


def main() -> None:
    args = parse()
    if args.install:
        install()
        return
    if args.report:
        records = report.read(args.report)
    else:
        records = measure(args)
    print(report.text(records), end="")
    if args.json:
        args.json.write_text(json.dumps(report.summary(records), indent=1) + "\n")
    if args.html:
        args.html.write_text(report.html(records))


def numbers(words: str) -> list[int]:
    return [int(word) for word in words.split(",")]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true", help="install the peers into this Python, and stop")
    parser.add_argument("--report", type=Path, metavar="FILE", help="make the table of results that are there")
    parser.add_argument("--margay", type=Path, help="the binary")
    parser.add_argument("--ik", type=Path, metavar="LLAMA_BENCH", help="ik_llama.cpp's llama-bench, where there is one")
    parser.add_argument("--preset", choices=("short", "full"), help="a set of jobs on the files of shapes.py")
    parser.add_argument("--shapes", type=Path, default=Path("target/shapes"), help="folder of those files")
    parser.add_argument("--models", type=Path, nargs="+", default=[], help="text models instead of a preset")
    parser.add_argument("--mmproj", type=Path, nargs="+", default=[], help="vision files to go with --models")
    parser.add_argument("--image", type=Path, help="the picture; a pattern unless given")
    parser.add_argument("--only", default=",".join(STAGES), help="stages, with commas between: " + ",".join(STAGES))
    parser.add_argument("--threads", type=numbers, help="with --models: 1,2 unless given; else only these")
    parser.add_argument("--depths", type=numbers, help="with --models: 0,512,4096 unless given; else only these")
    parser.add_argument("--rounds", type=int, help="how often each job is done")
    parser.add_argument("--decode", type=int, help="tokens to decode")
    parser.add_argument("--engines", help="only these, e.g. Margay,llama.cpp")
    parser.add_argument("--minutes", type=float, help="begin no job after so long")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for one engine's turn")
    parser.add_argument("--boost", action="store_true", help="root on Linux: schedule the engines before all else")
    parser.add_argument("--work", type=Path, default=Path("target/peers"), help="folder for what is made on the way")
    parser.add_argument("--out", type=Path, help="where figures go; WORK/results.jsonl unless given, made anew")
    parser.add_argument("--json", type=Path, help="write the table as JSON")
    parser.add_argument("--html", type=Path, help="write the table and bars as a page")
    args = parser.parse_args()
    if not (args.install or args.report):
        if not args.margay or not args.margay.is_file():
            parser.error("--margay needs the path of the binary")
        if bool(args.preset) == bool(args.models):
            parser.error("either --preset or --models")
        unknown = set(args.only.split(",")) - set(STAGES)
        if unknown:
            parser.error(f"no such stage: {', '.join(sorted(unknown))}")
    return args


def install() -> None:
    """llama.cpp is built for this machine, which takes some minutes and a C++ compiler."""
    pip = [sys.executable, "-m", "pip"]
    if importlib.util.find_spec("pip") is None:
        uv = shutil.which("uv") or sys.exit("neither pip nor uv is here")
        pip = [uv, "pip"]
    where = ["--python", sys.executable] if pip[-2] != "-m" else []
    command = [*pip, "install", *where, "-r", str(HERE / "requirements.txt")]
    subprocess.run(command, check=True, env=os.environ | {"CMAKE_ARGS": "-DGGML_NATIVE=ON"})


def jobs_of(args: argparse.Namespace) -> list[Job]:
    if args.preset:
        jobs = {"short": plan.short, "full": plan.full}[args.preset](args.shapes)
        jobs = [job for job in jobs if not args.threads or job.threads in args.threads]
    else:
        jobs = plan.of_files(args.models, args.mmproj, args.threads or [2, 1], args.depths or list(DEPTHS))
    only = set(args.only.split(","))
    chosen = []
    for job in jobs:
        if args.depths and job.kind == "text":
            job = replace(job, depths=tuple(d for d in job.depths if d in args.depths))
        if only == {"prefill"}:
            job = replace(job, depths=tuple(d for d in job.depths if d > 0), decoded=2)
        if args.rounds:
            job = replace(job, rounds=args.rounds, genai_rounds=min(job.genai_rounds, args.rounds))
        if args.decode:
            job = replace(job, decoded=args.decode)
        if job.depths and job.stages() & only:
            chosen.append(job)
    return chosen


class Bench:
    """Does the jobs and keeps what comes out."""

    def __init__(self, args: argparse.Namespace):
        args.work.mkdir(parents=True, exist_ok=True)
        image = args.image or pattern(args.work / "picture.png")
        self.setting = Setting(args.margay.resolve(), args.ik, image, args.work.resolve(), args.boost, args.timeout)
        self.only = set(args.only.split(","))
        self.engines = set(args.engines.split(",")) if args.engines else None
        self.out = (args.out or args.work / "results.jsonl").open("w")
        self.records: list[dict] = []
        self.began = time.monotonic()
        self.limits: tuple[float, int, list[dict]] = (float("-inf"), 0, [])

    def keep(self, record: dict) -> None:
        self.records.append(record)
        self.out.write(json.dumps(record) + "\n")
        self.out.flush()

    def say(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self.began), 60)
        print(f"{minutes:3}:{seconds:02} {text}", file=sys.stderr, flush=True)

    def job(self, job: Job, title: str) -> None:
        self.say(f"{title} {job.describe()}")
        engines = {n: m for n, m in engines_of(job).items() if not self.engines or n in self.engines}
        absent = [path for path in (job.model, job.mmproj) if path and not path.is_file()]
        try:
            if absent:
                raise Missing(f"{absent[0].name} is not there")
            work = of_inspection(inspect(self.setting, job))
        except (Missing, Refused, Failed) as e:
            for engine in engines:
                self.keep(self.record(job, engine, 0) | {"status": "not run", "note": str(e)})
            self.say(f"  {e}")
            return
        for number in range(job.rounds):
            # Nobody is always the first after the others.
            names = list(engines)
            shift = number % len(names)
            for engine in names[shift:] + names[:shift]:
                self.turn(job, engine, engines[engine], number, work)

    def turn(self, job: Job, engine: str, measure, number: int, work: Work) -> None:
        record = self.record(job, engine, number)
        if engine == GENAI and number >= job.genai_rounds:
            if job.genai_rounds == 0 and number == 0:
                self.keep(record | {"status": "not run", "note": "left out of this preset"})
            return
        began = time.monotonic()
        try:
            limits = self.limits_now(job.threads)
            rows = measure(self.setting, job)
            limits = better(limits, self.limits_now(job.threads))
        except (Missing, Refused, Failed) as e:
            status = {Missing: "missing", Refused: "refused", Failed: "failed"}[type(e)]
            self.keep(record | {"status": status, "note": str(e)})
            self.say(f"  round {number + 1} of {job.rounds}  {engine}: {status}: {e}")
            return
        wanted = [row for row in rows if self.wants(row, job)]
        for row in wanted:
            self.keep(record | {"status": "ok", "limits": limits} | asdict(row) | judge(row, job, engine, work, limits))
        told = ", ".join(figure(row) for row in wanted)
        self.say(f"  round {number + 1} of {job.rounds}  {engine}: {told}  ({time.monotonic() - began:.0f} s)")

    def wants(self, row: Row, job: Job) -> bool:
        return job.kind != "text" or row.stage in self.only

    def record(self, job: Job, engine: str, number: int) -> dict:
        mmproj = job.mmproj.name if job.mmproj else None
        return {"kind": job.kind, "model": job.model.name, "mmproj": mmproj, "threads": job.threads,
                "depths": job.depths, "decoded": job.decoded, "engine": engine, "round": number,
                "time": time.strftime("%Y-%m-%dT%H:%M:%S")}  # fmt: skip

    def limits_now(self, threads: int) -> list[dict]:
        when, count, limits = self.limits
        if count != threads or time.monotonic() - when > FRESH_S:
            limits = doctor(self.setting, threads)
            self.limits = (time.monotonic(), threads, limits)
        return limits


def better(before: list[dict], after: list[dict]) -> list[dict]:
    """The greater of two measurements of each limit: a machine may be disturbed, but never exceeds itself."""
    return [max(pair, key=lambda entry: entry["giga_per_second"]) for pair in zip(before, after, strict=True)]


def figure(row: Row) -> str:
    depth = f" {row.depth}" if row.depth else ""
    variant = f" ({row.variant})" if row.variant else ""
    return f"{row.stage}{depth} {row.value:.4g} {row.unit}{variant}"


def judge(row: Row, job: Job, engine: str, work: Work, limits: list[dict]) -> dict:
    """The share of the limit that a figure reaches, and what memory was promised for it."""

    def limit(name: str) -> float | None:
        rates = [entry["giga_per_second"] * 1e9 for entry in limits if entry["name"] == name]
        return max(rates, default=None)

    result: dict = {}
    name, needed = None, None
    if row.stage == "prefill":
        name, needed = "int8", row.value * work.prompt_operations
    elif row.stage == "decode":
        bytes_read = work.weight_bytes + work.cache_bytes * (max(row.depth, 2) + job.decoded / 2)
        name, needed = "memory read", row.value * bytes_read
    elif row.stage == "encode" and work.encode_operations:
        is_whole = row.more.get("without") != "projector"
        operations = work.encode_operations + (work.project_operations if is_whole else 0)
        is_bf16 = "bf16" in engine or (work.encoder_type == "bf16" and is_whole and limit("bf16"))
        name = "int8" if "int8" in engine else "bf16" if is_bf16 else "float32"
        needed = operations * 1000 / row.value
    if name and limit(name):
        result = {"limit": name, "share": needed / limit(name)}
    if "context" in row.more:
        files_and_cache = work.file_bytes + work.cache_bytes * row.more["context"]
        result["promise_bytes"] = 1.05 * files_and_cache
    return result


def measure(args: argparse.Namespace) -> list[dict]:
    jobs = jobs_of(args)
    if not jobs:
        sys.exit("nothing to do: no job has the stages, threads and depths that were asked for")
    bench = Bench(args)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    bench.keep({"kind": "machine"} | machine(bench.setting) | {"boost": args.boost})
    try:
        for number, job in enumerate(jobs):
            title = f"[{number + 1} of {len(jobs)}]"
            if args.minutes and time.monotonic() - bench.began > args.minutes * 60:
                bench.say(f"{title} {job.describe()}: not begun, {args.minutes:g} minutes are over")
                for engine in engines_of(job):
                    late = {"status": "not run", "note": f"{args.minutes:g} minutes were over"}
                    bench.keep(bench.record(job, engine, 0) | late)
                continue
            bench.job(job, title)
    except KeyboardInterrupt:
        bench.say("stopped; the table has what was measured until here")
    finally:
        # Links, and what Margay packed.
        shutil.rmtree(bench.setting.folder / "models", ignore_errors=True)
    return bench.records


def machine(setting: Setting) -> dict:
    """What this is, so that a table says where it comes from."""
    told = json.loads(setting.run([str(setting.margay), "doctor", "--json"]))
    versions = {}
    for name in PEERS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    isa = next(entry["name"] for entry in told["instruction_sets"] if entry["chosen"])
    return {"cpu": told["cpu"], "architecture": told["architecture"], "cores": told["logical_cores"], "isa": isa,
            "memory_bytes": told["memory"]["total_bytes"], "system": platform.platform(terse=True),
            "margay": told["margay"], "versions": versions, "date": time.strftime("%Y-%m-%d")}  # fmt: skip


def pattern(path: Path) -> Path:
    """A picture of 640 x 480 with gradients and squares."""
    if not path.exists():
        from PIL import Image

        pixels = bytes(
            itertools.chain.from_iterable(
                (x * 255 // 640, y * 255 // 480, (x // 16 + y // 16) % 2 * 200) for y in range(480) for x in range(640)
            )
        )
        Image.frombytes("RGB", (640, 480), pixels).save(path)
    return path


if __name__ == "__main__":
    main()
