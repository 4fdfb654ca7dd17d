"""The contract over single components: every frontend, model and head of the zoo, the same named checks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.component import Array, Component
from tests import zoo
from tests.contract.streaming import stream


@dataclass(frozen=True)
class Subject:
    """A component, and the shape of one of its input items."""

    component: Component
    item: int
    kind: str

    def input(self, batch: int, items: int, seed: int = 0) -> Array:
        rng = np.random.default_rng(seed)
        if self.kind == "head":  # probabilities: sticky, sharp, so that words come and go
            logits = rng.standard_normal((batch, -(-items // 9), self.item)).repeat(9, axis=1)[:, :items] * 4
            odds = np.exp(logits + rng.standard_normal(logits.shape))
            return (odds / odds.sum(axis=2, keepdims=True)).astype(np.float32)
        x = rng.standard_normal((batch, items, self.item)) * np.exp(rng.standard_normal((batch, items, 1)))
        return (x**2 if self.kind == "model" else x).astype(np.float32)


def subjects() -> dict[str, Subject]:
    """Every model of the zoo; frontends and heads that two bundles declare alike once."""
    found: dict[str, Subject] = {}
    seen = set()
    for name in zoo.ZOO:
        bundle = zoo.bundle(name)
        spec = bundle.manifest
        found[f"{name}-model"] = Subject(bundle.model, spec.model.features, "model")
        if (frontend := (spec.frontend, spec.input)) not in seen:
            found[f"{name}-frontend"] = Subject(bundle.frontend, spec.input.channels, "frontend")
        if (head := (spec.head, spec.labels, spec.hop_samples)) not in seen:
            found[f"{name}-head"] = Subject(bundle.head, spec.model.classes, "head")
        seen |= {frontend, head}
    return found


SUBJECTS = subjects()


@pytest.fixture(params=SUBJECTS, scope="module")
def subject(request: pytest.FixtureRequest) -> Subject:
    return SUBJECTS[request.param]


BLOCKS = 60


def test_step_equals_forward(subject: Subject) -> None:
    block = subject.component.block
    for blocks in (1, 2, 3, BLOCKS):
        x = subject.input(1, blocks * block)
        whole = stream(subject.component, x, [])
        assert stream(subject.component, x, [block]) == whole
        assert stream(subject.component, x, range(block, blocks * block, block)) == whole


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, BLOCKS), max_size=12).map(sorted), seed=st.integers(0, 99))
def test_chunking_invariance(subject: Subject, cuts: list[int], seed: int) -> None:
    block = subject.component.block
    x = subject.input(3, BLOCKS * block, seed)
    assert stream(subject.component, x, [c * block for c in cuts]) == stream(subject.component, x, [])


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 16, 33, 64])
def test_batch_invariance(subject: Subject, batch: int) -> None:
    block = subject.component.block
    x = subject.input(64, 20 * block)
    cuts = [block, 3 * block, 10 * block]
    alone = [stream(subject.component, x[b : b + 1], cuts)[0] for b in range(batch)]
    order = np.random.default_rng(batch).permutation(batch)
    permuted = stream(subject.component, x[:batch][order], cuts)
    assert [permuted[i] for i in np.argsort(order)] == alone


def test_batch_invariance_with_nan_neighbours(subject: Subject) -> None:
    block = subject.component.block
    x = subject.input(5, 20 * block)
    alone = stream(subject.component, x[2:3], [4 * block])[0]
    x[[0, 1, 3, 4]] = np.nan
    with np.errstate(invalid="ignore"):
        assert stream(subject.component, x, [4 * block])[2] == alone


@pytest.mark.parametrize("known", [1, 7, 40])
def test_causality(subject: Subject, known: int) -> None:
    """What has been said after `known` blocks does not change when the future does, by 1e9."""
    block = subject.component.block
    x = subject.input(2, BLOCKS * block)
    other = x.copy()
    other[:, known * block :] += 1e9
    if subject.kind == "head":  # events come out when they are complete, so forward is compared by its prefix
        assert stream(subject.component, x[:, : known * block], [], flush=False) == stream(
            subject.component, other[:, : known * block], [], flush=False
        )
        whole = stream(subject.component, x, [], flush=False)
        prefix = stream(subject.component, x[:, : known * block], [], flush=False)
        assert all(w.startswith(p) for ws, ps in zip(whole, prefix, strict=True) for w, p in zip(ws, ps, strict=True))
        return
    initial = subject.component.initial_state(2)
    one, _ = subject.component.step(x, initial)
    two, _ = subject.component.step(other, initial)
    items = one.shape[1] * known // BLOCKS
    assert one[:, :items].tobytes() == two[:, :items].tobytes()
    assert one[:, items:].tobytes() != two[:, items:].tobytes()


def test_declared_latency(subject: Subject) -> None:
    """Flush yields what the latency (and a declared tail) owes, and step plus flush lose no frame."""
    component, block = subject.component, subject.component.block
    if subject.kind != "model":
        assert component.latency == 0
        return
    _, state = component.step(subject.input(1, BLOCKS * block), component.initial_state(1))
    assert component.flush(state).shape[1] >= component.latency


def test_fresh_is_fresh(subject: Subject) -> None:
    """A state that follows a tenant of NaN is the state that follows nobody."""
    block = subject.component.block
    before = {name: array.tobytes() for name, array in subject.component.initial_state(3).items()}
    with np.errstate(invalid="ignore"):
        stream(subject.component, np.full((3, 4 * block, subject.item), np.nan, np.float32), [])
    after = {name: array.tobytes() for name, array in subject.component.initial_state(3).items()}
    assert before == after


def test_state_is_what_was_declared(subject: Subject) -> None:
    block = subject.component.block
    declared = {f.name: (np.dtype(f.dtype), (4, *f.shape)) for f in subject.component.fields}
    _, after = subject.component.step(subject.input(4, 5 * block), subject.component.initial_state(4))
    for state in (subject.component.initial_state(4), after):
        assert {name: (array.dtype, array.shape) for name, array in state.items()} == declared


def test_empty_step_changes_nothing(subject: Subject) -> None:
    block = subject.component.block
    _, state = subject.component.step(subject.input(2, 3 * block), subject.component.initial_state(2))
    _, after = subject.component.step(np.empty((2, 0, subject.item), np.float32), state)
    assert {n: a.tobytes() for n, a in state.items()} == {n: a.tobytes() for n, a in after.items()}
