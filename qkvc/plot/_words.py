"""The words of pictures, in English and Chinese."""

from __future__ import annotations

from qkvc._coerce import bad

CHINESE = {
    "attention weight": "注意力权重",
    "attention weight (log scale)": "注意力权重（对数刻度）",
    "query (who looks)": "查询（谁在看）",
    "key (what is looked at)": "键（看什么）",
    "a cell: the largest of {0}": "每格为 {0} 中最大者",
    "a cell: the farthest from 0 of {0}": "每格为 {0} 中离 0 最远者",
    "head {0}": "头 {0}",
    "head": "头",
    "layer": "层",
    "similarity": "相似度",
    "head (layer.head)": "头（层.头）",
    "no role": "无角色",
    "entropy of the weights (nats)": "权重的熵（奈特）",
    "mean of the layer": "该层平均",
    "uniform over {0} keys: ln {0}": "{0} 个键均匀分布：ln {0}",
    "rollout": "注意力展开",
    "token of the input": "输入词元",
    "after layer": "经过层数",
    "token": "词元",
    "width of a head, d_k": "头的宽度 d_k",
    "variance of q · k": "q · k 的方差",
    "before scaling": "缩放前",
    "after scaling by 1/√d_k": "乘以 1/√d_k 之后",
    "y = d_k": "y = d_k",
    "scale of the scores": "分数的缩放系数",
    "softmax weight": "softmax 权重",
    "key {0}": "键 {0}",
    "uniform: 1/{0}": "均匀分布：1/{0}",
    "item {0}": "样本 {0}",
    "{0} heads of (L, D)": "{0} 个头，各为 (L, D)",
    "side by side: (L, H · D)": "并排拼接：(L, H · D)",
    "concat": "拼接",
    "column of W_O, by head": "W_O 的列，按头分组",
    "row of W_O (output)": "W_O 的行（输出）",
    "weight": "权重",
    "norm": "归一化",
    "{0} heads: softmax(Q Kᵀ / √{1}) V, concat": "{0} 个头：softmax(Q Kᵀ / √{1}) V，拼接",
    "tokens, (L, {0})": "词元，(L, {0})",
    "learned: {0:,}": "可训练：{0:,}",
    "frozen: {0:,}": "冻结：{0:,}",
    "nothing to learn": "没有参数",
    "step": "步",
    "component {0} ({1:.0f} % of the variance)": "主成分 {0}（占方差 {1:.0f}%）",
    "operations per byte": "每字节的运算次数",
    "GFLOP/s": "GFLOP/s",
    "FMA peak {0:.0f} GFLOP/s": "FMA 峰值 {0:.0f} GFLOP/s",
    "read {0:.0f} GB/s": "读取 {0:.0f} GB/s",
    "measured": "实测",
    "best rival": "最快的对手",
}
LANGUAGES = ("en", "zh")


class Words:
    """The captions of one picture: called with the English one and what it has to name.

    Parameters
    ----------
    language : {"en", "zh"}
        English or Chinese.
    who : str
        The function that draws, for the error.

    Raises
    ------
    ValueError
        Another language.
    """

    def __init__(self, language: str, who: str) -> None:
        if language not in LANGUAGES:
            raise ValueError(bad("language", '"en" or "zh"', repr(language), who))
        self.chinese = language == "zh"

    def __call__(self, caption: str, *values: object) -> str:
        # Looked up in both languages: a caption that has no Chinese form fails in the first test that draws it.
        chinese = CHINESE[caption]
        return (chinese if self.chinese else caption).format(*values)
