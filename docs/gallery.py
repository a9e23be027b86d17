"""Draws every function of qkvc.plot, in English and Chinese: `python docs/gallery.py [DIRECTORY]`, out/gallery by default.

Weights are those of all-MiniLM-L6-v2 where its package and the extra `demo` are installed, and random otherwise; Chinese tokens have random
ones, because that model knows no Chinese.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import qkvc
from qkvc import nn, plot

ENGLISH = "The animal didn't cross the street because it was too tired."
CHINESE = ["那", "只", "动物", "没有", "过", "马路", "，", "因为", "它", "太", "累", "了", "。"]


def of_minilm() -> tuple[list[str], np.ndarray]:
    """The tokens of a sentence and what each head makes of them, (layers, heads, L, L)."""
    try:
        from qkvc.models import MiniLM

        tokens, maps = MiniLM.from_package().attention_maps(ENGLISH)
    except ModuleNotFoundError:
        tokens = ENGLISH.lower().split()
        maps = at_random(len(tokens))
    return tokens, np.asarray(maps)


def at_random(length: int) -> np.ndarray:
    query, key = np.random.default_rng(0).standard_normal((2, 6, 12, length, 32))
    return qkvc.attention_weights(2 * query, key)


def pictures(language: str) -> Iterator[tuple[str, Any]]:
    """Names and what is drawn, Axes or an array of them."""
    english = language == "en"
    rng = np.random.default_rng(1)
    tokens, maps = of_minilm()
    words, shown = (tokens, maps) if english else (CHINESE, at_random(len(CHINESE)))
    layers, heads, length, _ = maps.shape
    pronoun, noun = (words.index(word) for word in (("it", "animal") if english else ("它", "动物")))
    layer, head = (int(n) for n in np.unravel_index(shown[:, :, pronoun, noun].argmax(), shown.shape[:2]))

    def say(in_english: str, in_chinese: str) -> str:
        return in_english if english else in_chinese

    title = say(f"Layer {layer}, head {head}: “it” looks at “animal”", f"第 {layer} 层，头 {head}（随机权重）")
    yield "heatmap", plot.heatmap(shown[layer, head], words, title=title, mark=(pronoun, noun), language=language)
    title = say("The same, where a sink hides nothing", "同一个头，对数刻度")
    yield "heatmap_log", plot.heatmap(shown[layer, head], words, title=title, log=True, language=language)
    title = say(f"All heads of layer {layer}", f"第 {layer} 层的所有头")
    yield "head_grid", plot.head_grid(shown[layer], words, title=title, language=language)

    first = maps[..., 0].mean(-1)
    label = say("mean weight of the first token", "首词元的平均权重")
    yield "overview", plot.overview(first, label=label, title=say("Sinks", "汇聚点"), language=language)
    title = say("Less than the mean, and more", "低于与高于平均")
    yield "overview_signed", plot.overview(first - first.mean(), label=label, title=title, language=language)

    rows = maps.reshape(layers * heads, -1)
    rows = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    cosine = say("cosine of the weights", "权重的余弦")
    yield "similarity", plot.similarity(rows @ rows.T, heads=heads, label=cosine, language=language)
    title = say("The same, look-alikes side by side", "同上，相似的头排在一起")
    yield "similarity_cluster", plot.similarity(rows @ rows.T, heads=heads, cluster=True, label=cosine, title=title, language=language)

    names = ("first", "previous", "next", "itself") if english else ("首词元", "前一个", "后一个", "自身")
    masses = np.stack([first, *(np.diagonal(maps, offset, -2, -1).sum(-1) / length for offset in (-1, 1, 0))])
    found = [[names[masses[:, i, j].argmax()] if masses[:, i, j].max() > 0.3 else None for j in range(heads)] for i in range(layers)]
    title = say("Where more than 30 % of the weight goes", "超过 30% 的权重去向")
    yield "roles", plot.roles(found, order=names, title=title, language=language)
    entropies = -(maps * np.log(np.maximum(maps, 1e-30))).sum(-1).mean(-1)
    yield "entropy", plot.entropy(entropies, keys=length, title=say("Who is sure?", "谁更确定？"), language=language)

    mixed = 0.5 * shown.mean(1) + 0.5 * np.eye(len(words))
    rollouts = [mixed[0]]
    for mixing in mixed[1:]:
        rollouts.append(mixing @ rollouts[-1])
    title = say("What reaches “it”", "流向“它”的信息")
    yield "rollout", plot.rollout(rollouts, words, query=pronoun, title=title, language=language)

    dims = 2 ** np.arange(2, 11)
    variances = np.array([np.prod(rng.standard_normal((2, 4000, d)), 0).sum(-1).var() for d in dims])
    yield "score_variance", plot.score_variance(dims, variances, variances / dims, language=language)
    scales = np.geomspace(0.05, 20, 100)
    weights = qkvc.softmax(scales[:, None] * np.array([1.0, 0.6, 0.2, -0.3, -1.0]))
    yield "sharpness", plot.sharpness(scales, weights, title=say("One takes all", "赢者通吃"), language=language)

    yield "split", plot.split(4, 4, 16, 128, title="[4, 4, 16, 128]", language=language)
    yield "concat", plot.concat(32, 16, 128, title="4096 = 32 × 128", language=language)
    w_o = 0.05 * rng.standard_normal((384, 384)) * np.repeat(rng.uniform(0.3, 1.5, 12), 32)
    yield "output_projection", plot.output_projection(w_o, 12, title=say("Random numbers, as W_O", "以随机数代替 W_O"), language=language)

    fruit, firms = (("apple", "banana", "pear", "grape"), ("shares", "profits", "staff", "lawyers"))
    if not english:
        fruit, firms = (("苹果", "香蕉", "梨", "葡萄"), ("股票", "利润", "员工", "律师"))
    steps = np.arange(60) * 10
    pulled = np.linspace(0, 1, 60)[:, None, None] * np.repeat(1.5 * rng.standard_normal((2, 16)), 4, 0)
    ways = 0.08 * rng.standard_normal((60, 8, 16)).cumsum(0) + pulled
    groups = [say("fruit", "水果")] * 4 + [say("company", "公司")] * 4
    title = say("Random walks, pulled apart", "随机游走，逐渐分开")
    yield "trajectories", plot.trajectories(ways, [*fruit, *firms], steps=steps, groups=groups, title=title, language=language)

    attention, norms = qkvc.MultiHeadAttention(512, 8, rng=0), (nn.LayerNorm(512), nn.LayerNorm(512))
    block = nn.TransformerBlock(nn.SelfAttention(attention), nn.FeedForward(512, rng=0), norms)
    yield "transformer_block", plot.transformer_block(block, title=say("What a block learns", "一个块学什么"), language=language)

    intensity = np.geomspace(0.5, 200, 14)
    roof = np.minimum(200, 50 * intensity)
    speed, rivals = roof * rng.uniform(0.7, 0.95, 14), roof * rng.uniform(0.3, 0.8, 14)
    title = say("Made-up speeds", "虚构的速度")
    yield "roofline", plot.roofline(intensity, speed, peak=200, bandwidth=50, rivals=rivals, title=title, language=language)


def main(directory: Path) -> None:
    """Write a PNG for each picture and language, `heatmap.en.png` and so on."""
    directory.mkdir(parents=True, exist_ok=True)
    for language in ("en", "zh"):
        for name, drawn in pictures(language):
            axes = drawn[0] if isinstance(drawn, np.ndarray) else drawn
            axes.figure.savefig(directory / f"{name}.{language}.png", dpi=130)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/gallery"))
