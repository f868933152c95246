"""An inspection as tables in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from partsum.coordinator.figures import bytes_text, count_text, names_text
from partsum.coordinator.inspection import Inspection, TensorView

_DEPTHS = {"hidden": "hidden only (mode residual)", "all": "everything (mode block)"}
_STYLES = {"passed": "green", "failed": "red", "refused": "yellow", "not run": "dim"}


def print_inspection(seen: Inspection) -> None:
    """Print it all."""
    console = Console()
    console.print(
        f"[bold]{escape(seen.task)}[/bold]: {escape(seen.model)}, "
        f"{count_text(seen.parameters)} parameters, {bytes_text(seen.state_bytes)}",
        highlight=False,
    )
    console.print(_group_table(seen))
    if seen.readouts:
        console.print(f"readouts, weighed by the merge: {escape(', '.join(seen.readouts))}")
    if seen.scales:
        console.print(f"scales, 1/K in a base of mode residual: {escape(names_text(seen.scales))}")
    _print_whole(console, seen)
    console.print()
    _print_gates(console, seen)
    console.print(_cost_table(seen))
    for depth in seen.depths:
        name = _DEPTHS[depth.depth]
        style = _STYLES[depth.outcome]
        console.print(f"certificate, {name}: [{style}]{depth.outcome}[/]: {escape(depth.said)}")
    for mode, refusal in (("block", seen.block_refusal), ("residual", seen.residual_refusal)):
        if refusal and not any(refusal in depth.said for depth in seen.depths):
            console.print(f"[yellow]mode {mode} cannot cut this model[/]: {escape(refusal)}")


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in columns:
        table.add_column(column)
    return table


def _group_table(seen: Inspection) -> Table:
    table = _table("group, and its tensors", "shape", "cut along")
    table.columns[0].overflow = "fold"
    views = {tensor.name: tensor for tensor in seen.tensors}
    for group in seen.groups:
        units = f"{count_text(group.units)} {'unit' if group.units == 1 else 'units'}"
        table.add_row(f"[bold]{escape(group.name)}[/]: {group.depth}, {units}")
        rows: dict[tuple[str, str, str], list[str]] = {}
        for name in group.tensors:
            view = views.get(name)
            module, _, leaf = name.rpartition(".")
            shape = "x".join(map(str, view.shape)) if view else "tied"
            rows.setdefault((module, shape, _along(view, group.name)), []).append(leaf)
        for (module, shape, along), leaves in rows.items():
            table.add_row(f"  {escape(_folded(module, leaves))}", shape, along)
        if group.attributes:
            table.add_row(f"  [dim]counted by {escape(', '.join(group.attributes))}[/]")
    return table


def _folded(module: str, leaves: Sequence[str]) -> str:
    """``features.1.{weight, bias}`` for tensors of one module that are cut alike."""
    if len(leaves) == 1:
        return f"{module}.{leaves[0]}".lstrip(".")
    return f"{module}.{{{', '.join(leaves)}}}".lstrip(".")


def _along(view: TensorView | None, group: str) -> str:
    """``0`` for a dimension of single indices, ``0: 49 a unit, 3 times`` for blocks."""
    said = []
    for cut in view.cuts if view else ():
        if cut.group == group:
            many = [f"{cut.block} a unit"] if cut.block > 1 else []
            many += [f"{len(cut.offsets)} times"] if len(cut.offsets) > 1 else []
            said.append(f"{cut.dim}: {', '.join(many)}" if many else str(cut.dim))
    return "; ".join(said)


def _print_whole(console: Console, seen: Inspection) -> None:
    """What stays whole, grouped by the reason."""
    by_reason: dict[str, list[str]] = {}
    for tensor in seen.tensors:
        if (tensor.reason or tensor.cover == "whole") and tensor.name not in seen.scales:
            other = "no group cuts it" if tensor.is_parameter else "buffers that no group cuts"
            reason = tensor.reason or other
            by_reason.setdefault(reason, []).append(tensor.name)
    if not by_reason:
        console.print("stays whole: nothing")
        return
    console.print("stays whole, or partly so:")
    for reason, names in by_reason.items():
        console.print(f"  [dim]{escape(reason)}:[/] {escape(names_text(names))}")


def _print_gates(console: Console, seen: Inspection) -> None:
    residual = [gate for gate in seen.gates if gate.kind == "residual"]
    if residual:
        table = _table("gate, and what leaves with it", "parameters")
        table.columns[0].overflow = "fold"
        table.columns[1].justify = "right"
        for gate in residual:
            modules = ", ".join(module for module in gate.modules if module != gate.name)
            what = f"[bold]{escape(gate.name)}[/]" + (f": {escape(modules)}" if modules else "")
            table.add_row(what, count_text(gate.parameters))
        console.print(table)
    partial = [gate.name for gate in seen.gates if gate.kind == "partial"]
    if partial:
        console.print(f"gates between sums of two halves: {escape(names_text(partial))}")
    if seen.gates:
        console.print()


def _cost_table(seen: Inspection) -> Table:
    table = _table("", "parameters", "share", "bytes")
    for column in table.columns[1:]:
        column.justify = "right"

    def row(name: str, parameters: int | None, size: int | None, style: str = "") -> None:
        if parameters is None:
            table.add_row(name, "-", "", "-", style=style)
            return
        share = f"{parameters / max(1, seen.parameters):.1%}"
        table.add_row(
            name, count_text(parameters), share, bytes_text(size) if size else "", style=style
        )

    row("whole model", seen.parameters, seen.state_bytes)
    row("  cut by a hidden group", seen.covered["hidden"], None, "dim")
    row("  by stream groups alone", seen.covered["stream"], None, "dim")
    row("  by none", seen.covered["whole"], None, "dim")
    for depth in seen.depths:
        row(f"1 of {seen.parts} parts, {_DEPTHS[depth.depth]}", depth.parameters, depth.state_bytes)
    return table
