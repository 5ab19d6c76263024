"""What a dependency has or does only since some version, for runs at the lowest ones allowed."""

from importlib.metadata import version

import pytest
from packaging.version import Version

__all__ = ["at_least", "needs"]


def at_least(package: str, lowest: str) -> bool:
    return Version(version(package)) >= Version(lowest)


def needs(package: str, lowest: str) -> pytest.MarkDecorator:
    """Skip a test where ``package`` is older than ``lowest``; where all must run, that fails."""
    reason = f"needs {package} {lowest} or newer"
    return pytest.mark.skipif(not at_least(package, lowest), reason=reason)
