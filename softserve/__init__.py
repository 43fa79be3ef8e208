"""softserve, an LLM inference server: what a client of it needs, and nothing more."""

from importlib.metadata import version

__version__ = version("softserve")
