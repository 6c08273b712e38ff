"""The tables of a run: every row from the records, nothing typed in."""

import html as escape_html
import json
import statistics
from collections import defaultdict
from pathlib import Path

from engines import GENAI, IK, LLAMA, MARGAY, MARGAY_BF16, MARGAY_INT8, MARGAY_PACKED

TITLES = {
    "prefill": "prefill of {depth} tokens",
    "decode": "decode behind a prompt of {depth} tokens",
    "encode": "encode a picture",
    "load": "load, file in the page cache",
    "first token": "load to first token, file in the page cache",
    "held": "peak memory of prompts and answers of {depth} tokens",
    "memory": "peak memory with a picture, 2048 tokens of context",
    "shared prefill": "prefill, one core taken by another process",
    "shared decode": "decode, one core taken by another process",
    "study": "study job: a picture, 605 prompt tokens, 69 answer tokens; load excluded",
}
# Stages of a kind of job, for records that tell why there is no figure.
STAGES = {
    "load": ("load", "first token"),
    "two-process": ("shared prefill", "shared decode"),
    "encode": ("encode",),
    "memory": ("memory",),
    "study": ("study",),
}
RATES = ("tok/s", "of 1 thread")
OURS = (MARGAY, MARGAY_INT8, MARGAY_BF16, MARGAY_PACKED)


def read(path: Path) -> list[dict]:
    """Records of a file; a last line that was being written when the run ended is left out."""
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def summary(records: list[dict]) -> dict:
    """All that the tables show."""
    machine = next((record for record in records if record["kind"] == "machine"), {})
    groups: dict[tuple, list[dict]] = defaultdict(list)
    for record in records:
        if record["kind"] != "machine":
            for stage, depth in places(record):
                key = (stage, record["model"], record["mmproj"], record["threads"], depth)
                groups[key].append(record)
    order = list(TITLES)
    keys = sorted(groups, key=lambda key: (order.index(key[0]), key[3] == 1))
    return {"machine": machine, "groups": [group(key, groups[key]) for key in keys]}


def places(record: dict) -> list[tuple[str, int]]:
    """The stages and depths that a record belongs to."""
    if record["status"] == "ok":
        return [(record["stage"], record["depth"])]
    if record["kind"] != "text":
        return [(stage, 0) for stage in STAGES[record["kind"]]]
    prefill = [("prefill", depth) for depth in record["depths"] if depth > 0]
    return prefill + [("decode", depth) for depth in record["depths"]]


def group(key: tuple, records: list[dict]) -> dict:
    """One stage of one model with so many threads: a row for each engine."""
    stage, model, mmproj, threads, depth = key
    engines = list(dict.fromkeys(record["engine"] for record in records))
    engines.sort(key=lambda engine: engine not in OURS)
    rows = [row([record for record in records if record["engine"] == engine]) for engine in engines]
    by_engine = {row["engine"]: row for row in rows}
    for each in rows:
        each["ratios"] = ratios(each, by_engine)
        each["goals"] = goals(key, each, by_engine)
    limits = [entry for record in records if record["status"] == "ok" for entry in [limit_of(record)] if entry]
    return {"stage": stage, "title": TITLES[stage].format(depth=depth or 2), "model": model, "mmproj": mmproj,
            "threads": threads, "depth": depth, "limits": ranges(limits), "rows": rows}  # fmt: skip


def row(records: list[dict]) -> dict:
    """One engine's figures: the better of its variants."""
    good = [record for record in records if record["status"] == "ok"]
    result = {"engine": records[0]["engine"], "unit": None, "median": None, "variant": "", "values": {}}
    if not good:
        result |= {"status": records[-1]["status"], "note": records[-1]["note"]}
        return result
    unit = good[0]["unit"]
    variants: dict[str, dict[int, dict]] = defaultdict(dict)
    for record in good:
        variants[record["variant"]][record["round"]] = record
    medians = {variant: statistics.median(r["value"] for r in rounds.values()) for variant, rounds in variants.items()}
    best = (max if unit in RATES else min)(medians, key=lambda variant: medians[variant])
    chosen = variants[best]
    shares = [record["share"] for record in chosen.values() if "share" in record]
    result |= {"status": "ok", "unit": unit, "median": medians[best], "variant": best, "variants": medians,
               "values": {number: record["value"] for number, record in chosen.items()},
               "share": statistics.median(shares) if shares else None, "limit": good[0].get("limit"),
               "more": [record["more"] for record in chosen.values()]}  # fmt: skip
    promises = [r["more"]["peak_rss_bytes"] / r["promise_bytes"] for r in chosen.values() if "promise_bytes" in r]
    result["of_promise"] = max(promises, default=None)
    unfinished = [record for record in records if record["status"] != "ok"]
    result["note"] = f"{len(unfinished)} more failed: {unfinished[-1]['note']}" if unfinished else ""
    return result


def ratios(peer: dict, rows: dict[str, dict]) -> dict[str, dict]:
    """How many times as fast each of ours is: the median of the rounds' ratios."""
    result = {}
    for name in OURS:
        ours = rows.get(name)
        if not ours or peer["engine"] in OURS:
            continue
        rounds = sorted(set(ours["values"]) & set(peer["values"]))
        pairs = [(ours["values"][number], peer["values"][number]) for number in rounds]
        if pairs:
            each = [a / b if peer["unit"] in RATES else b / a for a, b in pairs]
            result[name] = {"median": statistics.median(each), "rounds": len(each)}
    return result


def goals(key: tuple, row: dict, rows: dict[str, dict]) -> list[dict]:
    """What was aimed at for an engine's row: {of, is, goal, met, why}; `is` is None where it was not measured."""
    stage, model, _, _, depth = key
    engine, is_q4_0 = row["engine"], "Q4_0" in model
    found = []

    def aim(of: str, value: float | None, goal: float, at_most: bool = False, by: dict = row) -> None:
        met = None if value is None else (value <= goal if at_most else value >= goal)
        why = "" if value is not None else "not known" if by["status"] == "ok" else f"{by['engine']}: {by['note']}"
        found.append({"of": of, "is": value, "goal": goal, "met": met, "why": why})

    def ratio(ours: str, goal: float) -> None:
        if ours in rows:
            lacking = next((each for each in (row, rows[ours]) if each["status"] != "ok"), row)
            aim(f"{ours} : {engine}", row["ratios"].get(ours, {}).get("median"), goal, by=lacking)

    share = row.get("share")
    if stage == "prefill" and engine == MARGAY:
        aim("int8 peak", share, 0.65)
    elif stage == "prefill" and depth == 512:
        ratio(MARGAY, {GENAI: 1.3, IK: 1.7, LLAMA: 4.8 if "Q8_0" in model else 2.5}[engine])
    elif stage == "decode" and engine == MARGAY:
        aim("read bandwidth", share, 0.9)
    elif stage == "decode" and depth == 512:
        ratio(MARGAY, 1.5)
    elif stage == "decode" and depth == 0 and (is_q4_0 and "m14" in model or "v7-Q8_0" in model):
        ratio(MARGAY, 1.3 if is_q4_0 else 1.0)
    elif stage == "encode" and engine == MARGAY_INT8:
        aim("int8 peak", share, 0.75)
    elif stage == "encode" and engine == MARGAY_BF16:
        aim("bf16 peak", share, 0.8)
    elif stage == "encode" and engine == "OpenVINO bf16":
        ratio(MARGAY_BF16, 1.0)
    elif stage == "encode" and engine in ("OpenVINO int8", "onnxruntime int8"):
        ratio(MARGAY_INT8, 1.2)
    elif stage == "encode" and engine == LLAMA:
        ratio(MARGAY_INT8, 5.0)
    elif stage.startswith("shared") and engine == MARGAY:
        aim("own 1 thread", row["median"], 0.9)
    elif stage == "load" and engine == MARGAY_PACKED and is_q4_0 and "m14" in model:
        aim("ms", row["median"], 150, at_most=True)
    elif stage == "memory" and engine == MARGAY:
        aim("files + KV + 5 %", row.get("of_promise"), 1.0, at_most=True)
    elif stage == "study" and engine in (LLAMA, IK):
        ratio(MARGAY, 2.0 if engine == LLAMA else 1.6)
    elif stage in ("load", "first token") and engine not in OURS:
        ratio(MARGAY_PACKED, 1.0)
    elif engine not in OURS and not stage.startswith("shared"):
        # No figure was set: the best at every stage is the aim.
        ratio(MARGAY, 1.0)
    return found


def limit_of(record: dict) -> tuple[str, float] | None:
    if "limit" not in record:
        return None
    rates = [entry["giga_per_second"] for entry in record["limits"] if entry["name"] == record["limit"]]
    unit = next(entry["unit"] for entry in record["limits"] if entry["name"] == record["limit"])
    return f"{record['limit']}, {unit}", max(rates)


def ranges(limits: list[tuple[str, float]]) -> dict[str, list[float]]:
    """Least and greatest of each limit while a group was measured."""
    rates: dict[str, list[float]] = defaultdict(list)
    for name, value in limits:
        rates[name].append(value)
    return {name: [min(values), max(values)] for name, values in rates.items()}


# --- text ---


def text(records: list[dict]) -> str:
    told = summary(records)
    lines = [about(told["machine"]), "", "GOALS", *columns(GOAL_HEADER, goal_lines(told)), "", "ALL ENGINES"]
    for each in told["groups"]:
        lines += ["", heading(each), *columns(ROW_HEADER, [cells(row) for row in each["rows"]])]
    peaks = promise_lines(told)
    if peaks:
        lines += ["", "MARGAY'S PEAK MEMORY, of files + KV + 5 %", *columns(["run", "", "of the promise"], peaks)]
    return "\n".join(lines) + "\n"


def about(machine: dict) -> str:
    if not machine:
        return "machine unknown"
    versions = ", ".join(f"{name} {version or 'absent'}" for name, version in machine["versions"].items())
    return (f"{machine['date']}  {machine['cpu']}, {machine['cores']} cores, {machine['isa']}, "
            f"{machine['memory_bytes'] / 2**30:.1f} GiB; Margay {machine['margay']}; {versions}")  # fmt: skip


def heading(group: dict) -> str:
    vision = f" + {group['mmproj']}" if group["mmproj"] else ""
    threads = "1 thread" if group["threads"] == 1 else f"{group['threads']} threads"
    limits = "; ".join(f"limit {name}: {span(*values)}" for name, values in group["limits"].items())
    return f"{group['title']}: {group['model']}{vision}, {threads}" + (f"  ({limits})" if limits else "")


def span(low: float, high: float) -> str:
    return f"{low:.4g}" if f"{low:.4g}" == f"{high:.4g}" else f"{low:.4g} to {high:.4g}"


GOAL_HEADER = ["stage", "model", "threads", "against", "is", "goal", ""]
ROW_HEADER = ["engine", "median", "unit", "N", "least to most", "of limit", "Margay is, times", ""]


def goal_lines(told: dict) -> list[list[str]]:
    """A line a goal; of a stage that was not measured at all, the first only."""
    lines = []
    for group in told["groups"]:
        aims = [(row, goal) for row in group["rows"] for goal in row["goals"]]
        if all(goal["is"] is None for _, goal in aims):
            aims = aims[:1]
        lines += [goal_cells(group, row, goal) for row, goal in aims]
    return lines


def goal_cells(group: dict, row: dict, goal: dict) -> list[str]:
    is_ratio = " : " in goal["of"]
    unit = "x" if is_ratio else "" if goal["of"] == "ms" else "%"
    scale = 100 if unit == "%" else 1
    shown = "-" if goal["is"] is None else f"{goal['is'] * scale:.3g}{unit}"
    state = {True: "met", False: "not met", None: goal["why"]}[goal["met"]]
    least = "at most " if goal["of"] in ("ms", "files + KV + 5 %") else ""
    model = group["model"] + (f" + {group['mmproj']}" if group["mmproj"] else "")
    return [
        group["title"],
        model,
        str(group["threads"]),
        goal["of"],
        shown,
        f"{least}{goal['goal'] * scale:g}{unit}",
        state,
    ]


def cells(row: dict) -> list[str]:
    if row["status"] != "ok":
        return [row["engine"], "-", "", "", "", "", "", f"{row['status']}: {row['note']}"]
    values = row["values"].values()
    share = f"{row['share']:.0%} of {row['limit']}" if row["share"] is not None else ""
    times = ", ".join(f"{ratio['median']:.2f}{SHORT_NAMES[name]}" for name, ratio in row["ratios"].items())
    notes = [row["variant"], row["note"]]
    if any("without" in more for more in row["more"]):
        notes.append("no projector")
    beside = [more["one_beside"] / more["free"] for more in row["more"] if "one_beside" in more]
    if beside:
        notes.append(f"1 thread beside the loop: {statistics.median(beside):.2f}")
    spread = span(min(values), max(values)) if len(values) > 1 else ""
    notes_text = "; ".join(note for note in notes if note)
    return [row["engine"], f"{row['median']:.4g}", row["unit"], str(len(values)), spread, share, times, notes_text]


SHORT_NAMES = {MARGAY: "", MARGAY_INT8: " (int8)", MARGAY_BF16: " (bf16)", MARGAY_PACKED: " (packed)"}


def promise_lines(told: dict) -> list[list[str]]:
    lines = []
    for group in told["groups"]:
        for row in group["rows"]:
            if row.get("of_promise") is not None and group["stage"] != "prefill":
                vision = f" + {group['mmproj']}" if group["mmproj"] else ""
                lines.append(
                    [
                        group["title"],
                        f"{group['model']}{vision}, {group['threads']} threads",
                        f"{row['of_promise']:.0%}",
                    ]
                )
    return lines


def columns(header: list[str], lines: list[list[str]]) -> list[str]:
    """Aligned text; numbers stay left too, which reads well enough."""
    if not lines:
        return ["(nothing)"]
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in [header, *lines]]


# --- page ---

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
       color: #1d1d1f; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; } p { color: #555; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .88rem; }
th, td { text-align: left; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid #e4e4e8; vertical-align: top; }
.met { color: #17723a; } .missed { color: #a8321b; } .open { color: #777; }
svg { display: block; width: 100%; height: auto; margin: .6rem 0; }
svg text { font: 12px system-ui, sans-serif; fill: currentColor; }
.ours { fill: #c8741a; } .peer { fill: #9aa3b0; }
@media (prefers-color-scheme: dark) {
  body { color: #e8e8ea; background: #17181b; } p, .open { color: #a0a0a8; } th, td { border-color: #333439; }
  .met { color: #62c184; } .missed { color: #ef8a74; } .peer { fill: #5d6673; }
}
"""


def html(records: list[dict]) -> str:
    told = summary(records)
    parts = ["<!doctype html><html lang=en><meta charset=utf-8>",
             '<meta name=viewport content="width=device-width"><title>Margay beside its peers</title>',
             f"<style>{STYLE}</style><h1>Margay beside its peers</h1><p>{safe(about(told['machine']))}</p>",
             "<h2>Goals</h2>", goal_table(told)]  # fmt: skip
    for group in told["groups"]:
        parts += [
            f"<h2>{safe(heading(group))}</h2>",
            bars(group),
            table(ROW_HEADER, [cells(row) for row in group["rows"]]),
        ]
    peaks = promise_lines(told)
    if peaks:
        parts += ["<h2>Margay's peak memory, of files + KV + 5 %</h2>", table(["run", "", "of the promise"], peaks)]
    return "\n".join(parts) + "\n"


def safe(text: str) -> str:
    return escape_html.escape(text)


def table(header: list[str], lines: list[list[str]]) -> str:
    head = "".join(f"<th>{safe(cell)}" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{safe(cell)}" for cell in line) for line in lines)
    return f"<table><tr>{head}{body}</table>"


def goal_table(told: dict) -> str:
    classes = {"met": "met", "not met": "missed"}
    head = "".join(f"<th>{safe(cell)}" for cell in GOAL_HEADER)
    body = ""
    for line in goal_lines(told):
        *plain, state = line
        body += "<tr>" + "".join(f"<td>{safe(cell)}" for cell in plain)
        body += f"<td class={classes.get(state, 'open')}>{safe(state)}"
    return f"<table><tr>{head}{body}</table>"


def bars(group: dict) -> str:
    """One bar an engine, as long as its median; the shorter the better where the unit is a time or a size."""
    rows = [row for row in group["rows"] if row["status"] == "ok"]
    if not rows:
        return ""
    most = max(row["median"] for row in rows)
    height, left, width = 24, 190, 560
    better = "longer is better" if rows[0]["unit"] in RATES else "shorter is better"
    shapes = []
    for i, row in enumerate(rows):
        y, length = i * height, max(row["median"] / most * width, 1)
        kind = "ours" if row["engine"] in OURS else "peer"
        shapes.append(f'<text x="{left - 8}" y="{y + 16}" text-anchor="end">{safe(row["engine"])}</text>')
        shapes.append(
            f'<rect class="{kind}" x="{left}" y="{y + 4}" width="{length:.1f}" height="{height - 8}" rx="2"/>'
        )
        shapes.append(f'<text x="{left + length + 6:.1f}" y="{y + 16}">{row["median"]:.4g} {safe(row["unit"])}</text>')
    shapes.append(f'<text x="{left}" y="{len(rows) * height + 14}" opacity=".6">{better}</text>')
    total = len(rows) * height + 20
    return f'<svg viewBox="0 0 860 {total}" role="img" aria-label="{safe(heading(group))}">{"".join(shapes)}</svg>'
