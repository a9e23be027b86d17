"""`qkvc train`: a small language model learns a text, byte by byte, and can be killed at any moment."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from qkvc._coerce import as_above_zero, as_count, as_rate, bad
from qkvc._console import complain, heading, progress, say
from qkvc._files import write_whole
from qkvc.models.language import LanguageModel
from qkvc.nn import AdamW, DamagedCheckpoint, cross_entropy, keep_memory, load_checkpoint, save_checkpoint, warmed_cosine

if TYPE_CHECKING:
    from numpy.typing import NDArray

BYTES = 256
HELD_BACK = 10  # every tenth of the text, its end, is for validation
CHECKED = 8  # batches of a validation
KEPT = 2  # checkpoints: the last, and the one before in case the last is damaged by the disk
WARMUP = 20  # one step of so many goes up
WRITTEN = "step-*.safetensors", "model.safetensors", "config.json"
WHO = "train"


@dataclass(frozen=True)
class Settings:
    """What a run is made of; the same settings on the same text give the same bits.

    Parameters
    ----------
    steps : int
        How many.
    batch, length : int
        Sequences of a step, and bytes of each.
    layers, width, heads : int
        Of the model.
    dropout : float
        The share of attention's weights that a step drops.
    lr : float
        The highest learning rate: reached after a twentieth of the steps, a tenth of it is left at the end.
    weight_decay, clip : float
        As of `qkvc.nn.AdamW`.
    seed : int
        Of the initial weights, of every batch and of the sample.
    every : int
        Steps from one validation and checkpoint to the next.
    """

    steps: int = 1200
    batch: int = 16
    length: int = 128
    layers: int = 6
    width: int = 192
    heads: int = 6
    dropout: float = 0.0
    lr: float = 2e-3
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0
    every: int = 100

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "length", "layers", "width", "heads", "every"):
            as_count(name, getattr(self, name), WHO)
        as_count("seed", self.seed, WHO, 0)
        for name in ("lr", "clip"):
            as_above_zero(name, getattr(self, name), WHO)
        as_rate(self.dropout, "dropout", WHO)


class Text:
    """A text as bytes, with its end held back.

    Parameters
    ----------
    data : bytes
        UTF-8.
    length : int
        Of a sequence; the text must be long enough for some.

    Raises
    ------
    ValueError
        A text that is empty, too short, or not UTF-8: the message says where.
    """

    def __init__(self, data: bytes, length: int) -> None:
        try:
            data.decode()
        except UnicodeDecodeError as error:
            raise ValueError(bad("text", "UTF-8", f"the byte {data[error.start]:#04x} at {error.start}", WHO)) from None
        least = HELD_BACK * (length + 2)
        if len(data) < least:
            raise ValueError(bad("text", f"at least {least} bytes for sequences of {length}", f"{len(data)}", WHO))
        numbers = np.frombuffer(data, np.uint8)
        end = len(numbers) - len(numbers) // HELD_BACK
        self.length, self.hash = length, hashlib.sha256(data).hexdigest()
        self.train, self.held_back = numbers[:end], numbers[end:]

    def batch(self, count: int, *seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sequences from anywhere, and what follows each byte of them: a function of the seed alone, so that no state has to be kept."""
        starts = np.random.default_rng(seed).integers(0, len(self.train) - self.length, count)
        return self._at(self.train, starts)

    def validation(self, count: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Sequences that were held back, evenly over them, in batches."""
        starts = np.linspace(0, len(self.held_back) - self.length - 1, CHECKED * count).astype(np.int64)
        return [self._at(self.held_back, part) for part in starts.reshape(CHECKED, count)]

    def _at(self, numbers: NDArray[np.uint8], starts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        both = numbers[starts[:, np.newaxis] + np.arange(self.length + 1)].astype(np.int64)
        return both[:, :-1], both[:, 1:]

    def unigram(self) -> float:
        """The loss, in nats a byte, of who knows how often each byte comes and nothing else."""
        counts = np.bincount(self.train, minlength=BYTES) + 1.0
        return float(-np.log(counts / counts.sum())[self.held_back].mean())


def own_text() -> bytes:
    """A text that every Python brings along: the reference of its language, half a megabyte of English, tables and code."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics)).encode()


class Point(NamedTuple):
    """A validation."""

    step: int
    loss: float


class Run:
    """A model, its optimiser, and what they have been through.

    Parameters
    ----------
    settings : Settings
    text : Text
    directory : Path
        Of the checkpoints; made if it is not there.  A run that has some there goes on from the last.

    Attributes
    ----------
    losses : list of float
        Of each step so far.
    points : list of Point
        Of each validation.

    Raises
    ------
    ValueError
        Checkpoints of another text or other settings.
    DamagedCheckpoint
        The last checkpoint is not what was written; the message says which one is left.
    """

    def __init__(self, settings: Settings, text: Text, directory: Path) -> None:
        self.settings, self.text, self.directory = settings, text, directory
        s = settings
        self.model = LanguageModel(BYTES, s.width, layers=s.layers, heads=s.heads, dropout=s.dropout, rng=s.seed)
        self.optimiser = AdamW(self.model.parameters(), lr=s.lr, weight_decay=s.weight_decay, clip=s.clip)
        self.losses: list[float] = []
        self.points: list[Point] = []
        directory.mkdir(parents=True, exist_ok=True)
        for unfinished in (file for name in WRITTEN for file in directory.glob(f".{name}.*")):  # by a run that was killed while it wrote
            unfinished.unlink()
        if files := self.checkpoints():
            self._resume(files)

    @property
    def step(self) -> int:
        """How many have been made."""
        return len(self.losses)

    def checkpoints(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.directory.glob("step-*.safetensors"))

    def go(self, report: Callable[[Run], None]) -> None:
        """Make the steps that are left, and report after each.

        Raises
        ------
        FloatingPointError
            The loss or a gradient is not finite; the last checkpoint is from before.
        OSError
            A checkpoint could not be written; the last one is as it was.
        """
        s = self.settings
        if not self.step:
            self.save()  # a disk that is full says so at once
        while self.step < s.steps:
            ids, targets = self.text.batch(s.batch, s.seed, self.step)
            dropped = np.random.default_rng(
                (s.seed, self.step, 1)
            )  # of the seed and the step alone, as the batch, and not the batch's numbers
            loss = cross_entropy(self.model.forward(ids, dropped), targets)
            self._sound("loss", loss.value)
            self.model.zero_grad()
            self.model.backward(loss.grad)
            rate = warmed_cosine(self.step, s.steps, lr=s.lr, warmup=s.steps // WARMUP)
            try:
                self.optimiser.step(rate)
            except FloatingPointError as error:
                raise FloatingPointError(f"{error}, {self._where()}") from None
            self.losses.append(loss.value)
            if self.step % s.every == 0 or self.step == s.steps:
                self.points.append(Point(self.step, self.validate()))
                self._sound("validation loss", self.points[-1].loss)
                self.save()
            report(self)

    def validate(self) -> float:
        """The mean loss over what was held back."""
        batches = self.text.validation(self.settings.batch)
        return sum(cross_entropy(self.model(ids), targets).value for ids, targets in batches) / len(batches)

    def _sound(self, what: str, loss: float) -> None:
        if not isfinite(loss):
            raise FloatingPointError(f"{bad(what, 'a finite number', str(loss), WHO)}, {self._where()}")

    def _where(self) -> str:
        return f"at step {self.step}: a smaller lr may help; the last checkpoint is {self._last()}"

    def _last(self) -> str:
        files = self.checkpoints()
        return str(files[-1]) if files else "none yet"

    # ------------------------------------------------------------------------------------------------------------------- checkpoints

    def save(self) -> Path:
        """Write all that the next step depends on, and let go of checkpoints that are no longer needed."""
        path = self.directory / f"step-{self.step:08}.safetensors"
        tensors = {f"model.{name}": x for name, x in self.model.state().items()} | self.optimiser.state()
        about = {"settings": asdict(self.settings), "text": self.text.hash, "losses": self.losses, "points": self.points}
        try:
            save_checkpoint(path, tensors, about)
        except OSError as error:
            what = f"{error.strerror}: the checkpoint of step {self.step} could not be written; the last one is {self._last()}"
            raise OSError(error.errno, what) from None
        for old in self.checkpoints()[:-KEPT]:
            old.unlink()
        return path

    def _resume(self, files: list[Path]) -> None:
        try:
            tensors, about = load_checkpoint(files[-1])
        except DamagedCheckpoint as error:
            rest = f"without it, training goes on from {files[-2]}" if len(files) > 1 else "there is no other"
            raise DamagedCheckpoint(f"{error}; {rest}") from None
        if about.get("text") != self.text.hash:
            raise ValueError(bad("text", f"the one that {self.directory} has learned, or another directory", "another text", WHO))
        given, before = asdict(self.settings), about["settings"]
        for name, value in given.items():
            if before.get(name) != value:
                raise ValueError(bad(name, f"{before.get(name)}, as in {self.directory}, or another directory", str(value), WHO))
        weights = {name.removeprefix("model."): x for name, x in tensors.items() if name.startswith("model.")}
        self.model.load(weights)
        self.optimiser.load({name: x for name, x in tensors.items() if not name.startswith("model.")}, len(about["losses"]))
        self.losses, self.points = about["losses"], [Point(*point) for point in about["points"]]

    def export(self) -> Path:
        """Write the model as LLaMA's checkpoints are, model.safetensors and config.json, for `qkvc.models.Llama` and others."""
        from safetensors.numpy import save

        path = self.directory / "model.safetensors"
        write_whole(path, [save(self.model.tensors(), {"format": "pt"})])  # transformers asks for that word
        write_whole(self.directory / "config.json", [f"{json.dumps(self.model.config(), indent=2)}\n".encode()])
        return path

    # ---------------------------------------------------------------------------------------------------------------------- results

    def sample(self, prompt: bytes, count: int, temperature: float = 0.8) -> str:
        """The prompt and so many bytes after it, drawn from softmax(scores / temperature), with a cache.

        Each byte sees as many before it as in training: farther ones would stand at distances that the model has never met, and 128 bytes
        later it would write nonsense.
        """
        model, rng = self.model.llama(), np.random.default_rng(self.settings.seed)
        seen = self.settings.length
        caches = model.caches(1, seen + len(prompt), window=seen)
        text = bytearray(prompt)
        ids = np.frombuffer(bytes(prompt), np.uint8)[np.newaxis].astype(np.int64)
        for _ in range(count):
            scores = model.logits(model.states(ids, caches)[0, -1]).astype(np.float64) / temperature
            drawn = int((scores + rng.gumbel(size=BYTES)).argmax())  # the same as from the softmax
            text.append(drawn)
            ids = np.array([[drawn]])
        return bytes(text).decode(errors="replace")

    def draw(self, path: Path) -> None:
        """The losses of the steps, smoothed too, those of the validations, and the unigram entropy, with matplotlib."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.add_subplot()
        losses = np.array(self.losses)
        window = max(1, len(losses) // 50)
        axes.plot(np.arange(1, len(losses) + 1), losses, color="0.8", linewidth=0.8, label="each step")
        axes.plot(
            np.arange(window, len(losses) + 1), np.convolve(losses, np.ones(window) / window, "valid"), label=f"mean of {window} steps"
        )
        axes.plot([point.step for point in self.points], [point.loss for point in self.points], "o-", markersize=4, label="held back")
        axes.axhline(self.text.unigram(), color="0.5", linestyle="--", label="how often each byte comes")
        axes.set(xlabel="step", ylabel="loss, nats a byte", ylim=(0, None))
        axes.legend()
        figure.savefig(path)


def train(settings: Settings, source: Path | None, directory: Path, prompt: str, sampled: int) -> int:
    """Train, or go on; then write the model, draw the losses and let it write: `qkvc train`.

    Parameters
    ----------
    settings : Settings
    source : Path or None
        A text in UTF-8; None for `own_text`.
    directory : Path
        For checkpoints, the model and the picture.
    prompt : str
        What the sample begins with, a byte or more.
    sampled : int
        Its bytes.

    Returns
    -------
    int
        0.

    Raises
    ------
    ValueError, TypeError
        Settings, a text or a directory that do not fit.
    FloatingPointError, OSError
        Training that fails; the last checkpoint is whole.
    ModuleNotFoundError
        No safetensors.
    """
    import_module("safetensors")  # before the first step, not after a hundred; what the sample is asked for too
    as_count("sample", sampled, WHO, 0)
    beginning = prompt.encode(errors="replace")
    if not beginning or beginning.decode() != prompt:
        raise ValueError(bad("prompt", "a byte or more, in UTF-8", ascii(prompt)[:40], WHO))
    keep_memory()
    data = own_text() if source is None else source.read_bytes()
    text = Text(data, settings.length)
    run = Run(settings, text, directory)
    say(f"{len(data):,} bytes of {source or 'the reference of the Python language'}, {run.model.num_parameters():,} parameters")
    say(f"step {run.step} of {settings.steps}, checkpoints in {directory}")
    first, start, entropy = run.step, perf_counter(), text.unigram()

    def speed() -> float:
        return (run.step - first) * settings.batch * settings.length / max(perf_counter() - start, 1e-9)

    try:
        with progress(settings.steps, run.step) as show:

            def report(run: Run) -> None:
                now = f"loss {run.losses[-1]:.3f}, {speed():,.0f} tokens/s"
                show(run.step, now)
                if run.points[-1:] and run.points[-1].step == run.step:
                    say(f"step {run.step:6}: {now}, held back {run.points[-1].loss:.3f} (letters alone {entropy:.3f})")

            run.go(report)
    except KeyboardInterrupt:
        complain(f"stopped at step {run.step}; the same command goes on from {run._last()}")
        raise
    run.export()
    say(f"held back: {run.points[-1].loss:.3f} nats a byte; who knows how often each byte comes and nothing else: {entropy:.3f}")
    heading(f"{sampled} bytes after {prompt!r}")
    say(run.sample(beginning, sampled))
    picture = directory / "loss.png"
    try:
        run.draw(picture)
    except ModuleNotFoundError:
        say("\nno picture of the losses: matplotlib is not installed")
    else:
        say(f"\nthe losses are drawn in {picture}")
    return 0
