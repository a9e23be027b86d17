"""Real models on NumPy and the public functions of qkvc, nothing else: each is also an example of how to use them."""

from .minilm import MiniLM

__all__ = ["MiniLM"]
