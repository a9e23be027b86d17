"""What training does to attention, measured on small models: the claims of tutorials about Q, K and V, put to the test.

Every experiment is a function with a seed: the same bits each time, for any number of threads.  Its docstring says what came out, whether
or not that is what one reads elsewhere.  ``qkvc experiment`` runs them.

=============  ==========================================================================================
function       question
=============  ==========================================================================================
`four_tokens`  Do random projections tell fruit from companies?
`meaning`      Does the same word's output depend on its context, and do clusters emerge?
`induction`    Do heads take roles that nobody assigned, and when?
`seats`        Which head takes which role: is its number of any meaning?
`splitting`    One wide head or many narrow ones, with equal parameters?
`freezing`     Which of Q, K and V is missed most, frozen in training or cut off from context afterwards?
`saturation`   Does the gradient vanish in a softmax without 1 / sqrt(d_k)?
=============  ==========================================================================================
"""

from qkvc.experiments.copying import Induction, induction
from qkvc.experiments.freezing import Freezing, freezing
from qkvc.experiments.meaning import FourTokens, Meaning, four_tokens, meaning
from qkvc.experiments.offsets import Seats, Splitting, seats, splitting
from qkvc.experiments.saturation import Saturation, saturation

__all__ = [
    "FourTokens",
    "Freezing",
    "Induction",
    "Meaning",
    "Saturation",
    "Seats",
    "Splitting",
    "four_tokens",
    "freezing",
    "induction",
    "meaning",
    "saturation",
    "seats",
    "splitting",
]
