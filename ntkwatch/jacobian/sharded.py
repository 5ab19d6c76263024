"""A model whose parameters are sharded over processes, as a function of its inputs.

No weight can be put in the place of a shard, so the model runs as it is and its own hooks gather
the weights. What is differentiated are the gathered parameters themselves, as the forward pass
reads them. Every process makes the same calls with the same inputs.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import Node

from ntkwatch.errors import CoverageError, ModelChangedError
from ntkwatch.jacobian.exchanged import in_place_of
from ntkwatch.jacobian.forward import ForwardFn
from ntkwatch.jacobian.functional import ModelFunction, Params
from ntkwatch.jacobian.inputs import Inputs
from ntkwatch.jacobian.moving import set_moving
from ntkwatch.jacobian.sharding_check import check_one_dtype
from ntkwatch.jacobian.shards import (
    gathered_by,
    is_shard,
    of_the_first,
    recover,
    reshard,
    sharding_modules,
)
from ntkwatch.jacobian.structured.graph import Graph, Unstructured

__all__ = ["ShardedFunction", "function_of"]


def function_of(
    model: nn.Module, forward: ForwardFn | None = None, *, dtype: torch.dtype
) -> ModelFunction:
    """Return a model as a function, whether it is held whole or sharded.

    Args:
        model: The model.
        forward: How to call it.
        dtype: Of the function.

    Returns:
        The function.
    """
    kind = ShardedFunction if sharding_modules(model) else ModelFunction
    return kind(model, forward, dtype=dtype)


class ShardedFunction(ModelFunction):
    """A model under FSDP2 as a function of its inputs, at the weights that it holds.

    Args:
        model: A module with ``fully_shard`` applied to it, or to parts of it.
        forward: How to call it.
        dtype: That of its parameters.

    Attributes:
        params: This process's shards by clean name: sizes and dtypes, no values to compute with.
        buffers: Copies of all buffers, as the first process has them: training may have left each
            process with its own, and all of them must see one function.

    Raises:
        InputError: If the parameters are of another dtype.
    """

    replaceable = False

    def __init__(
        self, model: nn.Module, forward: ForwardFn | None = None, *, dtype: torch.dtype
    ) -> None:
        check_one_dtype(model, dtype)
        super().__init__(model, forward, dtype=dtype)
        self._full_names = {
            self._slots[name]: name for name, _ in model.named_parameters() if name in self._slots
        }
        self.buffers = of_the_first(self.buffers, self.params)
        self._direction: Mapping[str, Tensor] = {}
        self._given: Params = dict(in_place_of(model))
        self.params |= {name: tensor.detach() for name, tensor in self._given.items()}

    @property
    def widest(self) -> torch.dtype:
        """The only dtype there is."""
        return self.dtype

    def __call__(
        self,
        params: Mapping[str, Tensor],
        inputs: Inputs,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Return the outputs at the present weights, without a graph.

        Args:
            params: None, since shards cannot be replaced.
            inputs: Model inputs.
            buffers: Buffers by clean name.

        Returns:
            The outputs.
        """
        if params:
            self._refuse()
        with torch.no_grad():
            outputs, _ = self._recorded(inputs, buffers)
        reshard(self.model)
        return outputs

    def trace(
        self, names: Sequence[str], inputs: Inputs, buffers: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Params]:
        """Return the outputs in the graph of the gathered parameters, and those parameters.

        Args:
            names: Parameters wanted.
            inputs: Model inputs.
            buffers: Buffers by clean name.

        Returns:
            The outputs, and the leaves of their graph by name; for one whose module did not run,
            and so gathered nothing, a leaf that nothing depends on.

        Raises:
            CoverageError: If the graph holds a parameter that no forward pass of a module gathered.
        """
        with torch.enable_grad():
            outputs, live = self._recorded(inputs, buffers)
        for name, leaf in live.items():
            if leaf.dtype != self.params[name].dtype:
                raise CoverageError(
                    f"FSDP casts {name} to {leaf.dtype} (MixedPrecisionPolicy), and the rounding "
                    "would pass for drift. Compute the kernel of a saved checkpoint in one process "
                    "instead."
                )
        known = {id(leaf) for leaf in live.values()}
        variables = [getattr(n, "variable", None) for n in Graph(outputs, {}).nodes]
        unknown = [v for v in variables if v is not None and id(v) not in known]
        if unknown:
            raise CoverageError(
                f"{type(self.model).__name__} uses {len(unknown)} parameters (the first of shape "
                f"{tuple(unknown[0].shape)}) that no forward pass of its modules gathered, so it "
                "is not known which they are. Are they sharded in another way too, or used by a "
                "method other than forward?"
            )
        return outputs, {name: live.get(name, self._unused(name)) for name in names}

    def _unused(self, name: str) -> Tensor:
        """A leaf of the right shape that nothing depends on, and that takes no memory."""
        like = self.params[name]
        return (
            torch.zeros((), dtype=like.dtype, device=like.device)
            .expand(like.shape)
            .detach()
            .requires_grad_()
        )

    @contextmanager
    def along(self, direction: Mapping[str, Tensor]) -> Iterator[None]:
        """Let the parameters move in a direction: outputs then carry their derivative along it.

        Forward mode, as ``torch.autograd.forward_ad`` has it. Each module's part of the direction
        is gathered when the module runs.

        Args:
            direction: Shards by clean name; parameters left out stand still.

        Yields:
            Nothing.
        """
        self._direction = direction
        try:
            with forward_ad.dual_level():
                yield
        finally:
            self._direction = {}

    def _recorded(
        self, inputs: Inputs, buffers: Mapping[str, Tensor] | None
    ) -> tuple[Tensor, Params]:
        """A forward pass, and the parameters that its modules gathered, by name."""
        present = in_place_of(self.model)
        ours = present.keys() == self._given.keys()
        if not (ours and all(present[name] is given for name, given in self._given.items())):
            self._refuse()
        live: Params = {}
        versions: dict[str, int] = {}
        stack = ExitStack()

        def note(*_: object) -> None:
            for name, leaf in self._present().items():
                if name not in live:
                    live[name], versions[name] = leaf, leaf._version
            if self._direction:
                set_moving(stack, self.model, self._slots, self._direction)

        with stack:
            note()
            # FSDP's own hooks come first, so each sees its module's parameters gathered.
            for module in sharding_modules(self.model).values():
                stack.callback(module.register_forward_pre_hook(note).remove)
            try:
                outputs = self._run({}, inputs, buffers)
            except BaseException:
                recover(self.model)
                raise
        written = [name for name, leaf in live.items() if leaf._version != versions[name]]
        if written:
            raise ModelChangedError(
                f"the forward pass of {type(self.model).__name__} writes to {len(written)} of its "
                f"own parameters in evaluation mode ({', '.join(written[:3])}), so measuring would "
                "alter the training. Move such updates out of forward(), or pass forward= without "
                "them."
            )
        return outputs, live

    def _present(self) -> Params:
        """The parameters that are whole at this moment."""
        found: Params = {}
        for slot, name in self._slots.items():
            path, _, attribute = slot.rpartition(".")
            leaf = self.model.get_submodule(path)._parameters.get(attribute)
            if leaf is not None and not is_shard(leaf):
                found[name] = leaf
        return found

    def blocks(self, names: Sequence[str]) -> list[list[str]]:
        """Return the names by the module that gathers them: what may be held whole together."""
        found: dict[str, list[str]] = {}
        for name in names:
            path, _ = gathered_by(self.model, self._full_names.get(name, name))
            found.setdefault(path, []).append(name)
        return list(found.values())

    @contextmanager
    def gathered(self, name: str, nodes: Sequence[Node]) -> Iterator[None]:
        """Hold a parameter whole, so that operations which saved it can be called by themselves.

        Args:
            name: The parameter.
            nodes: The operations.

        Yields:
            Nothing.

        Raises:
            Unstructured: If one of them saved a parameter that is gathered with others.
        """
        _, module = gathered_by(self.model, self._full_names.get(name, name))
        if module is not None:
            module.unshard()
        try:
            for node in nodes:
                if _is_freed(node):
                    raise Unstructured(
                        f"{node.name()} reads parameters that FSDP gathers with different modules",
                        node,
                    )
            yield
        finally:
            if module is not None:
                module.reshard()

    def borrowed(self) -> list[Tensor]:
        """Return nothing to be guarded: each call looks for writes itself."""
        return []

    def copy_params(self, names: Any) -> None:
        """Do nothing: the forward pass is held not to write to parameters at each call."""

    def put_state(self, state: Params) -> None:
        """Use these parameters, while they stand in the place of the model's own, and buffers."""
        for name in self.params:
            if name in state:
                self.params[name], self._given[name] = state[name].detach(), state[name]
        super().put_state({name: b for name, b in state.items() if name in self.buffers})

    def leaf_params(self, names: list[str]) -> Params:
        """Refuse: there are leaves in a forward pass only."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise CoverageError(
            f"the parameters of {type(self.model).__name__} are sharded over processes, so others "
            "cannot be put in their place, as this number needs. Compute it from a saved "
            "checkpoint in one process."
        )


def _is_freed(node: Any) -> bool:
    """Whether an operation saved a tensor whose memory is given back."""
    saved = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
    saved += list(getattr(node, "saved_tensors", ()))
    return any(
        isinstance(t, Tensor) and t.numel() > 0 and t.untyped_storage().size() == 0 for t in saved
    )
