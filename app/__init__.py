"""The window around the engine. Names and version have their home here; importing this imports nothing."""

NAME = "HeteGen"
ID = "org.hetegen.HeteGen"
VERSION = "0.1.0"
REPOSITORY = "https://github.com/hetegen/hetegen"
