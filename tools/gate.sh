#!/usr/bin/env bash
# No instruction leaves its gate: import and compute on emulated CPUs without AVX (Nehalem) and without AVX-512 (Haswell).
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1

refuses() { # the emulator must kill what the CPU cannot run, or the rest would prove nothing
    echo "int main(void) { __asm__ volatile(\"$2\"); return 0; }" | ${CC:-cc} -xc - -o build/refused
    if { qemu-x86_64 -cpu "$1" build/refused; } 2>/dev/null; then
        echo "qemu-x86_64 -cpu $1 runs $2: this version cannot show a leak" >&2
        exit 1
    fi
}

mkdir -p build
refuses Nehalem "vxorps %ymm0, %ymm0, %ymm0"
refuses Haswell "vpxord %zmm0, %zmm0, %zmm0"
for cpu in Nehalem:portable Haswell:avx2,portable; do
    qemu-x86_64 -cpu "${cpu%:*}" "$python" tools/gate.py "${cpu#*:}" 2> >(grep -v "TCG doesn't support" >&2)
    echo "${cpu%:*}: imports, and computes with ${cpu#*:}"
done
