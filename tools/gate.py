"""On the CPU at hand exactly the kernel sets of the first argument are offered, and attention, softmax and a layer are right on each."""

import sys

import numpy as np

import qkvc

wanted = tuple(sys.argv[1].split(","))
assert qkvc.kernels() == wanted, f"expected {wanted}, got {qkvc.kernels()}"
rng = np.random.default_rng(0)
for isa in wanted:
    for dtype in (np.float32, np.float64):
        query, key, value = (rng.standard_normal((2, 3, 150, 20)).astype(dtype) for _ in range(3))
        layer = qkvc.MultiHeadAttention(60, 3, dtype=dtype, rng=0)
        with qkvc.use_kernels(isa):
            got = qkvc.attention(query, key, value, causal=True, num_threads=2)
            weights = qkvc.softmax(query)
            mixed = layer(query[:, 0].repeat(3, axis=-1), causal=True)
        scores = np.einsum("...id,...jd->...ij", query, key, dtype=np.float64) / np.sqrt(20)
        p = np.exp(np.where(np.tri(150, dtype=bool), scores, -np.inf))
        halves = [x.astype(np.float16) for x in (query, key, value)]
        assert (qkvc.attention(*halves) == qkvc.attention(*(x.astype(np.float32) for x in halves)).astype(np.float16)).all()
        near = 1e-5 if dtype == np.float32 else 1e-13
        np.testing.assert_allclose(got, p / p.sum(-1, keepdims=True) @ value, near, near)
        np.testing.assert_allclose(weights.sum(-1), 1, near)
        assert np.isfinite(mixed).all()
