"""Pictures of attention, with matplotlib (`pip install qkvc[plot]`).

Arrays in, Axes out: every function draws on the `ax` it is given, grids on the `figure`, or else on a new figure of fitting size, and never
shows it.  pyplot is not touched: `qkvc.plot.heatmap(...).figure.savefig("head.png")` writes a picture without a display.

Colours are perceptually uniform from 0 up (viridis), or diverge from 0 where numbers have signs (red and blue); roles have those of Okabe
and Ito.  Tokens are drawn as they are.  Chinese ones need a font that is installed, such as Noto Sans CJK or WenQuanYi; if there is none,
one warning says which were looked for.
"""

from qkvc.plot.block import transformer_block
from qkvc.plot.heads import entropy, overview, roles, similarity
from qkvc.plot.scaling import score_variance, sharpness
from qkvc.plot.shapes import concat, output_projection, split
from qkvc.plot.speed import roofline
from qkvc.plot.training import trajectories
from qkvc.plot.weights import head_grid, heatmap, rollout

__all__ = [
    "concat",
    "entropy",
    "head_grid",
    "heatmap",
    "output_projection",
    "overview",
    "roles",
    "rollout",
    "roofline",
    "score_variance",
    "sharpness",
    "similarity",
    "split",
    "trajectories",
    "transformer_block",
]
