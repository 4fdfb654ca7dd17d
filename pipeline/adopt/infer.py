"""From a foreign graph, and what its owner says of it, to a manifest.

What is said always wins; the rest is found out: states by `names`, axes by the input's shape and by running the graph
twice with other numbers of streams and frames and looking which lengths of the output followed. What cannot be found
out is asked for, all of it in one message.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.adopt.graph import Graph, Tensor
from pipeline.adopt.names import fits, pairs
from pipeline.adopt.probe import Findings, probe
from pipeline.errors import ManifestError

Wishes = Mapping[str, Any]
"""Parts of a manifest, as its JSON has them: what the owner says."""

_RATES = ("sr", "sample_rate", "sampling_rate", "rate", "fs")


def infer(graph: Graph, wishes: Wishes) -> Findings:
    """Everything that a manifest says of the graph.

    Args:
        graph: it.
        wishes: what its owner says: sections `input`, `frontend`, `model`, `head`, and `labels`, `task`, `licence`.
    Raises:
        ManifestError: no state; states that do not fit; or the list of what has to be said, and by which flag.
    """
    about = Findings()
    model: dict[str, Any] = dict(wishes.get("model", {}))
    _check_names(graph, model)
    states = _states(graph, model)
    main = _main(graph, model, states, about)
    _constants(graph, model, states, main, wishes, about)
    _axes(graph, model, states, main, wishes, about)
    model["states"] = [_state(graph, one, how, main, model, about) for one, how in states]
    model["given"] = [_given(graph, g, main, model, about) for g in model.get("given", [])]
    if about.asked:
        raise ManifestError(f"{graph.source}: {len(about.asked)} things cannot be inferred: {'; '.join(about.asked)}")
    probe(graph, model, about)
    if about.asked:
        raise ManifestError(f"{graph.source}: {'; '.join(about.asked)}")
    about.model = model
    return about


def _check_names(graph: Graph, model: Mapping[str, Any]) -> None:
    """Raises ManifestError for names that the graph does not have."""
    ins = [model.get("input"), *(s.get("input") for s in model.get("states", []))]
    ins += [c.get("input") for c in (*model.get("constants", []), *model.get("given", []))]
    outs = [model.get("output"), *model.get("also", []), *(s.get("output") for s in model.get("states", []))]
    for kind, names, there in (("input", ins, graph.inputs), ("output", outs, graph.outputs)):
        for name in names:
            if name is not None and name not in [t.name for t in there]:
                have = ", ".join(map(str, there))
                raise ManifestError(f"{graph.source}: no {kind} {name!r} in the graph; it has {have}")


def _states(graph: Graph, model: Mapping[str, Any]) -> list[tuple[dict[str, Any], str]]:
    said = {s["input"]: dict(s) for s in model.get("states", [])}
    spoken_for = {model.get("input"), *(c["input"] for c in (*model.get("constants", []), *model.get("given", [])))}
    reserved = {model.get("output"), *model.get("also", []), *(s.get("output") for s in said.values())}
    guessed = pairs(
        [t for t in graph.inputs if t.name not in spoken_for | said.keys()],
        [t for t in graph.outputs if t.name not in reserved],
    )
    found = [(one, "said") for one in said.values()]
    found += [({"input": i, "output": o}, how) for i, (o, how) in guessed.items()]
    for one, _ in found:
        i, o = graph.input(one["input"]), graph.output(one.get("output", ""))
        if i is None or o is None or not fits(i, o):
            raise ManifestError(
                f"{graph.source}: state {i} and {o} differ: what one step gives must be what the next one takes. "
                "Name the right pair (--state IN=OUT)"
            )
    if not found:
        raise ManifestError(
            f"{graph.source}: no state: none of its inputs ({_names(graph.inputs)}) comes back among its outputs "
            f"({_names(graph.outputs)}). If one does, name the pair (--state IN=OUT); a model that carries nothing "
            "from chunk to chunk needs no statebelt"
        )
    order = [t.name for t in graph.inputs]
    return sorted(found, key=lambda one: order.index(one[0]["input"]))


def _names(tensors: tuple[Tensor, ...]) -> str:
    return ", ".join(map(str, tensors)) or "none"


def _main(graph: Graph, model: dict[str, Any], states: list[tuple[dict[str, Any], str]], about: Findings) -> Tensor:
    """The signal's input: as said, or the first of floats that is nothing else."""
    taken = {s["input"] for s, _ in states} | {
        c["input"] for c in (*model.get("constants", []), *model.get("given", []))
    }
    floats = [t for t in graph.inputs if t.name not in taken and t.dtype == "float32" and t.shape]
    main = graph.input(model["input"]) if "input" in model else next(iter(floats), None)
    if main is None:
        raise ManifestError(
            f"{graph.source}: no float32 input is left for the signal ({_names(graph.inputs)}): --input"
        )
    about.found("input", main, "said" if "input" in model else "the first input of floats that is no state")
    model["input"] = main.name
    return main


def _constants(
    graph: Graph, model: dict[str, Any], states: list[tuple[dict[str, Any], str]], main: Tensor, wishes: Wishes,
    about: Findings,
) -> None:  # fmt: skip
    """Inputs that are neither signal nor state: numbers that never change, or what a producer gives."""
    said = {c["input"]: dict(c) for c in model.get("constants", [])}
    given = {g["input"]: dict(g) for g in model.get("given", [])}
    rate = wishes.get("input", {}).get("sample_rate_hz")
    for tensor in graph.inputs:
        if tensor.name in {main.name, *given, *(s["input"] for s, _ in states)}:
            continue
        small = all(n == 1 for n in tensor.shape)
        if tensor.name in said or tensor.dtype != "float32" or small:
            how = "said"
            one = said.setdefault(tensor.name, {"input": tensor.name})
            if "value" not in one and tensor.name.lower() in _RATES and rate:
                one["value"], how = rate, "its name, and the rate"
            if "value" not in one:
                about.asked.append(f"what input {tensor} always is (--constant {tensor.name}=VALUE)")
                continue
            one.setdefault("shape", [n if isinstance(n, int) else 1 for n in tensor.shape])
            one.setdefault("dtype", tensor.dtype)
            about.found("constant", f"{tensor} is {one['value']:g}", how)
        else:
            given[tensor.name] = {"input": tensor.name}
            about.found(
                "given", tensor, "a float input that is left over: a producer gives it with a stream's first chunk"
            )
    model["constants"], model["given"] = list(said.values()), list(given.values())


def _axes(
    graph: Graph, model: dict[str, Any], states: list[tuple[dict[str, Any], str]], main: Tensor, wishes: Wishes,
    about: Findings,
) -> None:  # fmt: skip
    """The input's axes, and which of their lengths are fixed."""
    shape, how = main.shape, "said"
    if "input_axes" not in model:
        lengths = [n for s, _ in states for n in (graph.input(s["input"]) or main).shape]
        fixed = all(isinstance(n, int) for n in lengths)
        model["input_axes"], how = _order(shape, fixed), f"the shape {_shown(main)}"
        if len(shape) == 3 and isinstance(shape[1], str) and shape[1] in lengths and shape[0] not in lengths:
            model["input_axes"], how = "TBF", f"{shape[1]} is the states' batch as well"
    axes = model["input_axes"]
    letters = axes.replace("1", "") if isinstance(axes, str) else ""
    if "F" not in letters or set(letters) - set("BTF") or len(set(letters)) < len(letters):
        raise ManifestError(
            f"{graph.source}: the axes {axes!r} of input {main}: expected a letter for each, of B (streams), T "
            "(frames) and F (features), each once and F always, and 1 where there is always one: --axes BTF, say"
        )
    if len(axes) != len(shape):
        about.asked.append(f"the axes of input {main} (--axes, of B, T, F and 1; {axes!r} does not fit)")
        return
    at = dict(zip(axes, shape, strict=True))
    about.found("axes", axes, how)
    if "B" not in axes or at["B"] == 1:
        model["one_stream"] = True
        about.found("streams a call", "1: each stream has a call of its own", "the graph")
    elif isinstance(at["B"], int):
        raise ManifestError(
            f"{graph.source}: input {main} takes exactly {at['B']} streams a call. Export it with a free batch, or of 1"
        )
    if "T" not in axes or isinstance(at["T"], int):
        model["one_block"] = True
        model.setdefault("block", at.get("T", 1))
        about.found("frames a call", model["block"], "the graph")
    window = wishes.get("frontend", {}).get("window_samples")
    features = model.get("features") or (at.get("F") if isinstance(at.get("F"), int) else None)
    if wishes.get("frontend", {}).get("kind") == "power" and window:
        features = features or window // 2 + 1
    features = features or (window and window * wishes.get("input", {}).get("channels", 1))
    if not features:
        about.asked.append(
            f"how many features a frame of input {main} has (--window and --hop for raw audio; or --features)"
        )
    else:
        model["features"] = features
        about.found("features", features, "the graph" if at.get("F") == features else "said")


def _order(shape: tuple[Any, ...], fixed_states: bool) -> str:
    """A guess of the axes from the shape: whichever is the custom for that rank."""
    if len(shape) == 2:
        return "TF" if fixed_states and not isinstance(shape[0], int) else "BF"
    if len(shape) == 3:
        return "BFT" if isinstance(shape[1], int) and shape[1] > 1 and not isinstance(shape[2], int) else "BTF"
    if len(shape) == 4:
        return "B1TF" if shape[1] == 1 else "BTF1"
    return "F"


def _shown(tensor: Tensor) -> str:
    return str(tensor).partition(" ")[2].partition(" ")[2]


def _per_stream(
    graph: Graph, spec: dict[str, Any], main: Tensor, model: Mapping[str, Any], about: Findings
) -> dict[str, Any]:
    """Shape and batch axis of a state, or of what is given."""
    tensor = graph.input(spec["input"])
    assert tensor is not None
    if "shape" in spec and "batch_axis" in spec:
        return spec
    free = [axis for axis, n in enumerate(tensor.shape) if not isinstance(n, int)]
    batch = main.shape[model["input_axes"].index("B")] if "B" in model["input_axes"] else None
    if isinstance(batch, str) and sum(n == batch for n in tensor.shape) == 1:
        axis = tensor.shape.index(batch)
    elif "batch_axis" in spec:
        axis = spec["batch_axis"]
    elif len(free) == 1:
        axis = free[0]
    else:
        ones = [axis for axis, n in enumerate(tensor.shape) if n == 1]
        axis = ones[0] if not free and ones and model.get("one_stream") else -1
    if axis < 0 or [a for a in free if a != axis]:
        about.asked.append(f"the shape and batch axis of {tensor} (in a TOML file: [[model.states]])")
        return spec
    shape = [1 if a == axis else n for a, n in enumerate(tensor.shape)]
    return {**spec, "shape": shape, "batch_axis": axis}


def _state(
    graph: Graph, one: dict[str, Any], how: str, main: Tensor, model: Mapping[str, Any], about: Findings
) -> dict[str, Any]:
    tensor = graph.input(one["input"])
    assert tensor is not None
    spec = _per_stream(graph, {"dtype": tensor.dtype, **one}, main, model, about)
    about.found("state", f"{tensor} -> {one['output']}, batch axis {spec.get('batch_axis', '?')}", how)
    return spec


def _given(
    graph: Graph, one: dict[str, Any], main: Tensor, model: Mapping[str, Any], about: Findings
) -> dict[str, Any]:
    return _per_stream(graph, one, main, model, about)
