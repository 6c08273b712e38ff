"""Many streaming clients against a running `margay serve`: what they wait for, what fails, and whether memory grows.

    margay serve --slots 8 --queue 64 &
    python3 bench/serve/load.py --minutes 5 --clients 32

Some clients leave in the middle of an answer, some send what no client should. An error is the client's own where the
server says so for a request that was malformed, or says 429 and when to come again. Everything else is printed, and the
exit code is 1. Only the standard library.
"""

import argparse
import base64
import collections
import http.client
import json
import pathlib
import random
import re
import statistics
import sys
import threading
import time
import urllib.parse

IMAGES = pathlib.Path(__file__).resolve().parents[2] / "examples" / "images"
QUESTIONS = ["What does the sign say?", "How many shapes are there?", "Describe the picture.", "What colour is the circle?"]


class Tally:
    """What all clients met."""

    def __init__(self):
        self.lock = threading.Lock()
        self.counts = collections.Counter()
        self.first, self.total, self.faults = [], [], []

    def count(self, what):
        with self.lock:
            self.counts[what] += 1

    def answered(self, first, total):
        with self.lock:
            self.counts["answered"] += 1
            self.first.append(first)
            self.total.append(total)

    def fault(self, what):
        with self.lock:
            self.counts["FAULT"] += 1
            if len(self.faults) < 20:
                self.faults.append(what)


def question(chance, pictures):
    content = []
    if chance.random() < 0.5:
        content.append({"type": "image_url", "image_url": {"url": chance.choice(pictures)}})
    content.append({"type": "text", "text": chance.choice(QUESTIONS)})
    return {"stream": True, "max_tokens": chance.choice([8, 32, 64]), "temperature": chance.choice([0, 1]),
            "messages": [{"role": "user", "content": content}]}


def malformed(chance, pictures):
    body = json.dumps(question(chance, pictures))
    kind = chance.randrange(5)
    if kind == 0:
        return body[: chance.randrange(1, len(body) - 1)].encode()
    if kind == 1:
        return json.dumps({**json.loads(body), "nonsense": 1}).encode()
    if kind == 2:
        return bytes(chance.randrange(256) for _ in range(300))
    if kind == 3:
        broken = pictures[0][: chance.randrange(30, len(pictures[0]) // 2)]
        return json.dumps({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": broken}]}]}).encode()
    return json.dumps({"messages": []}).encode()


def ask(options, chance, pictures, tally):
    connection = http.client.HTTPConnection(options.host, options.port, timeout=120)
    headers = {"Content-Type": "application/json"}
    if options.key:
        headers["Authorization"] = f"Bearer {options.key}"
    dice = chance.random()
    bad = dice < options.malformed
    leaves = not bad and dice < options.malformed + options.cancel
    body = malformed(chance, pictures) if bad else json.dumps(question(chance, pictures)).encode()
    begun = time.monotonic()
    try:
        connection.request("POST", "/v1/chat/completions", body, headers)
        response = connection.getresponse()
        if response.status == 429:
            after = int(response.getheader("Retry-After", "0"))
            response.read()
            tally.count("429")
            if after < 1:
                tally.fault("429 without Retry-After")
            time.sleep(min(after, 2) * chance.random())
            return
        if bad:
            said = response.read()
            if response.status == 400 and b'"error"' in said:
                tally.count("malformed, refused")
            else:
                tally.fault(f"malformed, and {response.status}: {said[:200]!r}")
            return
        if response.status != 200:
            tally.fault(f"{response.status}: {response.read()[:200]!r}")
            return
        stream(response, begun, leaves, chance, tally)
    except (OSError, http.client.HTTPException) as error:
        tally.fault(f"{type(error).__name__}: {error}")
    finally:
        connection.close()


def stream(response, begun, leaves, chance, tally):
    first, pieces, patience = None, 0, chance.randrange(1, 12)
    for line in response:
        if not line.startswith(b"data: "):
            continue
        data = line[6:].strip()
        if data == b"[DONE]":
            tally.answered(first if first is not None else time.monotonic() - begun, time.monotonic() - begun)
            return
        chunk = json.loads(data)
        if "error" in chunk:
            tally.fault(f"within a stream: {chunk['error']}")
            return
        if first is None and any(choice["delta"].get("content") for choice in chunk["choices"]):
            first = time.monotonic() - begun
        pieces += 1
        if leaves and pieces >= patience:
            tally.count("left")
            return
    tally.fault("a stream ended without [DONE]")


def resident(options):
    connection = http.client.HTTPConnection(options.host, options.port, timeout=10)
    headers = {"Authorization": f"Bearer {options.key}"} if options.key else {}
    try:
        connection.request("GET", "/metrics", headers=headers)
        text = connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    found = re.search(r"^margay_resident_bytes (\S+)", text, re.M)
    return float(found.group(1)) / 1e6 if found else None


def percentiles(name, seconds):
    if len(seconds) < 2:
        return f"{name}: too few"
    cuts = statistics.quantiles(seconds, n=100)
    return f"{name}: p50 {cuts[49] * 1000:.0f} ms, p90 {cuts[89] * 1000:.0f} ms, p99 {cuts[98] * 1000:.0f} ms"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--key")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--cancel", type=float, default=0.2, help="share of requests whose client leaves")
    parser.add_argument("--malformed", type=float, default=0.1, help="share of requests that are malformed")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    url = urllib.parse.urlsplit(options.url)
    options.host, options.port = url.hostname, url.port or 80
    kinds = {".png": "png", ".jpg": "jpeg", ".webp": "webp"}
    pictures = [f"data:image/{kinds[path.suffix]};base64," + base64.b64encode(path.read_bytes()).decode()
                for path in sorted(IMAGES.iterdir()) if path.suffix in kinds]
    tally, end = Tally(), time.monotonic() + options.minutes * 60

    def client(number):
        chance = random.Random(options.seed * 1000 + number)
        while time.monotonic() < end:
            ask(options, chance, pictures, tally)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(options.clients)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    every, memory = max(5, options.minutes * 60 / 12), []
    while time.monotonic() < end:
        time.sleep(min(every, max(0.1, end - time.monotonic())))
        megabytes = resident(options)
        memory.append(megabytes)
        told = "unknown" if megabytes is None else f"{megabytes:.1f} MB"
        print(f"{time.monotonic() - begun:6.0f} s  {sum(tally.counts.values()):7d} requests  resident {told}", flush=True)
    for thread in threads:
        thread.join()
    elapsed = time.monotonic() - begun
    print(f"{options.clients} clients, {elapsed:.0f} s: " + ", ".join(f"{n} {what}" for what, n in sorted(tally.counts.items())))
    print(f"{tally.counts['answered'] / elapsed:.1f} answers a second")
    print(percentiles("time to the first text", tally.first))
    print(percentiles("whole answer", tally.total))
    known = [megabytes for megabytes in memory if megabytes is not None]
    if len(known) >= 4:
        half = len(known) // 2
        print(f"resident: mean of the first half {statistics.mean(known[:half]):.1f} MB, of the second {statistics.mean(known[half:]):.1f} MB")
    for fault in tally.faults:
        print(f"FAULT {fault}")
    sys.exit(1 if tally.counts["FAULT"] else 0)


if __name__ == "__main__":
    main()
