"""Real models on NumPy and qkvc, nothing else: each is also an example of how to use them."""

from .language import LanguageModel
from .llama import Llama
from .minilm import MiniLM

__all__ = ["LanguageModel", "Llama", "MiniLM"]
