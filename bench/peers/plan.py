"""What is measured: jobs, and the two presets."""

import itertools
from dataclasses import dataclass
from pathlib import Path

STAGES = ("prefill", "decode", "encode", "load", "memory", "two-process", "study")
DEPTHS = (0, 512, 4096)
# Tokens that are decoded in one turn: short, so that engines are compared within a second or two.
DECODED = 8
# Turns of decoding in a round.
SLICES = 4
# The question of the study: with one picture, so many tokens of prompt and of answer.
STUDY = {"depths": (605,), "decoded": 69}
TWO = {"depths": (256,), "decoded": 16}

TYPES = ("Q4_0", "Q4_K_M", "Q8_0")
SHORT_FILES = [f"m14-{kind}" for kind in TYPES] + [
    *("m27-Q4_0", "phi2-Q4_0", "v7-Q4_0"),
    *("clip-ldpv2-2048-F16", "clip-mlp-4096-F16", "siglip-mlp-2048-F16"),
]
FULL_FILES = SHORT_FILES + [
    *("m27-Q8_0", "v7-Q4_K_M", "v7-Q8_0"),
    *("clip-mlp-2048-F16", "clip-ldpv2-2048-BF16"),
]


@dataclass(frozen=True)
class Job:
    """One thing that every engine does in turn."""

    # text (prefill and decode), encode, load, memory, two-process, study
    kind: str
    model: Path
    threads: int
    mmproj: Path | None = None
    # Tokens of the prompts; decoding begins behind them. At 0 one token, and nothing is said of prefill.
    depths: tuple[int, ...] = (0,)
    decoded: int = DECODED
    # Times that it is done; the command line may say otherwise.
    rounds: int = 3
    # How many of them OpenVINO GenAI takes part in: it is slow where it has no kernels for a processor.
    genai_rounds: int = 3
    # Whether llama.cpp is tried both with and without flash attention, or with it only.
    both_attentions: bool = True

    def describe(self) -> str:
        depths = " at " + ", ".join(map(str, self.depths)) if self.kind == "text" else ""
        vision = f" + {self.mmproj.name}" if self.mmproj else ""
        return f"{self.kind}{depths}, {self.model.name}{vision}, {self.threads} threads"

    def stages(self) -> set[str]:
        """What it tells something of."""
        if self.kind != "text":
            return {self.kind}
        return {"prefill", "decode"} if any(self.depths) else {"decode"}

    def context(self) -> int:
        """Tokens that fit the deepest of it; what an ordinary user has, where only memory and loading are asked for."""
        return 2048 if self.kind in ("load", "memory") else max(*self.depths, 1) + self.decoded + 56


def short(folder: Path) -> list[Job]:
    """A row for every goal, the dearest last; about three quarters of an hour on two slow cores."""
    m14, m27, phi2, v7 = (folder / f"{name}-Q4_0.gguf" for name in ("m14", "m27", "phi2", "v7"))
    clip, clip_7b, siglip = (folder / f"{name}-F16.gguf" for name in ("clip-ldpv2-2048", "clip-mlp-4096", "siglip-mlp-2048"))
    once = {"genai_rounds": 1, "both_attentions": False}
    jobs = [
        Job("load", m14, 2, genai_rounds=1),
        Job("encode", m14, 2, clip, rounds=5),
        Job("memory", m14, 2, clip, rounds=1),
        Job("text", m14, 2, depths=(0, 512), genai_rounds=2),
    ]
    jobs += [Job("text", folder / f"m14-{kind}.gguf", 2, depths=(0, 512), **once) for kind in TYPES[1:]]
    deep = {"depths": (4096,), "rounds": 1, "genai_rounds": 0, "both_attentions": False}
    return jobs + [
        Job("text", m14, 1, depths=(0, 512), rounds=2, **once),
        Job("encode", m14, 2, siglip),
        Job("two-process", m14, 2, rounds=4, **TWO),
        Job("text", m27, 2, depths=(0, 512), rounds=2, **once),
        Job("text", phi2, 2, depths=(0, 512), rounds=2, **once),
        Job("study", v7, 2, clip_7b, rounds=2, both_attentions=False, **STUDY),
        Job("text", m14, 2, **deep),
        Job("text", v7, 2, depths=(0, 512), rounds=1, genai_rounds=0, both_attentions=False),
        Job("encode", m14, 1, clip, rounds=2),
        *(Job("text", folder / f"m14-{kind}.gguf", 2, **deep) for kind in TYPES[1:]),
    ]


def full(folder: Path) -> list[Job]:
    """Everything: hours. What cannot be done at once on a small disk is done by naming files (`--models`)."""
    m14, v7 = (folder / f"{name}-Q4_0.gguf" for name in ("m14", "v7"))
    clips = [
        folder / f"{name}.gguf" for name in FULL_FILES if name.startswith(("clip", "siglip")) and "4096" not in name
    ]
    jobs = [Job("encode", m14, threads, clip) for clip, threads in itertools.product(clips, (2, 1))]
    for kind in TYPES:
        model = folder / f"m14-{kind}.gguf"
        jobs.append(Job("load", model, 2))
        jobs.append(Job("memory", model, 2, folder / "clip-ldpv2-2048-F16.gguf", rounds=1))
        jobs.append(Job("two-process", model, 2, **TWO))
    jobs += [Job("study", v7, threads, folder / "clip-mlp-4096-F16.gguf", **STUDY) for threads in (2, 1)]
    texts = [folder / f"{name}.gguf" for name in FULL_FILES if not name.startswith(("clip", "siglip"))]
    return jobs + [Job("text", model, threads, depths=DEPTHS) for model, threads in itertools.product(texts, (2, 1))]


def of_files(models: list[Path], mmprojs: list[Path], threads: list[int], depths: list[int]) -> list[Job]:
    """Everything that can be asked of these files."""
    jobs: list[Job] = []
    for model, count in itertools.product(models, threads):
        jobs += [Job("text", model, count, depths=tuple(depths)), Job("load", model, count)]
        if count > 1:
            jobs.append(Job("two-process", model, count, **TWO))
        for mmproj in mmprojs:
            jobs.append(Job("encode", model, count, mmproj))
            jobs.append(Job("memory", model, count, mmproj, rounds=1))
            jobs.append(Job("study", model, count, mmproj, **STUDY))
    return jobs
