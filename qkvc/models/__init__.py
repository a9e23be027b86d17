"""Real models on NumPy and qkvc, nothing else: each is also an example of how to use them."""

from .bert import Bert
from .language import LanguageModel
from .llama import Llama
from .minilm import MiniLM
from .watch import Edit, Watch

__all__ = ["Bert", "Edit", "LanguageModel", "Llama", "MiniLM", "Watch"]
