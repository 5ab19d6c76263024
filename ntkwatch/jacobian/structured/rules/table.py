"""All rules together: importing a file of rules puts them into the table."""

from ntkwatch.jacobian.structured.graph import dtype_of
from ntkwatch.jacobian.structured.rules import convolution, matmul, norms, pointwise, tables
from ntkwatch.jacobian.structured.rules.forms import Outer, Rows, rule_for
from ntkwatch.jacobian.structured.uses import Use

__all__ = ["form_of"]

_FILES = (convolution, matmul, norms, pointwise, tables)


def form_of(use: Use) -> Outer | Rows | None:
    """Return how per-sample gradients of a use are formed; None if by calling the operation."""
    rule = rule_for(use)
    if rule is None or len(use.edges) != 1 or use.edges[0].output != 0:
        return None
    # The gradient of a complex product takes conjugates: too rare for rules of their own.
    if dtype_of(use.derived).is_complex or dtype_of(use.edges[0]).is_complex:
        return None
    return rule(use)
