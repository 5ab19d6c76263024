"""All cases by name."""

from jacobian.cases import (
    attention,
    convolutions,
    dense,
    embeddings,
    graphs,
    huggingface,
    norms,
    odd,
    probes,
    recurrent,
    weights,
)
from jacobian.cases.case import cases_of

__all__ = ["CASES"]

CASES = cases_of(
    dense,
    convolutions,
    norms,
    embeddings,
    attention,
    recurrent,
    weights,
    odd,
    graphs,
    huggingface,
    probes,
)
