"""Files that are there wholly or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def write_whole(path: str | os.PathLike[str], parts: Iterable[bytes]) -> Path:
    """Write beside the path, then take its place: whoever looks, and whatever fails, finds the old file or the new one."""
    target = Path(path)
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # or the new name might be lost with the power
    finally:
        os.close(directory)
    return target
