"use strict";

const WORDS = {
  en: {
    other: "中文", sizes: "{0} layers × {1} heads × {2} tokens", causal: "causal",
    overview: "All heads",
    overviewHelp:
      "Each picture is a head: a row per query, a column per key, the darker the more weight (in the dark: the lighter), up to the " +
      "head’s largest. Layers, heads and tokens are counted from 0. Choose a head to look into it.",
    mark: "Mark by", order: "Order", byPlace: "layer and head", byMark: "the mark, largest first",
    none: "none", role: "role", tableHead: "head", noRole: "no rule holds", score: "score", layer: "layer {0}", head: "head {0}",
    place: "Layer {0}, head {1}", short: "L{0} H{1}",
    query: "query (who looks)", key: "key (what is looked at)",
    headHelp:
      "Point at a token on the left to see where it looks, on the right to see who looks at it; a click or Enter holds it. Arrow keys " +
      "walk. The thicker the line, the larger the weight; without a token the {0} largest of each query from {1} % on.",
    previous: "the head before", next: "the head after",
    map: "Heat map of {0}: {1} queries as rows, {1} keys as columns. Arrow keys move the cross.",
    scale: "weight", ofBin: "the largest of {0} × {0} tokens",
    looksAt: "{0} looks at", seenBy: "{0} is looked at by", nowhere: "none of the weights that are kept",
    statistics: "Statistics of all heads", statisticsHelp: "Choose a column to sort by it, a head to look into it.",
    ablation: "What changes without a head", ablationHelp: "Each head was ablated alone.",
    note: "Each weight is kept in 8 bits: it is off by at most 1/510 of the largest of its query.",
    noteLinks:
      "Too many for all weights of {0} tokens: kept are the {1} largest of each query. Each is kept in 8 bits: off by at most 1/510 of " +
      "the largest of its query.",
    trouble: "This browser cannot unpack the weights: {0}",
  },
  zh: {
    other: "English", sizes: "{0} 层 × {1} 头 × {2} 个词元", causal: "因果",
    overview: "全部注意力头",
    overviewHelp: "每幅小图是一个头：一行一个查询，一列一个键，颜色越深权重越大（深色模式下越亮越大），以该头的最大权重为上限。层、头和词元都从 0 数起。点选一个头可细看。",
    mark: "标注", order: "顺序", byPlace: "按层和头", byMark: "按标注，从大到小",
    none: "无", role: "角色", tableHead: "头", noRole: "没有规则成立", score: "得分", layer: "第 {0} 层", head: "第 {0} 头", place: "第 {0} 层，第 {1} 头",
    short: "层{0} 头{1}",
    query: "查询（谁在看）", key: "键（看什么）",
    headHelp:
      "指向左侧词元，看它注意哪里；指向右侧词元，看谁注意它；单击或按回车可固定，方向键可移动。" +
      "线越粗权重越大；未选词元时，显示每个查询最大的 {0} 个权重，且不低于 {1}%。",
    previous: "上一个头", next: "下一个头", map: "{0}的热图：{1} 个查询为行，{1} 个键为列。方向键移动十字线。",
    scale: "权重", ofBin: "{0} × {0} 个词元中的最大值",
    looksAt: "{0} 注意", seenBy: "注意 {0} 的有", nowhere: "保留的权重中没有",
    statistics: "各头统计", statisticsHelp: "点列名按该列排序，点头的名称可细看该头。",
    ablation: "去掉一个头会怎样", ablationHelp: "每次只消融一个头。",
    note: "每个权重以 8 位保存：误差不超过其查询最大权重的 1/510。",
    noteLinks: "{0} 个词元的全部权重太大：每个查询只保留最大的 {1} 个，各以 8 位保存，误差不超过其查询最大权重的 1/510。",
    trouble: "此浏览器无法解开权重：{0}",
  },
};
// What statistics and roles are called, where that is not their own name.
const CHINESE = {
  entropy: "熵", normalised_entropy: "归一化熵", confidence: "置信度", distance: "注意距离", first_mass: "首词元权重",
  induction: "归纳", duplicate: "重复词元", previous: "前一词元", next: "后一词元", self: "自身", separator: "分隔符", punctuation: "标点",
  first: "首词元", broad: "分散", change: "输出变化", cosine: "输出余弦", sentence_cosine: "句向量余弦",
};
