"""Hostile replies: made to freeze the window, to fetch something, or to disguise themselves."""

HOSTILE = {
    "a line of a megabyte": "x" * 1_000_000,
    "words of a megabyte": "word " * 200_000,
    "an open fence": "```\n" + "x" * 1_000_000,
    "nested lists": "\n".join("  " * depth + "- item" for depth in range(100)),
    "nested quotes": ">" * 100 + " deep\n" * 3,
    "html": "<script>alert(1)</script><img src=http://x/y.png><iframe src=file:///etc/passwd>" * 200,
    "images": "![a](http://evil/x.png) ![b](file:///etc/passwd)\n\n" * 200,
    "emoji": "\U0001f600" * 10_000,
    "invisible and right to left": "\u200d\u200b\u202e\u0627\u0644" * 5000,
    "stars": "*" * 20_000 + "*a **b " * 3000,
    "brackets": "[" * 20_000 + "[a](" * 5000,
    "backticks": "`a``b" * 5000,
    "a wide table": "|" + "a|" * 300 + "\n|" + "-|" * 300 + "\n" + ("|" + "b|" * 300 + "\n") * 20,
    "dollars": "$" * 20_000 + "$a " * 5000,
    "nulls": "\0" * 10_000,
}
