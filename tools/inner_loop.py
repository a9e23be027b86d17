"""Of a disassembly on standard input, print the innermost loop that has the most fused multiply-adds: `make asm`."""

import re
import sys

Instruction = tuple[int, str]


def innermost_loops(code: list[Instruction]) -> list[list[Instruction]]:
    """Runs of instructions that end in a jump back to their start and have no other jump inside."""
    index = {address: i for i, (address, _) in enumerate(code)}
    loops = []
    for i, (address, text) in enumerate(code):
        jump = re.match(r"j\w+\s+([0-9a-f]+)", text)
        start = index.get(int(jump[1], 16)) if jump else None
        if start is not None and int(jump[1], 16) < address:
            body = code[start : i + 1]
            if not any(text.startswith("j") for _, text in body[:-1]):
                loops.append(body)
    return loops


def main() -> None:
    lines = (re.match(r"\s+([0-9a-f]+):\s+(.*)", line) for line in sys.stdin)
    code = [(int(line[1], 16), line[2].strip()) for line in lines if line]
    loop = max(innermost_loops(code), key=lambda body: sum("fmadd" in text for _, text in body))
    print("\n".join(text for _, text in loop))
    fmas, stack = sum("fmadd" in text for _, text in loop), sum("rsp" in text for _, text in loop)
    print(f"# {len(loop)} instructions, {fmas} fused multiply-adds, {stack} of them touch the stack")


if __name__ == "__main__":
    main()
