"""Chat templates with the rules of well-known model families, written from scratch for these tests.

Each has its family's rules (what it refuses, drops, trims and splits) and marks, but not its text.
"""

from __future__ import annotations

# Refuses turns out of order and empty assistant turns; puts the system prompt before the last question.
MISTRAL = """
{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set talk = messages[1:] %}
{%- else %}{% set talk = messages %}{% endif %}
{{- '<s>' }}
{%- for m in talk %}
  {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
  {%- if m.role == 'user' %}
    {{- '[INST]' }}{% if loop.last and system is defined %}{{ system + '\n\n' }}{% endif %}{{ m.content + '[/INST]' }}
  {%- elif m.role == 'assistant' %}
    {%- if not m.content %}{{ raise_exception('empty answer') }}{% endif %}{{ m.content + '</s>' }}
  {%- else %}{{ raise_exception('unknown role') }}{% endif %}
{%- endfor %}"""

# Refuses the system role and turns out of order; trims.
GEMMA = """{{ '<bos>' }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}
{%- for m in messages %}
  {%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('not by turns') }}{% endif %}
  {%- set role = 'model' if m['role'] == 'assistant' else m['role'] %}
  {{- '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""

# Needs a question that is not a tool result, and the system prompt at the start; splits answers at thoughts.
QWEN35 = """
{%- set ns = namespace(found=false) %}
{%- for m in messages %}
  {%- set asked = m.role == 'user' and not (m.content | trim).startswith('<tool_response>') %}
  {%- if asked %}{% set ns.found = true %}{% endif %}
  {%- if m.role == 'system' and not loop.first %}{{ raise_exception('system must be first') }}{% endif %}
{%- endfor %}
{%- if not ns.found %}{{ raise_exception('no user query') }}{% endif %}
{%- for m in messages %}
  {%- set content = m.content | trim %}
  {%- if m.role == 'assistant' %}
    {%- if m.reasoning_content is string %}{% set thought = m.reasoning_content %}
    {%- else %}{% set thought = '' %}
      {%- if '</think>' in content %}
        {%- set thought = content.split('</think>')[0] %}{% set content = content.split('</think>')[-1] %}
      {%- endif %}
    {%- endif %}
    {{- '<|im_start|>assistant\n' }}
    {%- if loop.last or loop.index0 > messages | length - 3 %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}
    {{- content + '<|im_end|>\n' }}
  {%- else %}{{ '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"""

# Accepts any order; trims.
LLAMA3 = """{{ '<|begin_of_text|>' }}
{%- for m in messages %}
  {{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

# Writes to channels; refuses answers with channel marks; renders thoughts only in the last turn.
GPT_OSS = """
{%- for m in messages %}
  {%- if m.role == 'assistant' %}
    {%- if '<|channel|>analysis<|message|>' in m.content or '<|channel|>final<|message|>' in m.content %}
      {{- raise_exception('channel marks in the content') }}
    {%- endif %}
    {%- if loop.last and not add_generation_prompt %}
      {%- if m.thinking %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}
      {{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|return|>' }}
    {%- else %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}{% endif %}
  {%- else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""

# Drops all thoughts, and opens one in its prompt.
DEEPSEEK_R1 = """{{ '<bos>' }}
{%- for m in messages %}
  {%- if m.role == 'system' %}{{ m.content }}
  {%- elif m.role == 'user' %}{{ '<|User|>' + m.content }}
  {%- else %}
    {%- set content = m.content %}
    {%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}
    {{- '<|Assistant|>' + content + '<|end_of_sentence|>' }}
  {%- endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"""

# Thoughts and answers have their own marks.
COMMAND_A = """
{%- for m in messages %}
  {{- '<|START_OF_TURN|><|' + m.role | upper + '|>' }}
  {%- if m.role == 'assistant' %}
    {%- if m.reasoning_content %}{{ '<|START_THINKING|>' + m.reasoning_content + '<|END_THINKING|>' }}{% endif %}
    {{- '<|START_RESPONSE|>' + m.content + '<|END_RESPONSE|>' }}
  {%- else %}{{ m.content }}{% endif %}{{ '<|END_OF_TURN|>' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|START_OF_TURN|><|ASSISTANT|>' }}{% endif %}"""

# Expects all content as a list of parts, as vision models' templates do.
PARTS = """
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}
  {%- for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

# Expects parts in turns, but the system prompt as text.
MIXED = """
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}
  {%- if m.role == 'system' %}{{ m.content + '' }}{% else %}{{ m.content[0]['text'] }}{% endif %}{{ '<|im_end|>\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

# Does not support the system role and silently ignores it.
DEAF = """
{%- for m in messages %}
  {%- if m.role == 'user' %}{{ '### Q: ' + m.content + '\n' }}
  {%- elif m.role == 'assistant' %}{{ '### A: ' + m.content + '\n' }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '### A: ' }}{% endif %}"""

# Requires a question as the last message, and no answer as the first.
LAST_IS_ASKED = """
{%- if messages[-1].role != 'user' %}{{ raise_exception('nothing asked') }}{% endif %}
{%- if messages[0].role == 'assistant' %}{{ raise_exception('answer first') }}{% endif %}
{%- for m in messages %}{{ '<' + m.role + '>' + m.content + '</s>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"""

FAMILIES = {
    "mistral": MISTRAL, "gemma": GEMMA, "qwen3.5": QWEN35, "llama3": LLAMA3, "gpt-oss": GPT_OSS, "r1": DEEPSEEK_R1,
    "command-a": COMMAND_A, "parts": PARTS, "mixed": MIXED, "deaf": DEAF, "last": LAST_IS_ASKED,
}  # fmt: skip
