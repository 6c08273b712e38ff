#!/usr/bin/env python3
"""Margay beside its peers: the same files, the same machine, in turn, with the machine's limits of the same minute.

    run.py --install                                            the peers, into this Python
    run.py --margay target/release/margay --preset short --shapes DIR
    run.py --margay target/release/margay --models m.gguf --mmproj v.gguf --only prefill,decode --rounds 3
    run.py --report results.jsonl --html table.html             the table again, nothing measured

Every figure is written to a file (--out) as soon as it is there. Ctrl-C stops; the table of what there is comes out.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import plan
import report
from engines import GENAI, IK, LLAMA, MARGAY, VITS, Player, Row, Setting
from engines import build_vit, ik_text, load, memory, names_of, players, rate, shared
from live import Failed, Missing, Refused
from plan import DEPTHS, SLICES, STAGES, Job

HERE = Path(__file__).parent
PEERS = ("llama-cpp-python", "openvino", "openvino-genai", "onnxruntime", "onnx")


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
            job = replace(job, depths=tuple(d for d in job.depths if d > 0))
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

    def keep(self, record: dict) -> None:
        self.records.append(record)
        self.out.write(json.dumps(record) + "\n")
        self.out.flush()

    def say(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self.began), 60)
        print(f"{minutes:3}:{seconds:02} {text}", file=sys.stderr, flush=True)

    def job(self, job: Job, title: str) -> None:
        self.say(f"{title} {job.describe()}")
        names = [name for name in names_of(job) if not self.engines or name in self.engines]
        absent = [path for path in (job.model, job.mmproj) if path and not path.is_file()]
        if absent:
            for engine in names:
                self.missing(job, engine, Missing(f"{absent[0].name} is not there"))
            return
        if job.kind in ("load", "memory"):
            for number, engine in rotating(names, job.rounds):
                if engine != GENAI or number < job.genai_rounds:
                    self.separate({"load": load, "memory": memory}[job.kind], job, engine, number)
        elif job.kind == "two-process":
            self.two_processes(job, names)
        else:
            self.together(job, names)

    def together(self, job: Job, names: list[str]) -> None:
        """All engines stay, and take turns."""
        if any(name in VITS for name in names):
            with contextlib.suppress(Missing):
                build_vit(self.setting, job)
        with contextlib.ExitStack() as stack:
            ready: list[Player] = []
            for engine in names:
                if engine == IK:
                    self.separate(lambda setting, job, _: ik_text(setting, job), job, IK, 0)
                    continue
                try:
                    players_of = players(self.setting, job, engine, stack)
                    for player in players_of:
                        warm_up(player, job)
                    ready += players_of
                except (Missing, Refused, Failed) as e:
                    self.missing(job, engine, e)
            # The limits, and how much work a figure is, are told by Margay.
            judge = next((p for p in ready if p.engine == MARGAY), None)
            if not judge:
                self.say("  without Margay no limits are known")
            turns = {"text": self.text, "encode": self.encode, "study": self.study}[job.kind]
            turns(job, ready, judge)

    def text(self, job: Job, ready: list[Player], judge: Player | None) -> None:
        staying = [p for p in ready if p.engine != GENAI]
        for depth in job.depths:
            order = {"do": "prefill", "tokens": max(depth, 1)}
            for number in range(job.rounds):
                found = self.turns(job, ready if number < job.genai_rounds else staying, judge, number,
                                   lambda player: prefill(player, order, depth, job))  # fmt: skip
                self.tell(f"round {number + 1} of {job.rounds}", found)
            found = []
            for number in range(job.rounds * SLICES):
                found += self.turns(job, staying, judge, number, lambda player: decode(player, job, depth))
            self.tell(f"{job.rounds * SLICES} rounds", found)
        if judge:
            self.keep_promise(job, judge)

    def keep_promise(self, job: Job, judge: Player) -> None:
        """What the whole job took of memory, against what was promised."""
        held = judge.ask({"do": "memory"})
        peak = held["peak_rss_bytes"] - held["probe_bytes"]
        more = {"promise_bytes": 1.05 * (held["files_bytes"] + held["cache_bytes"]), "peak_rss_bytes": peak}
        row = Row("held", peak / 1e6, "MB", max(job.depths), more=more)
        self.keep(self.record(job, MARGAY, 0) | {"status": "ok", "limits": []} | asdict(row) | promise(row))

    def encode(self, job: Job, ready: list[Player], judge: Player | None) -> None:
        for number in range(job.rounds):
            found = self.turns(job, ready, judge, number, encode)
            self.tell(f"round {number + 1} of {job.rounds}", found)

    def study(self, job: Job, ready: list[Player], judge: Player | None) -> None:
        for number in range(job.rounds):
            found = self.turns(job, ready, judge, number, lambda player: study(player, job))
            self.tell(f"round {number + 1} of {job.rounds}", found)

    def turns(self, job: Job, ready: list[Player], judge: Player | None, number: int, measure) -> list[tuple]:
        """Each player once, nobody always first, with the limits before and after."""
        shift = number % max(len(ready), 1)
        limits = judge.ask({"do": "limits"})["limits"] if judge else []
        found = []
        for player in ready[shift:] + ready[:shift]:
            try:
                found += [(player, row) for row in measure(player)]
            except (Refused, Failed) as e:
                self.keep(self.record(job, player.engine, number) | failure(e))
                self.say(f"  {player.engine}: {e}")
        if judge:
            limits = better(limits, judge.ask({"do": "limits"})["limits"])
        known = next((row for player, row in found if player is judge), None)
        for _, row in found:
            now = row.more.get("limit", {})
            limits = [entry | now if entry["name"] == now.get("name") else entry for entry in limits]
        for player, row in found:
            if row.stage not in STAGES or row.stage in self.only:
                self.keep(self.record(job, player.engine, number) | {"status": "ok", "limits": limits}
                          | asdict(row) | share(row, player.engine, known, limits))  # fmt: skip
        return found

    def separate(self, measure, job: Job, engine: str, number: int) -> None:
        """A figure of a process that does not stay."""
        try:
            rows = measure(self.setting, job, engine)
        except (Missing, Refused, Failed) as e:
            self.keep(self.record(job, engine, number) | failure(e))
            self.say(f"  {engine}: {e}")
            return
        for row in rows:
            self.keep(self.record(job, engine, number) | {"status": "ok", "limits": []} | asdict(row) | promise(row))
        self.say(f"  round {number + 1} of {job.rounds}  {engine}: {', '.join(figure(row) for row in rows)}")

    def two_processes(self, job: Job, names: list[str]) -> None:
        for engine in names:
            try:
                with shared(self.setting, job, engine) as measure:
                    for number in range(job.rounds):
                        rows = measure()
                        for row in rows:
                            self.keep(self.record(job, engine, number) | {"status": "ok", "limits": []} | asdict(row))
                        self.say(f"  round {number + 1} of {job.rounds}  {engine}: {', '.join(map(figure, rows))}")
            except (Missing, Refused, Failed) as e:
                self.missing(job, engine, e)

    def missing(self, job: Job, engine: str, why: Exception) -> None:
        self.keep(self.record(job, engine, 0) | failure(why))
        self.say(f"  {engine}: {why}")

    def tell(self, what: str, found: list[tuple]) -> None:
        groups: dict[tuple, list[float]] = {}
        for player, row in found:
            groups.setdefault((player.engine, player.variant, row.stage, row.unit), []).append(row.value)
        told = [f"{engine}{f' ({variant})' if variant else ''} {stage} {statistics.median(values):.4g} {unit}"
                for (engine, variant, stage, unit), values in groups.items()]  # fmt: skip
        self.say(f"  {what}: {', '.join(told)}")

    def record(self, job: Job, engine: str, number: int) -> dict:
        mmproj = job.mmproj.name if job.mmproj else None
        return {"kind": job.kind, "model": job.model.name, "mmproj": mmproj, "threads": job.threads,
                "depths": job.depths, "decoded": job.decoded, "engine": engine, "round": number,
                "time": time.strftime("%Y-%m-%dT%H:%M:%S")}  # fmt: skip


# --- turns ---


def warm_up(player: Player, job: Job) -> None:
    """Loads, and touches every weight and buffer once."""
    if job.kind == "encode":
        player.ask({"do": "encode"})
    elif player.engine == GENAI:
        player.ask({"do": "answer", "prompt": 2, "answer": 2})
    else:
        player.ask({"do": "prefill", "tokens": 32})
        player.ask({"do": "decode", "tokens": 1})
        if job.kind == "study":
            player.live.ask({"do": "encode"})


def prefill(player: Player, order: dict, depth: int, job: Job) -> list[Row]:
    if player.engine == GENAI:
        told = player.ask({"do": "answer", "prompt": max(depth, 2), "answer": 2 * job.decoded + 1})
        decoded = Row("decode", 1000 / told["token_ms"], "tok/s", depth)
        return [Row("prefill", rate(depth, told["prefill_ms"]), "tok/s", depth), decoded] if depth else [decoded]
    told = player.ask(order)
    more = sustained(player, "int8", told) if depth else {}
    row = Row("prefill", rate(order["tokens"], told["ms"]), "tok/s", depth, player.variant, more=more, **work_of(told))
    return [row] if depth else []


def decode(player: Player, job: Job, depth: int) -> list[Row]:
    told = player.ask({"do": "decode", "tokens": job.decoded})
    each = {key: value / job.decoded for key, value in work_of(told).items() if value}
    more = sustained(player, "memory read", told)
    return [Row("decode", rate(job.decoded, told["ms"]), "tok/s", depth, player.variant, more=more, **each)]


def sustained(player: Player, name: str, told: dict) -> dict:
    """What bare instructions of Margay do right behind its figure and for as long: the best moments that `limits` tells of
    are shorter than any stage."""
    if not player.engine.startswith(MARGAY):
        return {}
    rate_now = player.ask({"do": "sustain", "limit": name, "ms": told["ms"]})["giga_per_second"]
    return {"limit": {"name": name, "giga_per_second": rate_now}} if rate_now else {}


def limit_of_encoder(engine: str) -> str:
    return "int8" if "int8" in engine else "bfloat16" if "bf16" in engine else "float32"


def encode(player: Player) -> list[Row]:
    told = player.ask({"do": "encode"})
    more = {"without": "projector"} if player.engine in VITS else {}
    more |= sustained(player, limit_of_encoder(player.engine), told)
    return [Row("encode", told["ms"], "ms", more=more, **work_of(told))]


def study(player: Player, job: Job) -> list[Row]:
    prompt, answer = job.depths[0], job.decoded
    if player.engine == LLAMA:
        told = player.ask({"do": "study", "prompt": prompt, "answer": answer})
    else:
        # Rows of the picture cost what tokens cost. The first token of an answer comes from prefill.
        orders = {"encode": {}, "prefill": {"tokens": prompt}, "decode": {"tokens": answer - 1}}
        told = {f"{stage}_ms": player.ask({"do": stage} | order)["ms"] for stage, order in orders.items()}
        told["ms"] = sum(told.values())
    return [Row("study", told["ms"], "ms", 0, player.variant, more=told)]


def work_of(told: dict) -> dict:
    return {"operations": told.get("operations"), "bytes": told.get("bytes")}


def rotating(names: list[str], rounds: int) -> Iterator[tuple[int, str]]:
    for number in range(rounds):
        shift = number % len(names)
        yield from ((number, name) for name in names[shift:] + names[:shift])


def failure(why: Exception) -> dict:
    return {"status": {Missing: "missing", Refused: "refused"}.get(type(why), "failed"), "note": str(why)}


def better(before: list[dict], after: list[dict]) -> list[dict]:
    """The greater of two measurements of each limit: a machine may be disturbed, but never exceeds itself."""
    return [max(pair, key=lambda entry: entry["giga_per_second"]) for pair in zip(before, after, strict=True)]


def figure(row: Row) -> str:
    return f"{row.stage} {row.value:.4g} {row.unit}"


def promise(row: Row) -> dict:
    return {"promise_bytes": row.more["promise_bytes"]} if "promise_bytes" in row.more else {}


def share(row: Row, engine: str, known: Row | None, limits: list[dict]) -> dict:
    """The share of the limit that a figure reaches; work is what Margay counts of the same stage."""
    if not (known and known.operations and limits):
        return {}

    def limit(name: str) -> float | None:
        return max((entry["giga_per_second"] * 1e9 for entry in limits if entry["name"] == name), default=None)

    if row.stage == "prefill":
        name, needed = "int8", row.value * known.operations / row.depth
    elif row.stage == "decode":
        name, needed = "memory read", row.value * known.bytes
    elif row.stage == "encode":
        name = limit_of_encoder(engine)
        needed = known.operations * 1000 / row.value
    else:
        return {}
    return {"limit": name, "share": needed / limit(name)} if limit(name) else {}


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
                for engine in names_of(job):
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
