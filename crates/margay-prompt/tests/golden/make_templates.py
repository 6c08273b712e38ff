"""Makes templates.json: `python make_templates.py` in this folder (needs transformers).

Chat templates that use what published ones use, written for this test, and what transformers' Jinja environment
makes of them (`render_jinja_template`), with every text of a user in place.
"""
import json

from transformers.utils.chat_template_utils import render_jinja_template

CHATS = {
    "one": [{"role": "user", "content": "What does the sign say?"}],
    "turns": [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi there."},
        {"role": "user", "content": "  And now,\nwhat?  "},
    ],
    "system": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Wie heißt das Schild? 🙂"},
        {"role": "assistant", "content": "Halt"},
        {"role": "user", "content": "STOP & <b>\"go\"</b>"},
    ],
}

TEMPLATES = {
    "header tags, trim, namespace": """{{- bos_token }}
{%- set ns = namespace(system='', seen=false) %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- set ns.system = ns.system + message.content | trim %}
        {%- set ns.seen = true %}
    {%- endif %}
{%- endfor %}
{%- if ns.seen %}{{ '<|header|>system<|end|>\\n\\n' ~ ns.system ~ '<|turn|>' }}{% endif %}
{%- for message in messages if message.role != 'system' %}
    {{- '<|header|>' + message['role'] + '<|end|>\\n\\n' + message['content'] | trim + '<|turn|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|header|>assistant<|end|>\\n\\n' }}
{%- endif %}
""",
    "brackets, alternation, slices": """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}""",
    "markup lines, loop variables": """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
    "tools undefined, tojson, default system": """{%- if tools %}
    {{- '# Tools' }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{{- {"roles": messages | map(attribute='role') | list, "n": messages | length} | tojson }}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    "macros, defined, reversed, break": """{%- macro turn(role, text) -%}
<{{ role }}>{{ text }}</{{ role }}>
{%- endmacro -%}
{%- set ns = namespace(last=-1) -%}
{%- for message in messages[::-1] -%}
{%- if message.role == 'user' -%}{%- set ns.last = messages | length - 1 - loop.index0 -%}{%- break -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
{{ turn(message.role, message.content) }}{% if loop.index0 == ns.last %}!{% endif %}
{%- if not loop.last %}, {% endif -%}
{%- endfor -%}
{%- if date_string is not defined %}|none{% endif %}""",
    "roles mapped, conditional expressions, none": """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}{{ '<turn>' + role + '\\n' + message['content'] | trim + '</turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<turn>model\\n' }}{% endif %}{{ none }}{{ true }}{{ 3 / 2 }}{{ 7 // 2 }}{{ 2 ** 3 }}""",
    "string methods and tests": """{% for m in messages %}{{ m.role.upper() }} {{ m.role.capitalize() }} {{ m['role'].startswith('us') }} {{ 'a,b'.split(',') | join('-') }} {{ 'xax'.replace('x', 'yy') }} {{ '  z '.lstrip() }}|{{ 'abc'[1:] }}|{{ m.role in ['user', 'system'] }}|{{ m.content is string }}|{{ m.missing is none }}|{{ m.missing is defined }}|{{ m.get('role') }}|{{ loop.previtem.role if loop.previtem is defined else '-' }}|{{ {'a': 1}.items() | list | length }}
{% endfor %}""",
}

cases = []
for name, source in TEMPLATES.items():
    for chat, messages in CHATS.items():
        for generation in (True, False):
            case = {"template": name, "messages": messages, "add_generation_prompt": generation}
            try:
                rendered, _ = render_jinja_template(conversations=[messages], chat_template=source,
                                                    add_generation_prompt=generation, bos_token="<s>", eos_token="</s>")
                case["expected"] = rendered[0]
            except Exception as error:
                case["refused"] = str(error)
            cases.append(case)
with open("templates.json", "w") as f:
    json.dump({"templates": TEMPLATES, "cases": cases}, f, ensure_ascii=False, indent=1)
print(len(cases), sum("refused" in c for c in cases))
