"""Real models on NumPy and qkvc, nothing else: each is also an example of how to use them."""

from .minilm import MiniLM

__all__ = ["MiniLM"]
