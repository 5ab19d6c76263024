"""``J v`` as ntkwatch gives it, and as the rows of plain autograd's Jacobian do."""

import torch

from ntkwatch.jacobian.functional import ModelFunction
from ntkwatch.jacobian.inputs import cast_inputs
from ntkwatch.jacobian.linearize import jacobian_vector_product
from ntkwatch.jacobian.undisturbed import undisturbed

from oracles import dense_jacobian

__all__ = ["autograd_product", "direction_of", "product"]


def product(model, inputs, tangents, dtype=torch.float64, *, wide=True):
    """J v as ntkwatch gives it, (N, C), with its method."""
    with undisturbed(model):

        def outputs_in(kind):
            function = ModelFunction(model, dtype=kind)
            samples = cast_inputs(inputs, device=torch.device("cpu"), dtype=kind)
            return lambda params: function(params, samples).flatten(1)

        params = ModelFunction(model, dtype=dtype).params
        v = {name: tangents[name].to(p.dtype) for name, p in params.items()}
        return jacobian_vector_product(
            outputs_in(dtype),
            params,
            v,
            in_float64=(lambda: outputs_in(torch.float64)) if wide else None,
        )


def direction_of(model):
    return {
        name: torch.randn(p.shape, dtype=p.dtype if p.is_complex() else torch.float64)
        for name, p in model.named_parameters()
    }


def autograd_product(model, inputs, tangents):
    """J v from the rows of the Jacobian: as autograd sees the model in reverse."""
    return sum(
        block @ tangents[name].flatten() for name, block in dense_jacobian(model, inputs).items()
    )
