"""The desktop window around the engine.

Holds the program's names and version. Importing this package imports nothing else.
"""

NAME = "HeteGen"
ID = "org.hetegen.HeteGen"
VERSION = "0.1.0"
REPOSITORY = "https://github.com/hetegen/hetegen"
