"""A graph of which one token alone goes on is computed for that token alone."""

import operator
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx

# Of tokens `(batch, num_tokens, dim)` they change each by itself, and nothing in place.
TOKENWISE = {F.linear, F.layer_norm, F.gelu, F.dropout, operator.add, operator.mul}


def keep_rows(module: fx.GraphModule) -> fx.GraphModule:
    """Computes in place of `steps(tokens)[:, 0]` the same `steps(tokens[:, :1])[:, 0]`.

    Behind its last attention a ViT with a class token norms, multiplies and adds every token and
    then drops all but one. Nothing of that is needed, and of the gradient it would be zeros that
    go backward through the same products. What anything else reads stays whole.

    Args:
        module: a graph of Dynamo's; changed in place.

    Returns:
        The same.
    """
    nodes = list(module.graph.nodes)
    rows = _Rows()
    for node in reversed(nodes):
        only_rows = all(user in rows.left_out or _takes_row(user) for user in node.users)
        if only_rows and _is_tokenwise(node):
            rows.left_out.add(node)
    for node in nodes:
        if _takes_row(node) and node.args[0] in rows.left_out:
            tokens, (every, place, *rest) = node.args
            # From the front, so that one row has one name.
            row = rows.find(tokens, place % _shape(tokens)[1])
            node.args = (row, (every, 0, *rest))
    for node in reversed(nodes):
        if node in rows.left_out:
            module.graph.erase_node(node)
    module.recompile()
    return module


class _Rows:
    """Single rows of nodes, each made once.

    Attributes:
        left_out: nodes of which the rows are computed instead of the whole.
    """

    def __init__(self) -> None:
        self.left_out: set[fx.Node] = set()
        self._made: dict[tuple[fx.Node, int], fx.Node] = {}

    def find(self, value: Any, place: int) -> Any:
        """Row `place` of a node's tokens, `(batch, 1, dim)`; what has no tokens as it is."""
        if not isinstance(value, fx.Node) or len(_shape(value)) != 3:
            return value
        if (value, place) not in self._made:
            one = slice(None), slice(place, place + 1)
            call: tuple[Any, ...] = operator.getitem, (value, one)
            if value in self.left_out:
                args = tuple(self.find(each, place) for each in value.args)
                call = value.target, args, value.kwargs
            # At once behind the whole: nothing was changed in place since, nor grad turned off.
            with value.graph.inserting_after(value):
                self._made[value, place] = value.graph.call_function(*call)
        return self._made[value, place]


def _takes_row(node: fx.Node) -> bool:
    """Whether it is `tokens[:, place]` or `tokens[:, place, :]`."""
    if node.target is not operator.getitem or len(_shape(node.args[0])) != 3:
        return False
    index: Any = node.args[1]
    every = slice(None)
    is_row = isinstance(index, tuple) and len(index) > 1 and type(index[1]) is int
    return is_row and index[0] == every and index[2:] in ((), (every,))


def _is_tokenwise(node: fx.Node) -> bool:
    if node.target not in TOKENWISE or any(isinstance(v, fx.Node) for v in node.kwargs.values()):
        return False
    args: tuple[Any, ...] = node.args
    if node.target is F.dropout and args[2:3] != (False,):  # in training it draws
        return False
    if node.target is F.layer_norm and [len(size) for size in args[1:2]] != [1]:  # over tokens
        return False
    shape = _shape(node)
    # What has other sizes, but for a product's weight, is not one row a token.
    sizes = map(_shape, args[:1] if node.target is F.linear else args)
    return len(shape) == 3 and all(len(s) < 2 or s[:-1] == shape[:-1] for s in sizes)


def _shape(value: Any) -> tuple[int, ...]:
    """Of a tensor in the graph; empty for all else."""
    made = value.meta.get("example_value") if isinstance(value, fx.Node) else None
    return tuple(made.shape) if isinstance(made, Tensor) else ()
