"""Follows channels through a convolutional net, operation by operation, as torch.fx traces it.

What is looked at is what is computed, not what it is called: an addition makes two lanes one, a
Linear or a convolution ends one and begins another, an activation lets it pass. An operation that
is not known keeps every lane that enters it whole, and says so.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

from partsum.shared.width.groups import LeftOut, named_tensors, tied_names
from partsum.shared.width.rules import operations
from partsum.shared.width.rules.lanes import Flow, Lane, Weight


class Tracer(fx.Tracer):
    """Traces down to the layers whose meaning is known, torch's own and what is derived of them."""

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        """Whether the module is one operation of the graph."""
        known = isinstance(module, (nn.Linear, _ConvNd, *NORMS))
        return known or super().is_leaf_module(module, qualified_name)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Let a check of what came in pass: sizes that must be equal are, before there are any."""
        compared = obj.node.all_input_nodes
        if obj.node.target in (operator.eq, operator.ne) and all(map(_is_size, compared)):
            return obj.node.target is operator.eq
        return super().to_bool(obj)


def _is_size(node: fx.Node) -> bool:
    """Whether the node is a size, or a list of sizes that one is picked of."""
    if node.target is operator.getitem:
        return _is_size(node.all_input_nodes[0])
    return node.target in (getattr, "size", "dim")


NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm, _InstanceNorm)


class Follower:
    """Walks over a traced model; ``lanes``, ``weights`` and ``left_out`` say what it saw."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        self.lanes: list[Lane] = []
        self.weights: list[Weight] = []
        self.left_out: list[LeftOut] = []
        self._model = model
        self._modules = dict(model.named_modules())
        self._tensors = named_tensors(model)
        self._calls: dict[str, tuple[Lane, Lane]] = {}
        self._numbers: set[fx.Node] = set()
        self._flows: dict[fx.Node, Flow] = {}
        for node in graph.nodes:
            flow = self._follow(node)
            if flow is not None:
                self._flows[node] = flow
        self._tie()

    def _tie(self) -> None:
        """One tensor under two names has one way to be cut: its lanes are the same."""
        first = {name: names[0] for names in tied_names(self._model) for name in names}
        holders: dict[tuple[str, int], Lane] = {}
        for lane in self.lanes:
            for span in list(lane.root.spans):
                tensor = first.get(span.tensor, span.tensor)
                lane.join(holders.setdefault((tensor, span.dim), lane))

    def _lane(self, name: str) -> Lane:
        lane = Lane(name, len(self.lanes))
        self.lanes.append(lane)
        return lane

    def _given(self, node: fx.Node) -> list[Flow]:
        return [self._flows[given] for given in node.all_input_nodes if given in self._flows]

    def _follow(self, node: fx.Node) -> Flow | None:
        """What the node computes; None for what is no tensor with channels (a size, a number)."""
        if node.op == "placeholder":
            lane = self._lane(node.name)
            lane.is_input = True
            return Flow(lane, None, None)
        if node.op == "output":
            for flow in self._given(node):
                flow.lane.root.is_output = True
            return None
        if node.op == "get_attr":
            return self._parameter(node)
        flows = self._given(node)
        if not flows:
            return None
        if node.op == "call_module":
            return self._layer(node, str(node.target), flows)
        name = node.target if isinstance(node.target, str) else node.target.__name__
        found = self._operation(node, name, flows)
        if found is NotImplemented:
            return self._stopped(node, f"the operation {name}", flows)
        assert found is None or isinstance(found, Flow)
        return found

    def _stopped(self, node: fx.Node, what: str, flows: list[Flow]) -> Flow:
        """Keep whole all that enters what is not understood, and what comes out of it."""
        reason = f"it goes through {what}, which may mix channels"
        for flow in flows:
            flow.lane.keep_whole(reason)
        lane = self._lane(node.name)
        lane.keep_whole(reason)
        return Flow(lane, None, None)

    def _parameter(self, node: fx.Node) -> Flow | None:
        """A bare parameter or buffer; one of a single number acts on all channels alike."""
        name = str(node.target)
        owner, _, attribute = name.rpartition(".")
        tensor = getattr(self._modules[owner], attribute)
        if not isinstance(tensor, Tensor):
            return None
        is_held = name in self._tensors  # else it is a constant of forward(), or a plain attribute
        if tensor.numel() == 1:
            self._numbers.add(node)
            if is_held:
                self._share(name)
            return None
        lane = self._lane(name)
        lane.keep_whole(f"{name} is a bare parameter, whose dimensions are not known")
        if is_held:
            lane.hold(name, 0, tensor.shape[0])
        return Flow(lane, None, None)

    def _share(self, name: str) -> None:
        self.left_out.append(LeftOut(name, "it is one number for all channels"))

    # -- operations without weights ---------------------------------------------------------------

    def _operation(self, node: fx.Node, name: str, flows: list[Flow]) -> Any:
        """What it makes of its flows; NotImplemented where it is not known."""
        first = flows[0]
        if operations.is_question(node, name):
            return None
        if name in operations.JOINS:
            if len(flows) == 2:
                return self._joined(node, name, first, flows[1])
            flowing = next(given for given in node.all_input_nodes if given in self._flows)
            by_number = operations.is_by_number(node, flowing, self._numbers)
            return first if by_number else NotImplemented
        if len(flows) > 1:
            return NotImplemented
        if name in operations.PASSES:
            return first
        reshape = operations.RESHAPES.get(name)
        return reshape(node, first) if reshape else NotImplemented

    def _joined(self, node: fx.Node, name: str, first: Flow, second: Flow) -> Flow:
        if first.size != second.size:
            return self._stopped(node, f"{name} with another number of channels", [first, second])
        first.lane.join(second.lane)
        if name in operations.SUMS:
            first.lane.root.is_stream = True
        ranks = [flow.rank for flow in (first, second) if flow.rank is not None]
        return Flow(first.lane, first.size, max(ranks, default=None))

    # -- layers -----------------------------------------------------------------------------------

    def _layer(self, node: fx.Node, path: str, flows: list[Flow]) -> Flow:
        module, flow = self._modules[path], flows[0]
        what = f"{path} ({type(module).__name__})"
        found: Any = NotImplemented
        if len(flows) == 1:
            for kind, follow in self._layers():
                if isinstance(module, kind):
                    found = follow(node, path, module, flow)
                    break
        if found is not NotImplemented:
            assert isinstance(found, Flow)
            return found
        for name, _ in module.named_parameters():
            self.left_out.append(
                LeftOut(f"{path}.{name}", f"{what} is not a layer that can be cut")
            )
        return self._stopped(node, what, flows)

    def _layers(self) -> Iterator[tuple[Any, Callable[..., Any]]]:
        yield nn.Linear, self._linear
        yield _ConvNd, self._convolution
        yield nn.GroupNorm, self._group_norm
        yield nn.LayerNorm, self._layer_norm
        yield (_BatchNorm, _InstanceNorm), self._channel_norm
        yield nn.PReLU, self._prelu
        yield (
            nn.Flatten,
            lambda node, path, module, flow: operations.flattened(
                flow, module.start_dim, module.end_dim
            ),
        )
        yield operations.PASSING_LAYERS, lambda node, path, module, flow: flow

    def _linear(self, node: fx.Node, path: str, module: nn.Linear, flow: Flow) -> Any:
        if flow.rank not in (2, None):
            return NotImplemented  # it reads a map's last dimension
        made = self._weigh(node, path, module, flow, (1, 0), module.in_features)
        return Flow(made, module.out_features, 2)

    def _convolution(self, node: fx.Node, path: str, module: _ConvNd, flow: Flow) -> Any:
        if flow.rank == 2 or (flow.size not in (None, module.in_channels)):
            return NotImplemented
        dims = (0, 1) if isinstance(module, _ConvTransposeNd) else (1, 0)
        if module.groups > 1:
            made = self._grouped(path, module, flow)
        else:
            made = self._weigh(node, path, module, flow, dims, module.in_channels)
        return Flow(made, module.out_channels, len(module.kernel_size) + 2)

    def _weigh(
        self,
        node: fx.Node,
        path: str,
        module: nn.Linear | _ConvNd,
        flow: Flow,
        dims: tuple[int, int],
        size: int,
    ) -> Lane:
        """A weight that reads one lane and makes another, of which ``dims`` are (read, made)."""
        made = self._lane(path)
        flow.lane.hold(f"{path}.weight", dims[0], size)
        made.hold(f"{path}.weight", dims[1], module.weight.shape[dims[1]])
        if module.bias is not None:
            made.hold(f"{path}.bias", 0, module.bias.shape[0])
        if path in self._calls:  # called before: it reads and makes the same lanes
            self._calls[path][0].join(flow.lane)
            self._calls[path][1].join(made)
        self._calls[path] = (flow.lane, made)
        readers = [self._modules.get(str(user.target)) for user in node.users]
        is_normed = bool(readers) and all(isinstance(reader, NORMS) for reader in readers)
        self.weights.append(Weight(path, flow.lane, made, is_normed))
        return made

    def _grouped(self, path: str, module: _ConvNd, flow: Flow) -> Lane:
        """Each group of channels makes its own: the lane goes on, a group is its finest unit."""
        lane = flow.lane
        lane.hold(f"{path}.weight", 0, module.weight.shape[0])
        if module.bias is not None:
            lane.hold(f"{path}.bias", 0, module.out_channels)
        for attribute in ("groups", "in_channels", "out_channels"):
            lane.count(path, attribute, getattr(module, attribute))
        return lane

    def _channel_norm(self, node: fx.Node, path: str, module: nn.Module, flow: Flow) -> Any:
        """Batch and instance norm know each channel by itself; running statistics are its own."""
        for name, tensor in module.state_dict().items():
            if tensor.dim() == 1:
                flow.lane.hold(f"{path}.{name}", 0, tensor.shape[0])
        return flow

    def _group_norm(self, node: fx.Node, path: str, module: nn.GroupNorm, flow: Flow) -> Any:
        for attribute in ("num_groups", "num_channels"):
            flow.lane.count(path, attribute, getattr(module, attribute))
        return self._channel_norm(node, path, module, flow)

    def _layer_norm(self, node: fx.Node, path: str, module: nn.LayerNorm, flow: Flow) -> Any:
        if flow.rank != 2:
            return NotImplemented
        flow.lane.root.is_stream = True  # its statistics are those of all units together
        return self._channel_norm(node, path, module, flow)

    def _prelu(self, node: fx.Node, path: str, module: nn.PReLU, flow: Flow) -> Any:
        if module.num_parameters == 1:
            self._share(f"{path}.weight")
            return flow
        flow.lane.count(path, "num_parameters", module.num_parameters)
        return self._channel_norm(node, path, module, flow)
