"""Real models on NumPy and qkvc, nothing else: each is also an example of how to use them."""

from .bert import Bert
from .gpt2 import GPT2
from .language import LanguageModel
from .llama import Llama
from .loading import load
from .minilm import MiniLM
from .sizes import Size, size_of
from .watch import Edit, Watch

__all__ = ["GPT2", "Bert", "Edit", "LanguageModel", "Llama", "MiniLM", "Size", "Watch", "load", "size_of"]
