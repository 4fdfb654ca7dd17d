"""`statebelt dead`: the chunks that were put aside. To look at, to push again, to remove."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import options
from pipeline.cli.console import examples, out, say_warning
from pipeline.cli.office import Office, id_of, office_of, parse_id
from pipeline.cli.plain import counted, duration, emit_escaped, hex_dump, printable, text
from pipeline.cli.sure import Yes, sure

if TYPE_CHECKING:
    from pipeline.broker.dead import Brief, DeadLetter, Retried

EXAMPLES = examples(
    ("statebelt dead list", "what was put aside, and why: each line begins with the letter's ID"),
    ("statebelt dead show 3:1700000000000-0", "one letter: the reason in words, its fields, its bytes"),
    ("statebelt dead retry --all --reason oversize", "push them again, once the cause is gone"),
    ("statebelt dead drop 3:1700000000000-0", "remove one for good"),
)
LIST_EXAMPLES = examples(
    ("statebelt dead list", "the oldest 100 of each partition in turn"),
    ("statebelt dead list --reason not_finite --stream pump-7", "of one stream, for one reason"),
    ("statebelt dead list --limit 0 --json | jq -r .reason | sort | uniq -c", "all of them, counted by reason"),
    ("statebelt dead list --json | jq -r .letter", "in JSON, a letter's ID is `letter`"),
)
SHOW_EXAMPLES = examples(
    ("statebelt dead show 3:1700000000000-0", "everything, with the first 256 bytes of data"),
    ("statebelt dead show 3:1700000000000-0 --out chunk.raw", "its data, as pushed, into a file"),
)
RETRY_EXAMPLES = examples(
    ("statebelt dead retry 3:1700000000000-0 3:1700000000250-0", "these two"),
    ("statebelt dead retry --all --reason oversize", "all that were too large for the workers of then"),
    ("statebelt dead retry --all --force", "also where a worker will drop them as duplicates"),
)
DROP_EXAMPLES = examples(
    ("statebelt dead drop 3:1700000000000-0", "this one, after a question"),
    ("statebelt dead drop --all --reason bad_stream --yes", "all of one reason, unasked"),
)

Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="As `statebelt dead list` shows them.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="As `statebelt dead list` shows it.")]
All = Annotated[bool, typer.Option("--all", help="All of them, or all that the filters leave.")]
Reason = Annotated[str | None, typer.Option(help="Only those put aside for this reason.", show_default="any")]
Stream = Annotated[str | None, typer.Option(help="Only those of this stream.", show_default="any")]
Partition = Annotated[int | None, typer.Option(min=0, help="Only those of this partition.", show_default="all")]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    epilog=EXAMPLES,
    help="""
    Look through dead letters, push them again, or remove them.

    A chunk that cannot be used (unknown fields, a wrong size, NaN, another partition's stream ...) is put aside with
    its reason; its stream goes on without it. Letters are kept as long as results are.
    """,
)


def _record(brief: Brief, now_ms: int) -> dict[str, object]:
    seq = brief.seq
    return {
        "letter": id_of(brief),
        "partition": brief.partition,
        "chunk": brief.id.decode(),
        "reason": text(brief.reason),
        "stream": text(brief.stream),
        "seq": int(seq) if seq.isdigit() and len(seq) <= 19 else text(seq),
        "data_bytes": brief.data_bytes,
        "age_ms": _age_ms(brief.id, now_ms),
        "cut": brief.cut,
    }


def _age_ms(id_: bytes, now_ms: int) -> int:
    return max(0, now_ms - int(id_.split(b"-")[0]))


@app.command("list", epilog=LIST_EXAMPLES)
def list_(
    topic: options.Topic = None,
    group: options.Group = None,
    reason: Reason = None,
    stream: Stream = None,
    partition: Partition = None,
    limit: Annotated[int, typer.Option(min=0, help="So many at most; 0: all.")] = 100,
    after: Annotated[
        str | None, typer.Option(metavar="ID", help="Go on behind this letter.", show_default="from the oldest")
    ] = None,
    url: options.Url = None,
    as_json: options.Json = False,
) -> None:
    """List dead letters: ID, reason, stream, seq, bytes of data, age. By partition, oldest first."""
    with office_of(topic, group, url) as office:
        begin = parse_id(after) if after else (0, b"0-0")
        now_ms, last, shown = office.now_ms(), None, 0
        for page in office.chosen(reason, stream, partition, begin):
            for brief in page:
                if limit and shown == limit:
                    say_warning(f"there are more: --after {last} goes on, --limit 0 lists all")
                    return
                if as_json:
                    emit_escaped(_record(brief, now_ms))
                else:
                    if not shown:
                        typer.secho(_line("ID", "reason", "stream", "seq", "bytes", "age"), dim=True)
                    typer.echo(_brief_line(brief, now_ms))
                last, shown = id_of(brief), shown + 1
        if not shown:
            office.check_group()
            if not as_json:
                out.print("no dead letters" + " like that" * any((reason, stream, partition is not None, after)))


def _line(id_: str, reason: str, stream: str, seq: str, size: str, age: str) -> str:
    return f"{id_:<24} {reason:<16} {stream:<24} {seq:>20} {size:>10} {age:>7}"


def _brief_line(brief: Brief, now_ms: int) -> str:
    size = f"{brief.data_bytes:,}" + "+" * brief.cut  # there was more than is kept
    return _line(
        id_of(brief),
        printable(brief.reason),
        printable(brief.stream, 60) or "-",
        printable(brief.seq, 20) or "-",
        size,
        duration(_age_ms(brief.id, now_ms)),
    )


@app.command("show", epilog=SHOW_EXAMPLES)
def show(
    letter: Id,
    topic: options.Topic = None,
    group: options.Group = None,
    dump: Annotated[int, typer.Option(min=0, help="So many bytes of data are shown; 0: all.")] = 256,
    to: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the raw data there.", show_default="nowhere")
    ] = None,
    url: options.Url = None,
    as_json: options.Json = False,
) -> None:
    """Show one dead letter: why it was put aside, every field of it, its bytes.

    Control characters are shown escaped. In JSON, data is in base64.
    """
    from pipeline.errors import ConfigError

    with office_of(topic, group, url) as office:
        found = office.letter(letter)
        if found is None:
            office.check_group()
            raise ConfigError(f"there is no dead letter {letter}: it was retried, dropped or trimmed, or never was")
        now_ms = office.now_ms()
    data = found.fields.get(b"data")
    if to is not None:
        if data is None:
            raise ConfigError(f"dead letter {letter} has no data to be written: nothing was pushed under that name")
        try:
            to.write_bytes(data)
        except OSError as error:
            raise ConfigError(f"{to} cannot be written ({error.strerror}): name a file in a folder of yours") from None
    if as_json:
        emit_escaped(_whole_record(found, now_ms))
        return
    typer.echo(f"dead letter {id_of(found)}, {duration(_age_ms(found.id, now_ms))} old")
    for name, value in found.fields.items():
        if name != b"data":
            typer.echo(f"  {printable(name, 60):<10} {printable(value, 2000)}")
    if data is not None:
        part = data[:dump] if dump else data
        typer.echo(f"  {'data':<10} {len(data):,} bytes" + f", the first {dump:,}:" * (len(part) < len(data)))
        for line in hex_dump(part):
            typer.echo(f"    {line}")
    if to is not None:
        typer.echo(f"{len(data or b''):,} bytes of data written to {printable(str(to))}")


def _whole_record(found: DeadLetter, now_ms: int) -> dict[str, object]:
    from base64 import b64encode

    data = found.fields.get(b"data")
    return {
        "letter": id_of(found),
        "partition": found.partition,
        "chunk": found.id.decode(),
        "age_ms": _age_ms(found.id, now_ms),
        "fields": {text(name): text(value) for name, value in found.fields.items() if name != b"data"},
        "data_base64": None if data is None else b64encode(data).decode(),
    }


@app.command("retry", epilog=RETRY_EXAMPLES)
def retry(
    letters: Ids = None,
    everything: All = False,
    topic: options.Topic = None,
    group: options.Group = None,
    reason: Reason = None,
    stream: Stream = None,
    partition: Partition = None,
    force: Annotated[bool, typer.Option("--force", help="Also those a worker will drop as duplicates.")] = False,
    url: options.Url = None,
    as_json: options.Json = False,
) -> None:
    """Push the chunks of dead letters again, as they were; each letter goes in the same act.

    A chunk goes to the end of its log, so every group of the topic meets it once more. Where its stream has gone on
    meanwhile, a worker would drop it as a duplicate: such a letter is kept, and told. So is one that was cut when it
    was put aside. A chunk that is still no good becomes a dead letter again.
    """
    from pipeline.broker.dead import Retried
    from pipeline.broker.dead import retry as push_again
    from pipeline.cli.fate import gone_on

    _check_choice(letters, everything, reason, stream, partition)
    retried = kept = 0
    with office_of(topic, group, url) as office:
        for page in office.chosen(reason, stream, partition) if everything else [_named(office, letters or [])]:
            late = {} if force else gone_on(office.client, office.topic, office.group, page, office.settings.policy)
            go = [brief for brief in page if (brief.partition, brief.id) not in late]
            done = {(r.partition, r.id): r for r in push_again(office.client, office.topic, office.group, go)}
            for brief in page:
                key = (brief.partition, brief.id)
                outcome = done.get(key) or Retried(*key, None, late.get(key, ""))
                retried, kept = retried + (outcome.new_id is not None), kept + (outcome.new_id is None)
                _report(brief, outcome, as_json, quiet=everything and kept > _TOLD)
    if not as_json:
        out.print(f"retried {retried:,}, kept {kept:,}" + ", of which the first are shown" * (kept > _TOLD))
    if kept and not everything:
        raise typer.Exit(1)


_TOLD = 10
"""Letters of `--all` that are told one by one, of those that were kept."""


def _report(brief: Brief, outcome: Retried, as_json: bool, *, quiet: bool) -> None:
    new_id = outcome.new_id.decode() if outcome.new_id else None
    if as_json:
        emit_escaped({"letter": id_of(brief), "retried_as": new_id, "why": outcome.why or None})
    elif new_id is None and not quiet:
        say_warning(f"{id_of(brief)} is kept: {outcome.why}")


def _check_choice(letters: list[str] | None, everything: bool, *filters: object) -> None:
    from pipeline.errors import ConfigError

    if bool(letters) == everything:
        got = "both" if everything else "neither"
        raise ConfigError(f"got {got}: name letters by their IDs (`statebelt dead list`), or choose them by --all")
    if letters and any(each is not None for each in filters):
        raise ConfigError("--reason, --stream and --partition choose among --all; leave them out with IDs")


def _named(office: Office, letters: Sequence[str]) -> list[Brief]:
    """Letters by their IDs, each once; those that are not there too, to be told so."""
    from pipeline.broker.dead import Brief

    found = []
    for partition, entry in dict.fromkeys(parse_id(id_) for id_ in letters):
        whole = office.letter(f"{partition}:{entry.decode()}")
        fields = whole.fields if whole else {}
        reason, stream, seq = (fields.get(name, b"") for name in (b"reason", b"stream", b"seq"))
        found.append(Brief(partition, entry, reason, stream, seq, len(fields.get(b"data", b"")), b"cut" in fields))
    return found


@app.command("drop", epilog=DROP_EXAMPLES)
def drop(
    letters: Ids = None,
    everything: All = False,
    topic: options.Topic = None,
    group: options.Group = None,
    reason: Reason = None,
    stream: Stream = None,
    partition: Partition = None,
    yes: Yes = False,
    url: options.Url = None,
    as_json: options.Json = False,
) -> None:
    """Remove dead letters for good: what was pushed is then nowhere."""
    from pipeline.broker.dead import drop_dead

    _check_choice(letters, everything, reason, stream, partition)
    with office_of(topic, group, url) as office:
        # What is counted is what goes: not those that come while somebody thinks about the question.
        ids: dict[int, list[bytes]] = {}
        for page in office.chosen(reason, stream, partition) if everything else [_named(office, letters or [])]:
            for brief in page:
                ids.setdefault(brief.partition, []).append(brief.id)
        count = sum(map(len, ids.values()))
        if count and not yes:
            sure(f"Remove {counted(count, 'dead letter')} of group {office.group!r} on {office.topic!r}?")
        dropped = 0
        for number, each in ids.items():
            for cut in range(0, len(each), 1000):
                dropped += drop_dead(office.client, office.topic, office.group, number, each[cut : cut + 1000])
    if as_json:
        emit_escaped({"dropped": dropped, "missing": count - dropped})
    else:
        out.print(f"removed {counted(dropped, 'dead letter')}")
    if dropped < count and letters:
        say_warning(
            f"{count - dropped} of {count} were not there: retried, dropped or trimmed meanwhile, or never were"
        )
        raise typer.Exit(1)
