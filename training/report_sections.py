"""The chapters of the report, from the committed figures: `training/metrics/*.json`, each missing one said so."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from pipeline.bundle import SHIPPED, load
from pipeline.errors import StatebeltError
from training import report_plots
from training.report_bars import BARS, Metrics
from training.report_page import Html, Section, absent, heading, made_by, paragraph, picture, table, text, verdict

TRAINED = ("digits", "commands", "activity", "forecast")


def told(one: dict[str, Any]) -> str:
    """Where figures come from: commit, seed, seconds, day."""
    parts = [f"commit {one.get('commit', 'unknown')}", f"seed {one.get('seed', 'none')}"]
    if one.get("seconds"):
        parts.append(f"{one['seconds'] / 60:.1f} minutes of training")
    if "created" in one:
        parts.append(str(one["created"])[:10])
    return ", ".join(parts)


def source(one: dict[str, Any]) -> str:
    """The command that made a file, and where it comes from."""
    return made_by(str(one.get("command", "unknown")), told(one))


def tasks(metrics: Metrics) -> Section:
    """Every bar, and whether it is met."""
    section = Section("tasks", "Tasks, bars and figures")
    section.parts.append(
        paragraph(
            "Everything here is split by speaker or subject, or judged on a stretch of time that no training saw. A "
            "streamed count equals the count on whole signals in each of them: evaluation fails where it does not."
        )
    )
    rows = []
    for bar in BARS:
        try:
            found, met, file = bar.found(metrics)
            command, name = metrics[file].get("command", bar.command), f"{file}.json"
        except (LookupError, ValueError, TypeError):
            found, met, name = Html('<span class="missed">not measured yet</span>'), None, ""
            command = Html(f"run <code>{bar.command}</code>")
        made = command if isinstance(command, Html) else Html(f"<code>{text(command)}</code><br>{name}")
        rows.append((bar.task, bar.what, bar.wanted, found, verdict(met), made))
    section.parts.append(table(("task", "what", "bar", "measured", "", "made by"), rows))
    files = [
        (f"{name}.json", told(one), Html(f"<code>{text(one.get('command', ''))}</code>"))
        for name, one in metrics.items()
    ]
    if files:
        section.parts += [heading("Where the figures come from"), table(("file", "of", "command"), files)]
    return section


def learning(metrics: Metrics) -> Section:
    """A picture of curves for each task that is trained."""
    section = Section("learning", "Learning curves")
    for name in TRAINED:
        section.parts.append(heading(name))
        found = {
            key: one
            for key, one in metrics.items()
            if key.split("-")[0] == name and histories(one) and not key.endswith("-int8")
        }
        for key, one in found.items():
            if "variants" not in one:
                section.parts += [picture(report_plots.curves(histories(one)), f"{key}.json"), trained_by(one)]
        if not any("variants" not in one for one in found.values()):
            section.parts.append(absent(f"make train evaluate TASK={name}"))
    return section


def trained_by(one: dict[str, Any]) -> str:
    """The command that trained what a file evaluates; of several folds, the first one's."""
    runs = [fold["training"] for fold in one.get("folds", {}).values() if isinstance(fold, dict) and "training" in fold]
    return source(runs[0]) if runs else source(one)


def histories(one: dict[str, Any]) -> dict[str, list[dict[str, float]]]:
    """What a file holds of histories, by fold, variant, or the file's own."""
    found: dict[str, list[dict[str, float]]] = {}
    for label, fold in one.get("folds", {}).items():
        if isinstance(fold, dict) and fold.get("training", {}).get("history"):
            found[label or one.get("recipe", {}).get("cell", "run")] = fold["training"]["history"]
    for label, variant in one.get("variants", {}).items():
        if isinstance(variant, dict) and variant.get("history"):
            found[label] = variant["history"]
    if one.get("history"):
        found["run"] = one["history"]
    return found


def confusions(metrics: Metrics) -> Section:
    """Every confusion that is counted, all folds of a file together."""
    section = Section("confusion", "Confusion matrices")
    section.parts.append(
        paragraph("Counts on who was left out, streamed; shaded by the share of the row, faint shades lifted.")
    )
    for name in ("digits", "commands", "activity"):
        section.parts.append(heading(name))
        drawn = 0
        for file, one in of_task(metrics, name):
            folds = [fold for fold in one.get("folds", {}).values() if isinstance(fold, dict)]
            for key in dict.fromkeys(key for fold in folds for key in fold if key.startswith("confusion")):
                counts = np.sum([np.array(fold[key]) for fold in folds if key in fold], axis=0)
                caption = f"{file}: {key.replace('_', ' ')}, {len(folds)} fold{'s' * (len(folds) != 1)}"
                figure = report_plots.confusion(counts, _labels(name, len(counts)))
                section.parts += [picture(figure, caption), source(one)]
                drawn += 1
        if not drawn:
            section.parts.append(absent(f"make evaluate TASK={name}"))
    return section


def of_task(metrics: Metrics, task: str) -> list[tuple[str, dict[str, Any]]]:
    """Evaluations of a task in float32, by file: its own, and those of other runs of it."""
    return [
        (k, one)
        for k, one in metrics.items()
        if k.split("-")[0] == task and "scores" in one and not k.endswith("-int8")
    ]


def _labels(task: str, count: int) -> list[str]:
    """The shipped bundle's labels, numbers where it is not there."""
    try:
        labels = list(load(str(SHIPPED / f"{task}.onnx")).manifest.labels)
    except StatebeltError:
        labels = []
    return (labels + [f"{n}" for n in range(len(labels), count)])[:count]


def details(metrics: Metrics) -> Section:
    """What the tasks say beyond their bars."""
    section = Section("details", "More of each task")
    for name in ("digits", "commands", "activity", "forecast", "anomaly"):
        found = of_task(metrics, name)
        if not found:
            section.parts += [heading(name), absent(f"make evaluate TASK={name}")]
        for file, one in found:
            rows = [(key.replace("_", " "), number(value)) for key, value in one["scores"].items()]
            section.parts += [heading(file), table(("figure", "value"), rows, numbers=(1,)), *_extras(name, one)]
            section.parts.append(source(one))
    return section


def _extras(name: str, one: dict[str, Any]) -> Iterable[str]:
    """Pictures and tables that one task alone has."""
    folds = {key: fold for key, fold in one.get("folds", {}).items() if isinstance(fold, dict)}
    if name == "digits" and folds and all("detector" in fold for fold in folds.values()):
        yield picture(report_plots.detector(folds), "Detected words against false alarms, by left-out speaker.")
    for fold in folds.values():
        if "mse_by_hour" in fold:
            yield picture(report_plots.by_hour(fold["mse_by_hour"]), "The further ahead, the harder.")
        if "mse_by_series" in fold:
            yield table(
                ("series", "mean squared error"), [(k, number(v)) for k, v in fold["mse_by_series"].items()], (1,)
            )
        if isinstance(fold.get("groups"), dict):
            yield paragraph(fold.get("corpus", ""), "soft")
            yield scalars(fold["groups"], "group")


def variants(metrics: Metrics, file: str, title: str, anchor: str, command: str, about: str) -> Section:
    """A file of `training.compare`: variants under one budget, their curves and last figures."""
    section = Section(anchor, title, [paragraph(about)])
    one = metrics.get(file)
    if one is None or not histories(one):
        section.parts.append(absent(command))
        return section
    rows = {
        name: {"parameters": variant.get("parameters"), **variant["history"][-1]}
        for name, variant in one["variants"].items()
    }
    for row in rows.values():
        row.pop("pass", None)
    section.parts += [picture(report_plots.curves(histories(one)), f"{file}.json"), scalars(rows, ""), source(one)]
    return section


def others(metrics: Metrics, known: Callable[[str, dict[str, Any]], bool]) -> Section:
    """Files that no chapter knows: their scores as they are."""
    section = Section("others", "Further figures")
    for name, one in metrics.items():
        if known(name, one):
            continue
        section.parts.append(heading(f"{name}.json"))
        section.parts += [*tables(one), source(one)]
    return section


def tables(values: dict[str, Any]) -> Iterable[str]:
    """Dictionaries of dictionaries, and lists of dictionaries, as tables; flat ones as one."""
    plain = {k: v for k, v in values.get("scores", {}).items() if not isinstance(v, dict | list)}
    if plain:
        yield table(("figure", "value"), [(k.replace("_", " "), number(v)) for k, v in plain.items()], numbers=(1,))
    for name, part in values.items():
        if name in ("recipe", "scores", "folds"):
            continue
        if isinstance(part, list) and part and all(isinstance(row, dict) for row in part):
            part = {str(n + 1): row for n, row in enumerate(part)}
        if isinstance(part, dict) and part and all(isinstance(row, dict) for row in part.values()):
            yield scalars(part, name)


def scalars(rows: dict[str, dict[str, Any]], first: str) -> str:
    """Named rows of plain values, columns as they come."""
    columns = list(
        dict.fromkeys(k for row in rows.values() for k, v in row.items() if isinstance(v, int | float | str | None))
    )
    body = [[name, *(number(row.get(column)) for column in columns)] for name, row in rows.items()]
    return table([first, *(c.replace("_", " ") for c in columns)], body, numbers=range(1, len(columns) + 1))


def number(value: Any) -> str:
    """Short, for a table; yes and no, text as it is."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:.4g}"
