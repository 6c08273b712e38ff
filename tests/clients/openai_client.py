"""Drives `margay serve` with the official OpenAI client and with curl, unchanged.

    python3 -m venv venv && venv/bin/pip install -r tests/clients/requirements.txt
    cargo build --release && venv/bin/python tests/clients/openai_client.py target/release/margay

Starts the server on a free port with a key, asks, checks, stops it with SIGTERM and prints what was checked.
"""

import base64
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading

import openai

KEY = "a-key-for-this-test"
IMAGES = pathlib.Path(__file__).resolve().parents[2] / "examples" / "images"


def data_url(name):
    return "data:image/png;base64," + base64.b64encode((IMAGES / name).read_bytes()).decode()


def about(name, question):
    parts = [{"type": "image_url", "image_url": {"url": data_url(name), "detail": "auto"}}, {"type": "text", "text": question}]
    return [{"role": "user", "content": parts}]


def refused(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def check(name, held):
    if not held:
        raise AssertionError(name)
    print(f"ok  {name}")


def with_the_client(url):
    client = openai.OpenAI(base_url=url, api_key=KEY, max_retries=0)
    model = client.models.list().data[0].id
    check(f"models.list: {model}", client.models.retrieve(model).object == "model")

    question = about("street.png", "What does the sign say?")
    answer = client.chat.completions.create(model=model, messages=question)
    said = answer.choices[0].message.content
    check(f"a picture is answered: {said!r}", "BAR" in said and answer.choices[0].finish_reason == "stop")
    check("usage adds up", answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens)
    check("cached tokens are told", answer.usage.prompt_tokens_details.cached_tokens >= 0)
    check("stage times come along", answer.choices[0].margay["ttft_ms"] > 0)

    chunks = list(client.chat.completions.create(
        model=model, messages=question, stream=True, stream_options={"include_usage": True}, user="somebody"))
    streamed = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    check("the stream says the same", streamed == said)
    check("the stream ends with usage", chunks[-1].usage.completion_tokens == answer.usage.completion_tokens)
    with client.chat.completions.stream(model=model, messages=question) as stream:
        final = stream.get_final_completion()
    check("the client's own stream helper agrees", final.choices[0].message.content == said)

    history = [{"role": "developer", "content": "Be brief."}, *question, answer.choices[0].message.model_dump(),
               {"role": "user", "content": "How many people are there?"}]
    again = client.chat.completions.create(model=model, messages=history, temperature=0.7, top_p=0.9, seed=3,
                                           stop=["\n\n"], max_completion_tokens=16)
    check("the client's own message goes on", bool(again.choices[0].message.content))
    several = client.chat.completions.create(model=model, messages=question, n=3, temperature=1, seed=1, max_tokens=8)
    check("n=3 gives three", [choice.index for choice in several.choices] == [0, 1, 2])
    dry = client.chat.completions.create(model=model, messages=question, extra_body={"dry_run": True})
    check("extra_body reaches the extensions", dry.prompt_tokens == answer.usage.prompt_tokens)

    look = {"type": "function", "function": {"name": "look", "description": "Zooms in.", "parameters": {
        "type": "object", "properties": {"at": {"enum": ["sign", "tree"]}}, "required": ["at"],
        "additionalProperties": False}}}
    calling = client.chat.completions.create(model=model, messages=question, tools=[look], tool_choice="required",
                                             parallel_tool_calls=False)
    call = calling.choices[0].message.tool_calls[0]
    check(f"a function is called: {call.function.arguments}", json.loads(call.function.arguments)["at"] in ("sign", "tree"))
    with client.chat.completions.stream(model=model, messages=question, tools=[look], tool_choice="required",
                                        parallel_tool_calls=False) as stream:
        streamed = stream.get_final_completion().choices[0].message.tool_calls[0]
    check("the client's stream helper finds the call", streamed.function.arguments == call.function.arguments)
    given = [*question, calling.choices[0].message.model_dump(),
             {"role": "tool", "tool_call_id": call.id, "content": "It says BAR."}]
    after = client.chat.completions.create(model=model, messages=given, tools=[look], tool_choice="none")
    check("what it gave back goes on", after.choices[0].finish_reason == "stop")

    vectors = client.embeddings.create(model=model, input=["a red circle", "a green square"])
    lengths = [sum(x * x for x in one.embedding) for one in vectors.data]
    check(f"embeddings of {len(vectors.data[0].embedding)} numbers", all(abs(length - 1) < 1e-4 for length in lengths))
    picture = {"type": "image_url", "image_url": {"url": data_url("street.png")}}
    seen = client.embeddings.create(model=model, input=[picture], encoding_format="float")
    check("a picture is embedded, too", len(seen.data[0].embedding) == len(vectors.data[0].embedding))

    error = refused(openai.BadRequestError, lambda: client.chat.completions.create(
        model=model, messages=question, extra_body={"temprature": 1}))
    check("an unknown parameter is named", error.param == "temprature" and error.code == "unknown_parameter")
    refused(openai.NotFoundError, lambda: client.chat.completions.create(model="gpt-unknown", messages=question))
    check("another model is not found", True)
    stranger = openai.OpenAI(base_url=url, api_key="wrong", max_retries=0)
    refused(openai.AuthenticationError, stranger.models.list)
    check("a wrong key is refused", True)


def with_curl(url):
    def curl(*arguments, body=None):
        command = ["curl", "-sS", "--max-time", "60", "-H", f"Authorization: Bearer {KEY}", *arguments]
        given = None if body is None else json.dumps(body)
        if body is not None:
            command += ["-H", "Content-Type: application/json", "-d", "@-"]
        return subprocess.run(command, input=given, capture_output=True, text=True, check=True).stdout

    question = {"messages": about("street.png", "What does the sign say?")}
    answer = json.loads(curl(f"{url}/chat/completions", body=question))
    check("curl gets an answer", "BAR" in answer["choices"][0]["message"]["content"])
    lines = [line for line in curl("-N", f"{url}/chat/completions", body={**question, "stream": True}).splitlines() if line]
    check("curl gets events that end with [DONE]", lines[-1] == "data: [DONE]" and all(l.startswith("data: ") for l in lines))
    large = curl("-H", "Expect: 100-continue", f"{url}/chat/completions", body={"messages": about("poster.webp", "What is it?")})
    check("curl waits for 100 Continue", "choices" in json.loads(large))
    metrics = curl(url.removesuffix("/v1") + "/metrics")
    check("curl reads the metrics", "margay_answers_total" in metrics)


def main():
    program = sys.argv[1] if len(sys.argv) > 1 else "target/release/margay"
    environment = {**os.environ, "MARGAY_API_KEY": KEY}
    server = subprocess.Popen([program, "serve", "--port", "0"], stdout=subprocess.PIPE, text=True, env=environment)
    guard = threading.Timer(300, server.kill)
    guard.start()
    try:
        line = server.stdout.readline()
        url = re.search(r"http://\S+", line).group() + "/v1"
        print(f"openai {openai.__version__} against {line.strip()}")
        with_the_client(url)
        with_curl(url)
        server.send_signal(signal.SIGTERM)
        check("SIGTERM ends it with code 0", server.wait(timeout=10) == 0)
    finally:
        guard.cancel()
        server.kill()


if __name__ == "__main__":
    main()
