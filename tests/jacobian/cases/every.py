"""All cases by name."""

from jacobian.cases import dense
from jacobian.cases.case import cases_of

__all__ = ["CASES"]

CASES = cases_of(dense)
