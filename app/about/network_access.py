"""Every network access of the program, in words for users. The settings show this list; it must be complete."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OnlineUse:
    """One kind of network access: what for, when, and what the other side learns."""

    what: str
    when: str
    sent: str


HUB = "Goes to huggingface.co, or to the address in the settings."
ACCESSES = (
    OnlineUse(
        "Searching for models",
        "Only while you search in the model window.",
        "The words you search for, then the names of what was found, to read how large it is; and your internet "
        "address. Your token, if you gave one, to huggingface.co only.",
    ),
    OnlineUse(
        "Reading about a model",
        "When you select a model that is not on this computer.",
        "The model's name: for its card, its list of files and the first bytes of its weight files.",
    ),
    OnlineUse(
        "Downloading a model",
        "When you press Download, and when you resume one.",
        "The names of the files. Nothing about you, this computer or your conversations.",
    ),
    OnlineUse(
        "Fetching the runtime for a graphics card",
        "When you press See what is needed, and then Download, on the page Graphics card.",
        "To download.pytorch.org and, for Intel's libraries, pypi.org and files.pythonhosted.org: the names of "
        "PyTorch's files and of the card maker's libraries. Nothing about you, this computer or your conversations.",
    ),
    OnlineUse(
        "The local server",
        "Only while you run it: it waits for programs of this computer, and for others only if you allow them.",
        "What a program asks for is answered to it. Nothing is sent to anybody else.",
    ),
    OnlineUse(
        "A remote model",
        "Only while you chat with a model that you connected to, whose computer's name stands beside the model's, and "
        "when you press Test. Servers that you saved are not asked by themselves.",
        "The whole conversation and its settings, to the address that you entered; and your key for it, if you gave "
        "one.",
    ),
    OnlineUse(
        "A tool",
        "Only when you allowed a model's call of it. Servers with an address are also asked for their tools at the "
        "start.",
        "The arguments that you see at the call, to the server that you added; and your key for it, if you gave one. "
        "What the server does with them, it decides itself.",
    ),
    OnlineUse(
        "Looking for updates",
        "When you press the button in About; at each start, only if you switch it on. It is off by default.",
        "A request to api.github.com for the number of the newest version: this program's name and your internet "
        "address.",
    ),
)
NEVER = (
    "There is no telemetry, no account and no crash report that is sent by itself. Conversations with local models "
    "never leave this computer. Pictures and links in replies are not loaded; a link opens in your browser, after you "
    "were asked."
)
