"""Tasks for the threads."""

from qkvc._plan cimport Problem

# What a lane costs beside its flops, in flops of the same time for each of D + Dv.
cdef double LANE_OVERHEAD

# Tiles and threads; anew where the problem was changed after planning.
cdef int cut(Problem *p, object num_threads) except -1

# The same of a ragged batch, whose `runs` the plan frees.
cdef int cut_runs(Problem *p, object num_threads) except -1
