"""Patterns by which the byte-level vocabularies of GGUF files split text before merging, by the name in the file.

An unknown name is refused: a wrong pattern gives slightly wrong token ids, which nobody would notice.
"""

from __future__ import annotations

CASE = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORD = r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = CASE + WORD + r"\p{N}{1,3}" + TAIL
QWEN2 = CASE + WORD + r"\p{N}" + TAIL
QWEN35 = CASE + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
MIXED = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*%s"
SLASHES = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT4O = MIXED % (f"{CASE}?", f"{CASE}?") + r"|\p{N}{1,3}" + SLASHES
TEKKEN = MIXED % ("", "") + r"|\p{N}" + SLASHES
DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGITS = r"\p{N}"

PATTERNS: dict[str, tuple[str, ...]] = {
    name: patterns
    for names, patterns in {
        ("gpt-2", "mpt", "olmo", "granite-docling", "phi-2", "roberta-bpe"): (GPT2,),
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "dbrx", "smaug-bpe", "glm4",
         "chatglm-bpe", "lfm2", "midm-2.0"): (LLAMA3,),
        ("qwen2", "stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan", "kormo"): (QWEN2,),
        ("qwen35",): (QWEN35,),
        ("gpt-4o", "llama4", "minimax-m2", "kanana2"): (GPT4O,),
        ("tekken",): (TEKKEN,),
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"): (DIGITS, GPT2),
        ("deepseek-v3",): (r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", DEEPSEEK3),
        ("deepseek-coder",): (
            r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", DIGITS,
        ),
        ("falcon",): (r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"),
    }.items()
    for name in names
}  # fmt: skip
"""Each pattern splits what the ones before it have left."""
