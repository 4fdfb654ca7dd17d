"""The report: every task appears, what is not measured is said so, pictures decode, nothing outside is asked for."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install -e '.[training]')")
pytest.importorskip("matplotlib", reason="matplotlib is not installed (pip install -e '.[training]')")

from matplotlib.image import imread  # noqa: E402

from pipeline.bundle import SHIPPED  # noqa: E402
from training import report, report_bars, report_live, report_memory, report_plots, report_sections, runs  # noqa: E402
from training.report_page import Section, page, table, verdict  # noqa: E402

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Read(HTMLParser):
    """Tags that balance, pictures, anchors, and whatever a page would ask others for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.asked: list[str] = []
        self.pictures: list[str] = []
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        told = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.pictures.append(told["src"])
        if tag in ("script", "link", "iframe", "object", "embed", "base"):
            self.asked.append(tag)
        if "id" in told:
            self.anchors.add(told["id"])
        if "href" in told:
            self.links.append(told["href"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check(text: str) -> Read:
    read = Read(text)
    assert not read.asked
    assert not re.search(r"@import|url\(", text.split("</style>")[0])
    assert all(link.startswith("#") and link[1:] in read.anchors for link in read.links)
    for source in read.pictures:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64"
        picture = imread(io.BytesIO(base64.b64decode(data)))
        assert min(picture.shape[:2]) > 100
        assert picture[:, :, :3].std() > 0.01, "an empty picture"
    return read


def test_the_report_of_the_committed_figures_has_every_task_and_needs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_live, "shipped", lambda: sorted(SHIPPED.glob("a*.onnx")))  # three: all take seconds
    metrics = report.read(runs.METRICS)
    text = report.build(metrics, seconds=0.05)
    read = check(text)
    for name in ("digits", "commands", "activity", "forecast", "anomaly", "moving average", "adding problem", "copy"):
        assert name in text
    for section in ("tasks", "streaming", "seen", "memory", "architectures", "bundles", "int8", "dropout", "learning"):
        assert section in read.anchors
    for name, one in metrics.items():
        assert f"{name}.json" in text
        assert str(one["commit"]) in text
        assert {"commit", "seed", "seconds", "command"} <= set(one), name
    assert len(read.pictures) >= 2
    for path in report_live.shipped():
        assert path.stem in text


def test_without_any_figures_every_task_is_said_to_be_missing_with_its_command() -> None:
    sections = [
        report_sections.tasks({}),
        report_memory.long_memory({}),
        report_sections.learning({}),
        report_sections.confusions({}),
        report_sections.details({}),
        report_sections.variants({}, "commands-dropout", "Dropout", "dropout", "make dropout", "about"),
    ]
    text = page("t", "s", sections, "f")
    check(text)
    for bar in report_bars.BARS:
        assert f"run <code>{bar.command}</code>" in text
    assert text.count("not measured yet") >= len(report_bars.BARS) + 5 + 4 + 3


def history(passes: int, **figures: float) -> list[dict[str, float]]:
    return [{"pass": n + 1.0, "train_loss": 1.0 / (n + 1), **figures, "seconds": 1.0} for n in range(passes)]


def invented() -> report_bars.Metrics:
    scores = {
        name: {"accuracy_streaming": value} for name, value in (("lstm", 0.949), ("crnn", 0.981), ("bilstm", 0.999))
    }
    by_series = {"mse_by_hour": [0.1, 0.2], "mse_by_series": {"OT": 1}}
    groups = {"anomaly": {"groups": {"art": {"score": 1.5}}}}
    about = {"commit": "abc", "seed": 3, "seconds": 60.0, "command": "python -m <this> & that", "created": "2026-01-02"}
    training = {"history": history(3, loss=0.5, events=0.9)}
    detector = [{"threshold": 0.5, "detected": 0.8, "false_alarms_an_hour": 9.0}]
    return {
        "digits": {
            **about,
            "scores": {"accuracy_streaming": 0.8875},
            "folds": {
                name: {"confusion": np.eye(10, 11).tolist(), "training": training, "detector": detector}
                for name in ("george", "jackson")
            },
        },
        "commands": {**about, "recipe": {"cell": "lstm"}, "scores": scores["lstm"] | {"accuracy_at_10_db": 0.93}},
        "commands-crnn": {**about, "recipe": {"cell": "crnn"}, "scores": scores["crnn"] | {"accuracy_at_10_db": 0.94}},
        "commands-bilstm": {**about, "recipe": {"cell": "bilstm"}, "scores": scores["bilstm"]},
        "commands-cells": {
            **about, "variants": {"rnn": {"history": history(2, loss=1.0), "parameters": 7}}, "budget": {"passes": "2"},
        },
        "forecast": {**about, "scores": {"mse": 0.51}, "folds": {"": by_series}},
        "anomaly": {**about, "scores": {"nab_standard": 60.0}, "folds": groups},
        "else": {**about, "rows": [{"a": 1, "b": None}]},
    }  # fmt: skip


def test_figures_are_held_against_their_bars() -> None:
    metrics = invented()
    found = {(bar.task, bar.what): bar for bar in report_bars.BARS}

    def of(task: str, what: str) -> tuple[str, bool | None, str]:
        (bar,) = (bar for (t, w), bar in found.items() if t == task and what in w)
        return bar.found(metrics)

    assert of("digits", "left-out") == ("88.75 %", True, "digits")
    for share, alarms, met in ((0.86, 10.0, True), (0.86, 10.5, False), (0.84, 3.0, False)):
        metrics[report_bars.DETECTOR] = {"scores": {"detected_in_10_db_noise": share, "false_alarms_an_hour": alarms}}
        assert of("digits-crnn", "detector") == (f"{100 * share:.1f} % at {alarms:.2f}", met, report_bars.DETECTOR)
    assert of("commands", "LSTM") == ("94.90 % (lstm)", False, "commands")
    # The best causal one: not the one that looks ahead.
    assert of("commands", "best causal") == ("98.10 % (crnn)", True, "commands-crnn")
    assert of("commands", "10 dB") == ("94.00 %, 4.1 points lost (crnn)", False, "commands-crnn")
    metrics["activity"] = {"scores": {"accuracy_windows": 0.95, "accuracy_windows_alone": 0.91}}
    assert of("activity", "windows") == ("95.00 % within the recording; 91.0 % each alone", True, "activity")
    assert of("forecast", "mean squared") == ("0.51", False, "forecast")
    assert of("anomaly", "NAB") == ("60", True, "anomaly")
    with pytest.raises(LookupError):
        of("commands", "at 0 dB")
    with pytest.raises(LookupError):
        of("anomaly", "SKAB")


def study(task: str, losses: dict[tuple, float]) -> dict:
    names = {"adding": ("cell", "frames", "clip_norm"), "moving_average": ("lahead", "carry")}[task]
    key = {"adding": "loss", "moving_average": "unexplained"}[task]
    one = []
    for values, loss in losses.items():
        recipe = dict(zip(names, values, strict=True))
        recipe |= {"tsteps": 3, "batches": 10, "clip_norm": recipe.get("clip_norm", 1.0)}
        rows = [{"pass": 1.0, key: loss, "guessing_loss": 0.16}]
        one.append(
            {"recipe": recipe, "variant": {"n": "1"}, "history": rows, "parameters": 1, "cpu_seconds": 2.0,
             "said": [0.0, 0.5], "wanted": [0.1, 0.4], "reach": [0.0, 0.5, 1.0]}
        )  # fmt: skip
    return {"runs": one, "commit": "c", "seed": 1, "seconds": 1, "command": "x"}


def test_long_memory_is_judged_by_who_should_learn_and_who_should_not() -> None:
    adding = {
        (cell, frames, clip): 0.16 if cell == "rnn" else 0.002 if clip else 0.02
        for cell in ("rnn", "lstm", "gru") for frames in (200, 400, 600) for clip in (1.0, 0.0)
    }  # fmt: skip
    average = {(n, carry): 0.01 if carry or n >= 3 else 1 - n / 3 for n in (1, 2, 3, 6) for carry in (True, False)}
    metrics = {"adding": study("adding", adding), "moving_average": study("moving_average", average)}
    assert report_bars.adds(metrics)[1] is True
    assert report_bars.averaging(metrics)[1] is True
    text = page("t", "s", [report_memory.long_memory(metrics)], "f")
    assert len(check(text).pictures) == 4
    # A simple RNN that learns it, or a stateless net that knows what it cannot have seen, would be news.
    assert report_bars.adds({"adding": study("adding", adding | {("rnn", 200, 1.0): 0.01})})[1] is False
    wrong = average | {(1, False): 0.01}
    assert report_bars.averaging({"moving_average": study("moving_average", wrong)})[1] is False
    with pytest.raises(LookupError):
        report_bars.adds({"adding": study("adding", {("lstm", 200, 1.0): 0.001, ("rnn", 200, 1.0): 0.16})})


def test_chapters_of_whatever_is_there() -> None:
    metrics = invented()
    sections = [
        report_sections.tasks(metrics),
        report_sections.learning(metrics),
        report_sections.confusions(metrics),
        report_sections.details(metrics),
        report_sections.others(metrics, lambda name, _: name != "else"),
    ]
    text = page("t", "s", sections, "f")
    read = check(text)
    assert len(read.pictures) == 4  # digits' curves, confusion and detector; the forecast by hour
    assert "python -m &lt;this&gt; &amp; that" in text
    assert "2026-01-02" in text
    assert "else.json" in text


def test_files_that_are_no_figures_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "good.json").write_text(json.dumps({"commit": "x"}))
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "list.json").write_text("[1]")
    assert report.read(tmp_path) == {"good": {"commit": "x"}}
    assert report.read(tmp_path / "nowhere") == {}


def test_streaming_is_compared_bit_by_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = report_live.load("digits")
    found = report_live.equality(bundle)
    assert found.exact
    assert found.events >= 10
    assert (found.scores_apart, found.events_apart, found.largest) == (0, 0, 0.0)
    original = report_live.run

    def off(bundle, samples, *, chunk_samples=None):
        """As a bug in the carried state would: one score of one chunk size is one bit off."""
        done = original(bundle, samples, chunk_samples=chunk_samples)
        if chunk_samples == 997:
            done.scores.view(np.uint32)[5, 3] ^= 1
        return done

    monkeypatch.setattr(report_live, "run", off)
    assert report_live.equality(bundle).scores_apart == 1


def test_what_stands_in_a_table_is_escaped_and_bars_are_told_apart() -> None:
    text = table(("a<b", "n"), [("<script>", 1)], numbers=(1,))
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert [str(verdict(met)).count("missed") for met in (True, False, None)] == [0, 2, 0]
    assert check(page("t", "s", [Section("x", "X", [text])], "f")).anchors == {"x"}


def test_a_confusion_of_forty_classes_is_drawn_without_counts() -> None:
    small, large = (report_plots.confusion(np.eye(n, dtype=int), [f"{k}" for k in range(n)]) for n in (5, 40))
    assert len(small.axes[0].texts) == 5
    assert not large.axes[0].texts
