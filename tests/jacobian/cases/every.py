"""All cases by name."""

from jacobian.cases import (
    adapters,
    attention,
    convolutions,
    dense,
    embeddings,
    functions,
    graphs,
    huggingface,
    norms,
    odd,
    probes,
    recurrent,
    rows,
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
    adapters,
    odd,
    functions,
    rows,
    graphs,
    huggingface,
    probes,
)
