"""`qkvc look`: what the heads of a real model do with a sentence of the reader's."""

from __future__ import annotations

import argparse
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from qkvc._console import complain, heading, progress, say, table
from qkvc._files import write_whole
from qkvc.inside import AttentionStats, attention_stats

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from qkvc.analysis import Ablation
    from qkvc.models import Watch
    from qkvc.models.watch import Model

    Reals = NDArray[np.float64]

SENTENCE = "The animal didn't cross the street because it was too tired."
STATISTICS = ("entropy", "normalised_entropy", "confidence", "distance", "first_mass")
TOP = 16  # keys of each query that are looked at, and kept where the matrix is too large
SHOWN_TOKENS, SHOWN_HEADS, SHOWN_LINKS = 60, 4, 10
IDLE = 0.02  # of the output's length

CHINESE = {
    "{0}: {1} layers of {2} heads": "{0}：{1} 层，每层 {2} 个头",
    "{0} tokens: {1}": "{0} 个词元：{1}",
    "What the heads do (layer.head, score)": "各头的角色（层.头，得分）",
    "role": "角色",
    "heads": "头数",
    "strongest": "得分最高",
    "no rule holds": "没有规则成立",
    "induction": "归纳",
    "duplicate": "重复词元",
    "previous": "前一词元",
    "next": "后一词元",
    "self": "自身",
    "separator": "分隔符",
    "punctuation": "标点",
    "first": "首词元",
    "broad": "分散",
    "Strongest links between words": "词与词之间最强的联系",
    "left out: neighbours, the first token, separators and punctuation": "不计相邻词元、首词元、分隔符和标点",
    "query": "查询",
    "key": "键",
    "weight": "权重",
    "head": "头",
    "Heads that are missed most": "去掉后影响最大的头",
    "change of the output": "输出变化",
    "cosine": "余弦",
    "heads without which the output changes by less than {0:.0%}: {1} of {2}": "去掉后输出变化不到 {0:.0%} 的头：{2} 个中有 {1} 个",
    "Layer {0}, head {1}: where each token looks": "第 {0} 层第 {1} 头：各词元注意哪里",
    "looks at": "注意",
    "picture: {0}": "图片：{0}",
    "report: {0}": "报告：{0}",
    "no picture: {0} (pip install matplotlib)": "没有图片：{0}（pip install matplotlib）",
    "what each head does": "各头的角色",
    "confidence: the mean of each query's largest weight": "置信度：各查询最大权重的平均",
    "confidence": "置信度",
    "only the first {0} tokens are looked at": "只看前 {0} 个词元",
}


class Found(NamedTuple):
    """What is known of a model and a text; arrays are (layers, H)."""

    watch: Watch
    statistics: dict[str, Reals]
    roles: NDArray[Any]  # Role or None
    top: list[AttentionStats]
    ablation: Ablation | None


class Words:
    """What is printed, in English or Chinese: called with the English and what it has to name."""

    def __init__(self, language: str) -> None:
        self.chinese = language == "zh"

    def __call__(self, text: str, *values: object) -> str:
        return (CHINESE[text] if self.chinese else text).format(*values)


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Put the command into the parser."""
    parser = commands.add_parser("look", help="what the heads of a real model do with a sentence: tables, a picture, a page")
    parser.add_argument("text", nargs="?", default=SENTENCE, metavar="SENTENCE", help="(default: %(default)s)")
    parser.add_argument("--model", type=Path, metavar="DIR", help="of BERT's, GPT-2's or LLaMA's form (default: the installed MiniLM)")
    parser.add_argument("--out", type=Path, default=Path("qkvc-look"), metavar="DIR", help="for picture and page (default: %(default)s)")
    parser.add_argument("--layer", type=int, metavar="N", help="with --head, a head to print and to draw; counted from 0")
    parser.add_argument("--head", type=int, metavar="N")
    parser.add_argument("--no-ablation", dest="ablation", action="store_false", help="do not compute the text once more without each head")
    parser.add_argument("--lang", choices=["en", "zh"], default="en", help="of all that is shown (default: %(default)s)")
    parser.set_defaults(command=run, misuse=parser.error)


def run(options: argparse.Namespace) -> int:
    """Look, print and write."""
    from qkvc.models import MiniLM, load
    from qkvc.report import report

    try:
        model: Model = MiniLM.from_package() if options.model is None else load(options.model)
    except (ModuleNotFoundError, ValueError) as error:
        complain(str(error))
        return 1
    if model.tokenizer is None:
        complain(f"{options.model}: expected tokenizer.json, or vocab.txt for bert, to cut the sentence by, got neither")
        return 1
    chosen = _chosen(options, model)
    words = Words(options.lang)
    try:
        tokens, _ = model.tokens(options.text)
    except (TypeError, ValueError) as error:
        options.misuse(str(error))
    options.out.mkdir(parents=True, exist_ok=True)  # where that cannot be, before the work
    name = "all-MiniLM-L6-v2" if options.model is None else options.model.resolve().name
    heading(words("{0}: {1} layers of {2} heads", name, model.num_layers, model.num_heads))
    listed = "  ".join(f"{index} {_shown(token)}" for index, token in enumerate(tokens[:SHOWN_TOKENS]))
    say(words("{0} tokens: {1}", len(tokens), listed) + (" …" if len(tokens) > SHOWN_TOKENS else ""))
    found = look(model, options.text, ablation=options.ablation)
    if was_cut(model, options.text):
        say(words("only the first {0} tokens are looked at", len(tokens)))
    show_roles(found, words)
    show_links(found, words)
    show_ablation(found, words)
    if chosen is not None:
        show_head(found, *chosen, words)
    say()
    try:
        for path in draw(found, name, chosen, options.out, options.lang, words):
            say(words("picture: {0}", path))
    except ModuleNotFoundError as error:
        say(words("no picture: {0} (pip install matplotlib)", error))
    path = report(
        options.out / "report.html",
        found.watch.tokens,
        weights_of(found),
        title=f"{name}: {_cut(' '.join(options.text.split()), 100)}",
        statistics=found.statistics,
        roles=found.roles,
        ablation={} if found.ablation is None else {name: getattr(found.ablation, name) for name in found.ablation._fields[1:]},
        language=options.lang,
    )
    say(words("report: {0}", path))
    return 0


def _chosen(options: argparse.Namespace, model: Model) -> tuple[int, int] | None:
    if (options.layer is None) != (options.head is None):
        options.misuse("--layer and --head: expected both or neither, got one")
    if options.layer is None:
        return None
    for option, index, count in (("--layer", options.layer, model.num_layers), ("--head", options.head, model.num_heads)):
        if not 0 <= index < count:
            options.misuse(f"{option}: expected 0 to {count - 1}, got {index}")
    return options.layer, options.head


def was_cut(model: Model, text: str) -> bool:
    """Does the model's tokenizer leave the end of the text out, as MiniLM's does after 256 tokens?"""
    return bool(model.tokenizer.encode(text).overflowing)


def look(model: Model, text: str, *, ablation: bool) -> Found:
    """Statistics, roles, heaviest links and ablations of all heads; no layer's weights are written down."""
    from qkvc.analysis import ablate, head_roles, head_statistics, pattern_scores

    watch = model.watch(text)
    layers, heads = model.num_layers, model.num_heads
    statistics, roles, top = [], [], []
    with progress(layers + (layers * heads if ablation else 0)) as done:
        for layer, (query, key) in enumerate(zip(watch.query, watch.key, strict=True)):
            statistics.append(head_statistics(query, key, causal=watch.causal))
            roles.append(head_roles(pattern_scores(query, key, tokens=watch.tokens, causal=watch.causal), statistics[-1]))
            top.append(attention_stats(query, key, causal=watch.causal, top_k=min(len(watch.ids), TOP)))
            done(layer + 1, "")
        missed = ablate(model, text, progress=lambda n, _: done(layers + n, "")) if ablation else None
    numbers = {name: np.stack([getattr(of, name) for of in statistics]) for name in STATISTICS}
    return Found(watch, numbers, np.stack(roles), top, missed)


def weights_of(found: Found) -> list[Any]:
    """What a report takes: all weights where they fit, or the heaviest links of each query."""
    from qkvc.report import keeps_matrix

    watch = found.watch
    layers, heads = found.roles.shape
    if keeps_matrix(layers, heads, len(watch.ids), causal=watch.causal):
        return [watch.weights(layer) for layer in range(layers)]
    return list(found.top)


def show_roles(found: Found, words: Words) -> None:
    """A line for each role that occurs: how many heads have it, and which have it most."""
    by_role: dict[str, list[tuple[float, str]]] = {}
    for (layer, head), role in np.ndenumerate(found.roles):
        by_role.setdefault("no rule holds" if role is None else role.name, []).append(
            (-1 if role is None else role.score, f"{layer}.{head}")
        )
    rows = []
    for name, heads in sorted(by_role.items(), key=lambda item: (item[0] == "no rule holds", -len(item[1]))):
        best = sorted(heads, key=lambda head: -head[0])[:SHOWN_HEADS]
        rows.append([words(name), "  ".join(f"{head} ({score:.2f})" for score, head in best if score >= 0), str(len(heads))])
    table(words("What the heads do (layer.head, score)"), [words("role"), words("strongest"), words("heads")], rows, text_columns=2)


def strongest(found: Found) -> list[tuple[float, int, int, str]]:
    """Weight, query, key and head of the heaviest links between words, each pair once; neighbours, the first token and marks left out."""
    from qkvc.analysis.patterns import SEPARATORS, is_punctuation

    tokens = found.watch.tokens
    mark = np.array([index == 0 or token in SEPARATORS or is_punctuation(token) for index, token in enumerate(tokens)])
    best: dict[tuple[int, int], tuple[float, str]] = {}
    for layer, top in enumerate(found.top):
        assert top.top_keys is not None
        assert top.top_weights is not None
        queries = np.arange(len(tokens))[:, np.newaxis]
        wanted = (top.top_keys >= 0) & (np.abs(top.top_keys - queries) > 1) & ~mark[queries] & ~mark[top.top_keys]
        weights = np.where(wanted, top.top_weights, 0)
        for n in np.argsort(-weights, axis=None, kind="stable")[: SHOWN_LINKS * found.roles.shape[1]]:
            head, query, place = np.unravel_index(n, weights.shape)
            pair, weight = (int(query), int(top.top_keys[head, query, place])), float(weights[head, query, place])
            if weight > best.get(pair, (0.0, ""))[0]:
                best[pair] = weight, f"{layer}.{head}"
    return sorted(((weight, *pair, head) for pair, (weight, head) in best.items()), reverse=True)[:SHOWN_LINKS]


def show_links(found: Found, words: Words) -> None:
    """Which words look at which."""
    tokens = found.watch.tokens
    rows = [
        [f"{_shown(tokens[query])} ({query})", f"{_shown(tokens[key])} ({key})", head, f"{weight:.3f}"]
        for weight, query, key, head in strongest(found)
    ]
    if rows:
        columns = [words("query"), words("key"), words("head"), words("weight")]
        table(words("Strongest links between words"), columns, rows, text_columns=2)
        say(words("left out: neighbours, the first token, separators and punctuation"))


def show_ablation(found: Found, words: Words) -> None:
    """Which heads are missed, and how many are not."""
    from qkvc.analysis import idle_heads

    if (missed := found.ablation) is None:
        return
    rows = []
    for n in np.argsort(-missed.change, axis=None, kind="stable")[:SHOWN_HEADS]:
        layer, head = np.unravel_index(n, missed.change.shape)
        role: Any = found.roles[layer, head]
        numbers = [f"{missed.change[layer, head]:.3f}", f"{missed.cosine[layer, head]:.4f}"]
        rows.append([f"{layer}.{head}", "" if role is None else words(role.name), *numbers])
    columns = [words("head"), words("role"), words("change of the output"), words("cosine")]
    table(words("Heads that are missed most"), columns, rows, text_columns=2)
    idle = idle_heads(missed, below=IDLE)
    say(words("heads without which the output changes by less than {0:.0%}: {1} of {2}", IDLE, len(idle), missed.change.size))


def show_head(found: Found, layer: int, head: int, words: Words) -> None:
    """A head, a line for each token."""
    tokens, top = found.watch.tokens, found.top[layer]
    assert top.top_keys is not None
    assert top.top_weights is not None
    rows = []
    for query, token in enumerate(tokens):
        links = zip(top.top_keys[head, query, :3], top.top_weights[head, query, :3], strict=True)
        looks = "  ".join(f"{_shown(tokens[key])} ({key}) {weight:.3f}" for key, weight in links if key >= 0 and weight > 0)
        rows.append([f"{_shown(token)} ({query})", looks])
    table(words("Layer {0}, head {1}: where each token looks", layer, head), [words("query"), words("looks at")], rows, text_columns=2)


def draw(found: Found, name: str, chosen: tuple[int, int] | None, out: Path, language: str, words: Words) -> list[Path]:
    """The pictures: what all heads do, and the weights of the chosen one."""
    from matplotlib.figure import Figure

    from qkvc.plot import heatmap, overview, roles

    layers, heads = found.roles.shape
    figure = Figure(figsize=(max(6.0, 0.5 * heads + 3.0), max(5.0, 0.84 * layers + 2.6)), layout="constrained")
    parts: Any = figure.subfigures(2, 1)
    upper, lower = (part.add_subplot() for part in parts)
    roles(
        [[None if role is None else words(role.name) for role in row] for row in found.roles],
        title=f"{name}: {words('what each head does')}",
        language=language,
        ax=upper,
    )
    title = words("confidence: the mean of each query's largest weight")
    overview(found.statistics["confidence"], label=words("confidence"), title=title, language=language, ax=lower)
    paths = [_saved(figure, out / "heads.png")]
    if chosen is not None:
        layer, head = chosen
        ax = heatmap(found.watch.weights(layer, [head])[0], found.watch.tokens, title=f"{name} {layer}.{head}", language=language)
        paths.append(_saved(cast("Figure", ax.figure), out / f"layer-{layer}-head-{head}.png"))
    return paths


def _saved(figure: Figure, path: Path) -> Path:
    picture = BytesIO()
    figure.savefig(picture, dpi=150, format="png")
    return write_whole(path, [picture.getvalue()])


def _shown(token: str) -> str:
    """A token in a line of a terminal: nothing in it moves the cursor or ends the line."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in token)
    return _cut(text.strip(), 24) or "␣" * len(text) or '""'


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
