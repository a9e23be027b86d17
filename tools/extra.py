"""Print the requirements of one of qkvc's extras, one word each: `pip install $(python tools/extra.py test)`."""

import re
import sys
from importlib.metadata import requires


def main() -> None:
    extra = sys.argv[1]
    marked = [re.match(r"([^;\s]+)\s*;.*extra == ['\"]([\w-]+)['\"]", line) for line in requires("qkvc") or ()]
    names = [match[1] for match in marked if match and match[2] == extra]
    if not names:
        sys.exit(f"qkvc has no extra named {extra!r}")
    print(*names)


if __name__ == "__main__":
    main()
