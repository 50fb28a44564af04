"""What could not be tested on any machine of the developers, for `doctor` and for the window: one sentence each."""

from __future__ import annotations

UNTRIED = (
    "No real graphics card has computed yet: the code for NVIDIA, AMD, Intel and Apple ran on a device made for tests.",
    "The kernels for graphics cards were compiled for NVIDIA and for three of AMD's, and run only on a processor.",
    "The torch fetched for NVIDIA's cards was installed, but never ran on one; those for AMD's and Intel's came from a "
    "server made for tests only.",
    "How each maker's cards are found, and how their memory is locked, counted, limited and read in place, is written "
    "from documentation, and nothing of it has run with a card.",
    "torch's own products with weights of 8 and 4 bits on Intel's and Apple's cards are tried before they are used, "
    "but were seen on a device made for tests only.",
    "Replaying work on a card (CUDA graphs) and dividing attention by heads were seen on a device made for tests only.",
    "What the paper's paired exchange brings was measured on a simulated card only.",
    "Speeds with a graphics card are predictions, and those of a simulated card.",
)
