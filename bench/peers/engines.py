"""Margay and the peers: how each is started, and what it is told for each kind of job."""

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from live import Live, Missing, busy, run
from plan import Job

HERE = Path(__file__).parent
MARGAY, MARGAY_INT8, MARGAY_BF16 = "Margay", "Margay int8 encoder", "Margay bf16 encoder"
MARGAY_PACKED = "Margay packed before"
LLAMA, IK, GENAI = "llama.cpp", "ik_llama.cpp", "OpenVINO GenAI"
VITS = {
    f"{engine} {kind}": (engine, kind)
    for engine, kind in [
        ("OpenVINO", "f32"),
        ("OpenVINO", "bf16"),
        ("OpenVINO", "int8"),
        ("onnxruntime", "f32"),
        ("onnxruntime", "int8"),
    ]
}
CONTEXT = 2048


@dataclass
class Row:
    """One figure."""

    stage: str
    value: float
    unit: str
    depth: int = 0
    # Of several ways to run the same engine; the table shows the better one.
    variant: str = ""
    # Operations and bytes of it, as Margay counts them, where they are known.
    operations: float | None = None
    bytes: float | None = None
    more: dict = field(default_factory=dict)


@dataclass
class Setting:
    """Where things are, and how commands run."""

    margay: Path
    ik: Path | None
    image: Path
    folder: Path
    boost: bool
    timeout_s: float

    def run(self, command: list[str]) -> str:
        return run(command, self.boost, self.timeout_s)

    def worker(self, script: str, task: dict, cores: list[int] | None = None) -> Live:
        return Live([sys.executable, str(HERE / script), json.dumps(task)], cores, self.boost, self.timeout_s)

    def orders(self, job: Job, *options: str, threads: int | None = None, cores: list[int] | None = None) -> Live:
        """Margay, waiting for orders. Weights are packed as they are loaded."""
        command = [str(self.margay), "bench", "stages", str(alone(self, job.model)), "--orders", "--no-packed"]
        command += ["--threads", str(threads or job.threads), "--image", str(self.image)]
        command += ["--context", str(job.context()), *options]
        if job.mmproj:
            command += ["--mmproj", str(job.mmproj)]
        return Live(command, cores, self.boost, self.timeout_s)


@dataclass
class Player:
    """An engine that waits for its turn."""

    engine: str
    live: Live
    variant: str = ""
    # What its orders say besides.
    extra: dict = field(default_factory=dict)

    def ask(self, order: dict) -> dict:
        return self.live.ask(order | self.extra)


def names_of(job: Job) -> list[str]:
    """Who takes part in a job."""
    return {
        "text": [MARGAY, LLAMA, GENAI, IK],
        "encode": [MARGAY, MARGAY_INT8, MARGAY_BF16, LLAMA, *VITS],
        "load": [MARGAY_PACKED, MARGAY, LLAMA, GENAI],
        "memory": [MARGAY, LLAMA],
        "two-process": [MARGAY, LLAMA],
        "study": [MARGAY, LLAMA],
    }[job.kind]


def players(setting: Setting, job: Job, engine: str, stack: ExitStack) -> list[Player]:
    """An engine in its variants, started; it loads at its first order."""

    def opened(live: Live) -> Live:
        stack.callback(live.close)
        return live

    if engine == MARGAY:
        return [Player(MARGAY, opened(setting.orders(job)))]
    if engine == MARGAY_INT8:
        return [Player(MARGAY_INT8, opened(setting.orders(job, "--int8-encoder")))]
    if engine == MARGAY_BF16:
        return [Player(MARGAY_BF16, opened(setting.orders(job, "--bf16-encoder")))]
    if engine == LLAMA:
        live = opened(llama(setting, job))
        if job.kind == "encode":
            return [Player(LLAMA, live)]
        ways = ["off", "on"] if job.both_attentions else ["on"]
        return [Player(LLAMA, live, f"flash attention {how}", {"attention": how}) for how in ways]
    if engine == GENAI:
        if not job.genai_rounds:
            raise Missing("left out of this preset")
        need_package("openvino_genai", GENAI)
        return [Player(GENAI, opened(setting.worker("worker_genai.py", {"model": str(job.model), "threads": job.threads})))]
    package, kind = VITS[engine]
    need_package(package.lower(), package)
    need_package("onnx", "onnx, which writes the encoder,")
    task = {"engine": package.lower(), "kind": kind, "threads": job.threads}
    task |= {"mmproj": str(job.mmproj), "folder": str(setting.folder)}
    return [Player(engine, opened(setting.worker("worker_vit.py", task)))]


def build_vit(setting: Setting, job: Job) -> None:
    """The encoder as ONNX, which every ONNX runtime then finds."""
    need_package("onnxruntime", "onnxruntime, which quantizes the encoder,")
    need_package("onnx", "onnx, which writes the encoder,")
    live = setting.worker("worker_vit.py", {"mmproj": str(job.mmproj), "folder": str(setting.folder)})
    try:
        live.ask({"do": "build"})
    finally:
        live.close()


def llama(setting: Setting, job: Job, threads: int | None = None, cores: list[int] | None = None) -> Live:
    need_package("llama_cpp", LLAMA)
    task = {"model": str(job.model), "mmproj": str(job.mmproj), "image": str(setting.image)}
    return setting.worker("worker_llama.py", task | {"threads": threads or job.threads, "context": job.context()}, cores)


def alone(setting: Setting, model: Path) -> Path:
    """The model in a folder of its own: no vision file is found beside it, and what is packed goes there."""
    link = setting.folder / "models" / model.stem / model.name
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        link.unlink(missing_ok=True)
        link.symlink_to(model.resolve())
    return link


def rate(tokens: int, milliseconds: float) -> float:
    return tokens * 1000 / milliseconds


# --- loading and memory: a process for each figure ---


def load(setting: Setting, job: Job, engine: str) -> list[Row]:
    into_page_cache(job.model)
    if engine in (MARGAY, MARGAY_PACKED):
        told = margay_run(setting, job, ["--no-packed"] if engine == MARGAY else packed(setting, job))
        found, first = told["stages"]["load_ms"], told["stages"]["ttft_ms"]
        return [Row("load", found, "ms"), Row("first token", found + first, "ms")]
    with ExitStack() as stack:
        told = players(setting, job, engine, stack)[0].live.ask({"do": "load"})
    return [Row("load", told["load_ms"], "ms"), Row("first token", told["first_ms"], "ms")]


def packed(setting: Setting, job: Job) -> list[str]:
    told = json.loads(setting.run([str(setting.margay), "prepack", str(alone(setting, job.model)), "--json"]))
    for file in told["files"]:
        if Path(file["path"]).exists():
            into_page_cache(Path(file["path"]))
    return []


def into_page_cache(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 22):
            pass


def margay_run(setting: Setting, job: Job, options: list[str], answer: int = 1) -> dict:
    command = [str(setting.margay), "run", "--model", str(alone(setting, job.model)), "--json", "--prompt", "a"]
    command += ["--max-tokens", str(answer), "--threads", str(job.threads), "--context", str(CONTEXT)]
    return json.loads(setting.run(command + options))


def memory(setting: Setting, job: Job, engine: str) -> list[Row]:
    """Peak resident memory with a picture at a whole context."""
    if engine == MARGAY:
        sight = ["--mmproj", str(job.mmproj), "--image", str(setting.image)]
        told = margay_run(setting, job, ["--no-packed", *sight], 8)
        # What was promised is asked of another process: the bench loads more than a question does.
        with ExitStack() as stack:
            held = players(setting, job, MARGAY, stack)[0].ask({"do": "memory"})
        more = {"promise_bytes": 1.05 * (held["files_bytes"] + held["cache_bytes"])}
    else:
        with ExitStack() as stack:
            told, more = players(setting, job, engine, stack)[0].live.ask({"do": "memory"}), {}
    return [Row("memory", told["peak_rss_bytes"] / 1e6, "MB", more=more | {"peak_rss_bytes": told["peak_rss_bytes"]})]


# --- two processes ---


@contextmanager
def shared(setting: Setting, job: Job, engine: str) -> Iterator:
    """What is left of an engine's 1 thread when another process takes one of its cores and it has one thread each.

    Gives a function that measures it once.
    """
    cores = sorted(os.sched_getaffinity(0))[: job.threads]
    if len(cores) < job.threads:
        raise Missing(f"{job.threads} cores are needed")
    make = {MARGAY: setting.orders, LLAMA: lambda job, **more: llama(setting, job, **more)}[engine]
    extra = {"attention": "on"} if engine == LLAMA else {}
    depth = job.depths[0]
    with ExitStack() as stack:
        one, many = (Player(engine, make(job, threads=count, cores=cores), "", extra) for count in (1, job.threads))
        for player in (one, many):
            stack.callback(player.live.close)
            player.ask({"do": "prefill", "tokens": depth})

        def measure() -> list[Row]:
            stages = {"prefill": {"do": "prefill", "tokens": depth}, "decode": {"do": "decode", "tokens": job.decoded}}
            rows = []
            for stage, order in stages.items():
                free = rate(order["tokens"], one.ask(order)["ms"])
                with busy(cores[-1], setting.boost):
                    left = rate(order["tokens"], many.ask(order)["ms"])
                    # Cores may share a cache, a memory, or be two threads of one: what is left of one thread that wants
                    # nothing of the other core.
                    beside = rate(order["tokens"], one.ask(order)["ms"])
                more = {"free": free, "shared": left, "one_beside": beside, "unit": "tok/s"}
                rows.append(Row(f"shared {stage}", left / free, "of 1 thread", more=more))
            return rows

        yield measure


# --- ik_llama.cpp, which has a bench of its own and does not stay ---


def ik_text(setting: Setting, job: Job) -> list[Row]:
    """Its own bench, with the flash attention and without; run-time repacking as it comes (off)."""
    if not setting.ik:
        raise Missing("no build given; --ik PATH_TO_llama-bench")
    if not setting.ik.exists():
        raise Missing(f"{setting.ik} is not there")
    rows = []
    for how in ("off", "on") if job.both_attentions else ("on",):
        command = [str(setting.ik), "-m", str(job.model), "-t", str(job.threads), "-r", "1", "-o", "json"]
        command += ["-fa", "1" if how == "on" else "0"]
        for depth in job.depths:
            tests = ["-p", str(depth), "-n", "0", "-gp", f"{depth},{job.decoded}"]
            tests = tests if depth > 0 else ["-p", "0", "-n", str(job.decoded)]
            for test in json.loads(setting.run(command + tests)):
                stage = "decode" if test["n_gen"] else "prefill"
                rows.append(Row(stage, test["avg_ts"], "tok/s", depth, f"flash attention {how}"))
    return rows


def need_package(module: str, name: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise Missing(f"{name} is not installed; run.py --install")

