"""Attention of few queries, by kernels with the roles swapped."""

from qkvc._kernels cimport Task
from qkvc._plan cimport Plan

# A call that was planned in pieces; `whole` does a head again by tiles.
cdef int decode_all(Plan plan, Task whole) except -1
