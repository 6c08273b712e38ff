"""Margay and the peers: each does a job in a process of its own and tells rows of figures."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from plan import Job

HERE = Path(__file__).parent
MARGAY, MARGAY_INT8 = "Margay", "Margay int8 encoder"
MARGAY_PACKED = "Margay packed before"
LLAMA, IK, GENAI = "llama.cpp", "ik_llama.cpp", "OpenVINO GenAI"
# Pictures that a peer encodes after a first; the median counts.
REPEATS = 2
CONTEXT = 2048


class Refused(Exception):
    """The engine does not do this job; the text says why."""


class Missing(Exception):
    """The engine, or a file, is not here."""


class Failed(Exception):
    """Something broke."""


@dataclass
class Row:
    """One figure of one run."""

    stage: str
    value: float
    unit: str
    depth: int = 0
    # Of several ways to run the same engine; the table shows the better one.
    variant: str = ""
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
    # Which of llama.cpp's attentions was the faster so far, by model and threads.
    attention: dict[tuple[Path, int], str] = field(default_factory=dict)
    # Tokens that Margay's template adds to a prompt's words, by model.
    overhead: dict[Path, int] = field(default_factory=dict)
    running: subprocess.Popen | None = None

    def run(self, command: list[str], cores: list[int] | None = None) -> str:
        """What a command prints. Nothing else of this program runs meanwhile."""
        process = self.start(command, cores, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.running = process
        try:
            out, errors = process.communicate(timeout=self.timeout_s)
        except subprocess.TimeoutExpired:
            raise Failed(f"not done after {self.timeout_s:.0f} s") from None
        finally:
            end(process)
            self.running = None
        lines = [line for line in errors.splitlines() if line.strip()]
        last = lines[-1].strip() if lines else ""
        if process.returncode == 0:
            return out
        if process.returncode == 1 and command[0] == str(self.margay):
            raise Refused(last.removeprefix("margay: error: "))
        if process.returncode < 0:
            raise Failed(f"ended by {signal.Signals(-process.returncode).name}: {last}")
        raise Failed(last)

    def start(self, command: list[str], cores: list[int] | None, **more) -> subprocess.Popen:
        """A session of its own, so that all of it can be ended, and scheduled as one."""

        def prepare() -> None:
            if cores:
                os.sched_setaffinity(0, cores)
            if self.boost:
                Path("/proc/self/autogroup").write_text("-20")

        return subprocess.Popen(command, start_new_session=True, preexec_fn=prepare, **more)

    def worker(self, script: str, task: dict, cores: list[int] | None = None) -> dict:
        out = self.run([sys.executable, str(HERE / script), json.dumps(task)], cores)
        result = json.loads(out.strip().splitlines()[-1])
        if "refused" in result:
            raise Refused(result["refused"])
        return result


def end(process: subprocess.Popen) -> None:
    """Ends a command and all that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def engines_of(job: Job) -> dict[str, Callable[[Setting, Job], list[Row]]]:
    """Who takes part in a job."""
    if job.kind == "text":
        return {MARGAY: margay_text, LLAMA: llama_text, GENAI: genai_text, IK: ik_text}
    if job.kind == "encode":
        vits = {f"{engine} {kind}": vit(engine, kind) for engine, kind in VITS}
        return {MARGAY: margay_encode, MARGAY_INT8: margay_encode_int8, LLAMA: llama_encode} | vits
    if job.kind == "load":
        return {MARGAY_PACKED: margay_load_packed, MARGAY: margay_load, LLAMA: llama_load, GENAI: genai_load}
    if job.kind == "memory":
        return {MARGAY: margay_memory, LLAMA: llama_memory}
    if job.kind == "two-process":
        return {MARGAY: shared(margay_text), LLAMA: shared(llama_text), GENAI: shared(genai_text)}
    no_pictures = {GENAI: no_vision_file, IK: no_vision_bench}
    return {MARGAY: margay_study, LLAMA: llama_study} | no_pictures


# --- Margay ---


def doctor(setting: Setting, threads: int) -> list[dict]:
    """The machine's limits right now, with so many threads."""
    told = json.loads(setting.run([str(setting.margay), "doctor", "--json", "--threads", str(threads)]))
    return next(m["limits"] for m in told["measured"] if m["threads"] == threads)


def inspect(setting: Setting, job: Job) -> dict:
    command = [str(setting.margay), "inspect", str(alone(setting, job.model)), "--tensors", "--json"]
    if job.mmproj:
        command += ["--mmproj", str(job.mmproj)]
    return json.loads(setting.run(command + ["--context", str(CONTEXT)]))


def alone(setting: Setting, model: Path) -> Path:
    """The model in a folder of its own: no vision file is found beside it, and what is packed goes there."""
    link = setting.folder / "models" / model.stem / model.name
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        link.unlink(missing_ok=True)
        link.symlink_to(model.resolve())
    return link


def margay_run(setting: Setting, job: Job, words: int, answer: int, options: list[str], cores=None) -> dict:
    command = [str(setting.margay), "run", "--model", str(alone(setting, job.model)), "--json"]
    command += ["--prompt", " ".join(["a"] * max(words, 1)), "--max-tokens", str(answer)]
    command += ["--threads", str(job.threads), *options]
    if "--context" not in options:
        command += ["--context", str(context_for(words, answer))]
    return json.loads(setting.run(command, cores))


def context_for(words: int, answer: int) -> int:
    """Room for the template and a picture as well."""
    return words + answer + 1024


def words_for(setting: Setting, job: Job, tokens: int) -> int:
    """Words that make a prompt of so many tokens: each is one, and the template may add some."""
    if tokens <= 2:
        return 1
    if job.model not in setting.overhead:
        shortest = margay_run(setting, job, 1, 1, ["--no-packed"])
        setting.overhead[job.model] = shortest["stages"]["prefill_tokens"] - 1
    return max(tokens - setting.overhead[job.model], 1)


def rate(tokens: int, milliseconds: float | None) -> float:
    if not milliseconds or not tokens:
        raise Failed("nothing was computed")
    return tokens * 1000 / milliseconds


def margay_text(setting: Setting, job: Job, cores=None) -> list[Row]:
    rows = []
    for depth in job.depths:
        words = words_for(setting, job, depth)
        # The first token of an answer comes from prefill.
        told = margay_run(setting, job, words, job.decoded + 1, ["--no-packed"], cores)
        stages = told["stages"]
        more = {"prompt_tokens": stages["prefill_tokens"], "decoded_tokens": stages["decode_tokens"]}
        more |= {"peak_rss_bytes": told["peak_rss_bytes"], "context": context_for(words, job.decoded + 1)}
        if depth > 0:
            prefill = rate(stages["prefill_tokens"], stages["prefill_ms"])
            rows.append(Row("prefill", prefill, "tok/s", depth, more=more))
        decode = rate(stages["decode_tokens"], stages["decode_ms"])
        rows.append(Row("decode", decode, "tok/s", depth, more=more))
    return rows


def with_picture(setting: Setting, job: Job) -> list[str]:
    return ["--mmproj", str(job.mmproj), "--image", str(setting.image)]


def margay_encode(setting: Setting, job: Job, *options: str) -> list[Row]:
    told = margay_run(setting, job, 1, 1, ["--no-packed", *with_picture(setting, job), *options])
    stages = told["stages"]
    more = {"project_ms": stages["project_ms"], "peak_rss_bytes": told["peak_rss_bytes"]}
    return [Row("encode", stages["encode_ms"] + stages["project_ms"], "ms", more=more)]


def margay_encode_int8(setting: Setting, job: Job) -> list[Row]:
    return margay_encode(setting, job, "--int8-encoder")


def margay_load(setting: Setting, job: Job, options: tuple[str, ...] = ("--no-packed",)) -> list[Row]:
    into_page_cache(job.model)
    told = margay_run(setting, job, 1, 1, ["--context", str(CONTEXT), *options])
    load, first = told["stages"]["load_ms"], told["stages"]["ttft_ms"]
    return [Row("load", load, "ms"), Row("first token", load + first, "ms")]


def margay_load_packed(setting: Setting, job: Job) -> list[Row]:
    model = alone(setting, job.model)
    told = json.loads(setting.run([str(setting.margay), "prepack", str(model), "--json"]))
    for file in told["files"]:
        if Path(file["path"]).exists():
            into_page_cache(Path(file["path"]))
    return margay_load(setting, job, ())


def into_page_cache(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 22):
            pass


def margay_memory(setting: Setting, job: Job) -> list[Row]:
    told = margay_run(setting, job, 1, 8, ["--no-packed", "--context", str(CONTEXT), *with_picture(setting, job)])
    more = {"peak_rss_bytes": told["peak_rss_bytes"], "context": CONTEXT}
    return [Row("memory", told["peak_rss_bytes"] / 1e6, "MB", more=more)]


def margay_study(setting: Setting, job: Job) -> list[Row]:
    visual_tokens = inspect(setting, job)["visual_tokens_per_picture"]
    if not visual_tokens:
        raise Refused("the two files do not make a model that sees")
    words = words_for(setting, job, job.depths[0] - visual_tokens)
    told = margay_run(setting, job, words, job.decoded, ["--no-packed", *with_picture(setting, job)])
    stages = told["stages"]
    more = {key: stages[key] for key in ("encode_ms", "project_ms", "prefill_ms", "decode_ms")}
    more |= {"prompt_tokens": stages["prefill_tokens"], "answer_tokens": stages["decode_tokens"] + 1}
    more |= {"peak_rss_bytes": told["peak_rss_bytes"], "context": context_for(words, job.decoded)}
    if more["answer_tokens"] < job.decoded:
        raise Failed(f"the answer ended after {more['answer_tokens']} of {job.decoded} tokens")
    # Decoding and resizing the picture is not the engine's pace: left out, as it is of the peers.
    spent = sum(stages[key] for key in ("encode_ms", "project_ms", "prefill_ms", "decode_ms"))
    return [Row("study", spent, "ms", more=more)]


# --- llama.cpp ---


def llama(setting: Setting, job: Job, do: str, cores=None, **more) -> dict:
    need_package("llama_cpp", LLAMA)
    task = {"do": do, "model": str(job.model), "mmproj": str(job.mmproj), "image": str(setting.image)}
    task |= {"threads": job.threads, "context": CONTEXT, "decoded": job.decoded, "depth": job.depths[0]}
    return setting.worker("worker_llama.py", task | more, cores)


def attentions(setting: Setting, job: Job) -> list[str]:
    """Both, or the one that was the faster in decoding so far; "off" where nothing is known."""
    if job.both_attentions:
        return ["off", "on"]
    known = [how for (model, _), how in setting.attention.items() if model == job.model]
    return [setting.attention.get((job.model, job.threads), known[-1] if known else "off")]


def llama_text(setting: Setting, job: Job, cores=None) -> list[Row]:
    tried = attentions(setting, job)
    told = llama(setting, job, "text", cores, depths=job.depths, attention=tried)
    rows = []
    for how, depths in told["attention"].items():
        variant = f"flash attention {how}"
        for depth, rates in depths.items():
            if int(depth) > 0:
                rows.append(Row("prefill", rates["prefill"], "tok/s", int(depth), variant))
            rows.append(Row("decode", rates["decode"], "tok/s", int(depth), variant))
    if len(tried) > 1:
        deepest = str(max(job.depths))
        faster = max(tried, key=lambda how: told["attention"][how][deepest]["decode"])
        setting.attention[job.model, job.threads] = faster
    return rows


def llama_encode(setting: Setting, job: Job) -> list[Row]:
    return [Row("encode", llama(setting, job, "encode", repeats=REPEATS)["encode_ms"], "ms")]


def llama_load(setting: Setting, job: Job) -> list[Row]:
    into_page_cache(job.model)
    told = llama(setting, job, "load")
    return [Row("load", told["load_ms"], "ms"), Row("first token", told["first_ms"], "ms")]


def llama_memory(setting: Setting, job: Job) -> list[Row]:
    return [Row("memory", llama(setting, job, "memory")["peak_rss_bytes"] / 1e6, "MB")]


def llama_study(setting: Setting, job: Job) -> list[Row]:
    told = llama(setting, job, "study", attention=attentions(setting, job))["attention"]
    return [Row("study", t["total_ms"], "ms", variant=f"flash attention {how}", more=t) for how, t in told.items()]


# --- OpenVINO GenAI ---


def genai(setting: Setting, job: Job, do: str, cores=None) -> dict:
    need_package("openvino_genai", GENAI)
    task = {"do": do, "model": str(job.model), "threads": job.threads, "depths": job.depths, "decoded": job.decoded}
    return setting.worker("worker_genai.py", task, cores)


def genai_text(setting: Setting, job: Job, cores=None) -> list[Row]:
    rows = []
    for depth, rates in genai(setting, job, "text", cores)["depths"].items():
        if int(depth) > 0:
            rows.append(Row("prefill", rates["prefill"], "tok/s", int(depth)))
        rows.append(Row("decode", rates["decode"], "tok/s", int(depth)))
    return rows


def genai_load(setting: Setting, job: Job) -> list[Row]:
    into_page_cache(job.model)
    told = genai(setting, job, "load")
    return [Row("load", told["load_ms"], "ms"), Row("first token", told["first_ms"], "ms")]


def no_vision_file(setting: Setting, job: Job) -> list[Row]:
    need_package("openvino_genai", GENAI)
    raise Refused("reads no GGUF model with a vision file")


# --- ik_llama.cpp ---


def ik_text(setting: Setting, job: Job) -> list[Row]:
    """Its own bench, with the flash attention and without; run-time repacking as it comes (off)."""
    need_ik(setting)
    rows = []
    for how in attentions(setting, job):
        command = [str(setting.ik), "-m", str(job.model), "-t", str(job.threads), "-r", "1", "-o", "json"]
        command += ["-fa", "1" if how == "on" else "0"]
        for depth in job.depths:
            tests = ["-p", str(depth), "-n", "0", "-gp", f"{depth},{job.decoded}"]
            tests = tests if depth > 0 else ["-p", "0", "-n", str(job.decoded)]
            for test in json.loads(setting.run(command + tests)):
                stage = "decode" if test["n_gen"] else "prefill"
                rows.append(Row(stage, test["avg_ts"], "tok/s", depth, f"flash attention {how}"))
    return rows


def no_vision_bench(setting: Setting, job: Job) -> list[Row]:
    need_ik(setting)
    raise Refused("its bench has no pictures")


def need_ik(setting: Setting) -> None:
    if not setting.ik:
        raise Missing("no build given; --ik PATH_TO_llama-bench")
    if not setting.ik.exists():
        raise Missing(f"{setting.ik} is not there")


# --- image encoders in onnxruntime and OpenVINO ---

VITS = [
    ("OpenVINO", "f32"),
    ("OpenVINO", "bf16"),
    ("OpenVINO", "int8"),
    ("onnxruntime", "f32"),
    ("onnxruntime", "int8"),
]


def vit(engine: str, kind: str) -> Callable[[Setting, Job], list[Row]]:
    def measure(setting: Setting, job: Job) -> list[Row]:
        need_package(engine.lower(), engine)
        need_package("onnx", "onnx, which writes the encoder,")
        task = {"mmproj": str(job.mmproj), "folder": str(setting.folder)}
        setting.worker("worker_vit.py", {"do": "build"} | task)
        task |= {"do": engine.lower(), "kind": kind, "threads": job.threads, "repeats": REPEATS}
        told = setting.worker("worker_vit.py", task)
        more = {"without": "projector", "peak_rss_bytes": told["peak_rss_bytes"]}
        return [Row("encode", told["encode_ms"], "ms", more=more)]

    return measure


# --- two processes ---


def shared(text: Callable[..., list[Row]]) -> Callable[[Setting, Job], list[Row]]:
    """What is left of an engine's 1 thread when another process takes one of its cores and it has one thread each."""

    def measure(setting: Setting, job: Job) -> list[Row]:
        cores = sorted(os.sched_getaffinity(0))[: job.threads]
        if len(cores) < job.threads:
            raise Missing(f"{job.threads} cores are needed")
        one = text(setting, replace(job, threads=1), cores)
        with busy(setting, cores[-1]):
            many = text(setting, job, cores)
        rows = []
        for free, left in zip(one, many, strict=True):
            more = {"free": free.value, "shared": left.value, "unit": free.unit}
            rows.append(Row(f"shared {free.stage}", left.value / free.value, "of 1 thread", 0, free.variant, more))
        return rows

    return measure


@contextmanager
def busy(setting: Setting, core: int) -> Iterator[None]:
    """A loop on one core, with the weight that the timed command has."""
    process = setting.start([sys.executable, "-c", "while True: pass"], [core])
    guard = threading.Timer(2 * setting.timeout_s, process.kill)
    guard.start()
    time.sleep(0.2)
    try:
        yield
    finally:
        guard.cancel()
        end(process)


def need_package(module: str, name: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise Missing(f"{name} is not installed; run.py --install")
