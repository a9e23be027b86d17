"""Draws every function of qkvc.plot, in English and Chinese: `python docs/gallery.py [DIRECTORY]`, out/gallery by default.

Weights are those of all-MiniLM-L6-v2 where its package and the extra `demo` are installed, and made up otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import qkvc
from qkvc import plot

ENGLISH = "The animal didn't cross the street because it was too tired."
CHINESE = ["那", "只", "动物", "没有", "过", "马路", "，", "因为", "它", "太", "累", "了", "。"]
Picture = tuple[str, Callable[[str], Any]]


def real_weights() -> tuple[list[str], np.ndarray]:
    """Tokens of a sentence and what MiniLM's heads do with them, (layers, heads, L, L)."""
    try:
        from qkvc.models import MiniLM

        tokens, maps = MiniLM.from_package().attention_maps(ENGLISH)
        return list(tokens), np.asarray(maps)
    except ModuleNotFoundError:
        tokens = ENGLISH.split()
        return tokens, made_up(6, 12, len(tokens))


def made_up(layers: int, heads: int, length: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    query, key = rng.standard_normal((2, layers, heads, length, 32), dtype=np.float32)
    return qkvc.attention_weights(2 * query, key)


def pictures() -> list[Picture]:
    """Names, and functions from a language to Axes."""
    rng = np.random.default_rng(1)
    tokens, maps = real_weights()
    layers, heads, length, _ = maps.shape
    chinese = made_up(6, 12, len(CHINESE))

    def words(language: str) -> tuple[list[str], np.ndarray]:
        return (tokens, maps) if language == "en" else (CHINESE, chinese)

    it, animal = (next(i for i, token in enumerate(tokens) if token.startswith(word)) for word in ("it", "animal"))
    best = np.unravel_index(maps[:, :, it, animal].argmax(), (layers, heads))  # who finds the noun
    where = {"en": f"Layer {best[0]}, head {best[1]}: “it” finds “animal”", "zh": "编造的权重，中文词元"}
    marks = {"en": (it, animal), "zh": (8, 2)}

    entropies = -(maps * np.log(np.maximum(maps, 1e-30))).sum(-1).mean(-1)
    first = maps[..., 0].mean(-1)
    change = first - first.mean()
    flat = maps.reshape(layers * heads, -1)
    flat = flat / np.linalg.norm(flat, axis=-1, keepdims=True)

    rules = {"en": ("previous", "next", "self", "first"), "zh": ("前一个", "后一个", "自身", "首词元")}
    masses = [maps[..., range(1, length), range(length - 1)].mean(-1), maps[..., range(length - 1), range(1, length)].mean(-1)]
    masses += [np.trace(maps, axis1=-2, axis2=-1) / length, first]

    def roles(language: str) -> list[list[str | None]]:
        rule, score = np.argmax(masses, 0), np.max(masses, 0)
        return [[rules[language][rule[i, j]] if score[i, j] > 0.3 else None for j in range(heads)] for i in range(layers)]

    def rollouts(weights: np.ndarray) -> np.ndarray:
        mixed = 0.5 * weights.mean(1) + 0.5 * np.eye(weights.shape[-1])
        steps = [mixed[0]]
        for layer in mixed[1:]:
            steps.append(layer @ steps[-1])
        return np.stack(steps)

    dims = 2 ** np.arange(2, 11)
    variances = []
    for d in dims:
        query, key = rng.standard_normal((2, 4000, d))
        variances.append(np.var((query * key).sum(-1)))
    before = np.array(variances)

    scales = np.geomspace(0.05, 20, 100)
    scores = np.array([1.0, 0.6, 0.2, -0.3, -1.0])
    weights = qkvc.softmax(scales[:, None] * scores)

    ways = np.cumsum(rng.standard_normal((60, 8, 16)) * 0.08, 0) + np.linspace(0, 1, 60)[:, None, None] * np.repeat(
        rng.standard_normal((2, 16)) * 1.5, 4, 0
    )
    names = {
        "en": ("apple", "banana", "pear", "grape", "microsoft", "google", "intel", "sony"),
        "zh": ("苹果", "香蕉", "梨", "葡萄", "微软", "谷歌", "英特尔", "索尼"),
    }
    kinds = {"en": ["fruit"] * 4 + ["company"] * 4, "zh": ["水果"] * 4 + ["公司"] * 4}
    intensity = np.geomspace(0.5, 200, 14)
    roof = np.minimum(200, 50 * intensity)
    speed, rivals = roof * rng.uniform(0.7, 0.95, 14), roof * rng.uniform(0.3, 0.8, 14)
    w_o = rng.standard_normal((384, 384)) * 0.05 * np.repeat(rng.uniform(0.3, 1.5, 12), 32)

    def say(language: str, english: str, zh: str) -> str:
        return english if language == "en" else zh

    return [
        (
            "heatmap",
            lambda n: plot.heatmap(words(n)[1][best], words(n)[0], title=where[n], mark=marks[n], language=n),
        ),
        (
            "heatmap_log",
            lambda n: plot.heatmap(
                words(n)[1][4, 5], words(n)[0], title=say(n, "A sink, and the rest", "汇聚点与其余"), log=True, language=n
            ),
        ),
        (
            "head_grid",
            lambda n: plot.head_grid(words(n)[1][2], words(n)[0], title=say(n, "All heads of layer 2", "第 2 层的所有头"), language=n),
        ),
        (
            "overview",
            lambda n: plot.overview(
                first, label=say(n, "weight of the first token", "首词元的权重"), title=say(n, "Sinks", "汇聚点"), language=n
            ),
        ),
        ("overview_signed", lambda n: plot.overview(change, label=say(n, "less the mean", "减去平均值"), language=n)),
        ("similarity", lambda n: plot.similarity(flat @ flat.T, heads=heads, label=say(n, "cosine", "余弦"), language=n)),
        ("similarity_clustered", lambda n: plot.similarity(flat[:24] @ flat[:24].T, heads=heads, cluster=True, language=n)),
        ("roles", lambda n: plot.roles(roles(n), order=rules[n], title=say(n, "Roles of the heads", "头的角色"), language=n)),
        ("entropy", lambda n: plot.entropy(entropies, keys=length, title=say(n, "Who is sure?", "谁更确定？"), language=n)),
        (
            "rollout",
            lambda n: plot.rollout(
                rollouts(words(n)[1]),
                words(n)[0],
                query={"en": it, "zh": 8}[n],
                title=say(n, "What reaches “it”", "流向“它”的信息"),
                language=n,
            ),
        ),
        ("score_variance", lambda n: plot.score_variance(dims, before, before / dims, language=n)),
        ("sharpness", lambda n: plot.sharpness(scales, weights, title=say(n, "One takes all", "赢者通吃"), language=n)),
        ("concat", lambda n: plot.concat(32, 16, 128, title=say(n, "4096 = 32 × 128", "4096 = 32 × 128"), language=n)),
        ("concat_few", lambda n: plot.concat(4, 16, 128, language=n)),
        ("output_projection", lambda n: plot.output_projection(w_o, 12, language=n)),
        ("trajectories", lambda n: plot.trajectories(ways, names[n], groups=kinds[n], language=n)),
        ("roofline", lambda n: plot.roofline(intensity, speed, peak=200, bandwidth=50, rivals=rivals, language=n)),
    ]


def main(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, draw in pictures():
        for language in ("en", "zh"):
            drawn = draw(language)
            figure = (drawn[0] if isinstance(drawn, np.ndarray) else drawn).figure
            figure.savefig(directory / f"{name}.{language}.png", dpi=130)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/gallery"))
