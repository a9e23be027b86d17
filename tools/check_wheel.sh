#!/usr/bin/env bash
# check_wheel.sh PYTHON WHEEL: is it under 2 MB, and does it compute in an environment with NumPy alone?
set -euo pipefail
python=$1 wheel=$2
bytes=$(stat -c %s "$wheel")
echo "$(basename "$wheel"): $bytes bytes"
[ "$bytes" -lt 2000000 ] || { echo "over 2 MB"; exit 1; }
bare=$(mktemp -d)
trap 'rm -rf "$bare"' EXIT
"$python" -m venv "$bare/venv"
"$bare/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$wheel"
cd "$bare"
"$bare/venv/bin/python" -W error - <<'PY'
import numpy as np, qkvc
from importlib.metadata import requires
x = np.eye(3, dtype=np.float32)
weights = qkvc.attention(x, x, x)
assert np.allclose(weights.sum(-1), 1) and qkvc.__version__
print("computes with", qkvc.show_config("dicts")["kernels"]["in use"], "and needs", [r for r in requires("qkvc") if "extra" not in r])
PY
