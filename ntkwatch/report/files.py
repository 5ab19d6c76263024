"""Writing a file so that a reader finds the old one or the new one, and never half of either.

Knows nothing of what is written.
"""

import os
from pathlib import Path

__all__ = ["write_whole"]


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name beside it, and rename it when it is whole.

    Args:
        path: The file. A link is followed; a device or pipe is written to as it is.
        content: All of it; text is written as UTF-8.
    """
    data = content.encode() if isinstance(content, str) else content
    target = path.resolve()
    if target.exists() and not target.is_file():
        target.write_bytes(data)
        return
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
