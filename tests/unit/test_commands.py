"""The commands task: what is asked of the model and when; streams that depend on seed and index alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install -e '.[training]')")
pytest.importorskip("librosa", reason="librosa is not installed (pip install -e '.[training]')")

from pipeline.bundle import load  # noqa: E402
from pipeline.errors import ConfigError  # noqa: E402
from training import augment, commands_data, commands_scenes, data, keywords  # noqa: E402
from training.commands_data import LABELS, NOTHING, RATE_HZ, WORDS, Clip, Composer, _mark, loud  # noqa: E402
from training.recipes.commands import RECIPE, hidden, pooled_loss, task  # noqa: E402
from training.train import chosen  # noqa: E402

SMALL = dataclasses.replace(RECIPE, streams=3, stream_frames=60, noisy=0.0, stretched=0.0, reuse=2)


def word(label: int, speaker: str = "a") -> Clip:
    """A tone of 0.4 s in a second of near silence."""
    t = np.arange(RATE_HZ) / RATE_HZ
    x = 1e-5 * np.random.default_rng(label).standard_normal(RATE_HZ)
    x[4000:10_400] += 0.3 * np.sin(2 * np.pi * (300 + 50 * label) * t)[4000:10_400]
    return Clip.of(x.astype(np.float32), label, speaker)


@pytest.fixture
def composer(monkeypatch) -> Composer:
    monkeypatch.setattr(commands_data, "noises", lambda _: ())
    return Composer(tuple(word(n, speaker) for n in range(4) for speaker in "ab"), SMALL)


def test_the_loud_part_is_where_the_word_is():
    clip = word(3)
    assert (clip.start, clip.end) == (4000, 10_400)
    assert (clip.first, clip.last) == (4000 - 800, 10_400 + 800)
    assert clip.word.size == 8000
    assert loud(np.zeros(960, np.float32)) == (0, 960)


def test_a_word_is_due_near_its_end_and_a_while_after():
    hop = RECIPE.hop_samples
    recipe = dataclasses.replace(RECIPE, decide_from=0.5, decide_after_frames=6, fade_frames=3)
    label, sure, which = np.full(60, NOTHING), np.ones(60, bool), np.zeros(60, np.int64)
    _mark([(7, 10 * hop, 20 * hop), (NOTHING, 40 * hop, 50 * hop)], recipe, label, sure, which)
    assert (label[:10] == NOTHING).all()
    assert (label[10:29] == 7).all()
    assert not sure[10:15].any()
    assert sure[15:26].all()
    assert not sure[26:29].any()
    assert (label[29:] == NOTHING).all()
    assert sure[29:].all()
    assert np.flatnonzero(which).tolist() == list(range(15, 26))


def test_a_word_is_due_until_the_next_begins():
    hop = RECIPE.hop_samples
    label, sure, which = np.full(60, NOTHING), np.ones(60, bool), np.zeros(60, np.int64)
    _mark([(7, 10 * hop, 20 * hop), (8, 22 * hop, 32 * hop)], RECIPE, label, sure, which)
    assert label[21] == 7
    assert sure[21]
    assert (label[22:32] == 8).all()
    assert not sure[22:29].any()
    for n, name in ((1, 7), (2, 8)):
        assert set(label[which == n]) == {name}
        assert sure[which == n].all()


def test_a_batch_depends_on_seed_and_index_alone(composer):
    first = composer.batch(4, False)
    composer.batch(9, False)
    again = composer.batch(4, False)
    for name in ("power", "label", "sure", "word", "fresh", "bank"):
        assert getattr(first, name).tobytes() == getattr(again, name).tobytes(), name
    assert composer.batch(6, False).power.tobytes() != first.power.tobytes()
    assert composer.batch(4, True).fresh.all()


def test_a_signal_heard_again_has_other_colours_and_the_same_words(composer):
    first, second = composer.batch(4, False), composer.batch(5, False)
    assert (first.label == second.label).all()
    assert (first.bank != second.bank).any()
    assert (first.label != NOTHING).any()


def test_what_is_no_command_is_background(monkeypatch):
    monkeypatch.setattr(commands_data, "noises", lambda _: ())
    english = (np.full(6000, 0.1, np.float32),)
    foreign = dataclasses.replace(SMALL, foreign=1.0)
    heard = Composer((word(1),), foreign, english).batch(0, True)
    assert (heard.label == NOTHING).all()
    assert heard.sure.all()
    assert heard.power.max() > 0
    silent = Composer((word(1),), dataclasses.replace(SMALL, silent=1.0, noisy=1.0)).batch(0, True)
    assert (silent.label == NOTHING).all()
    assert silent.power.max() > 0


def test_labels_are_the_corpus_in_order():
    assert len(WORDS) == 40
    assert LABELS[-1] == "background"
    assert list(WORDS) == sorted(WORDS)
    if not (data.folder() / "arabic_commands").is_dir():
        pytest.skip(f"corpus 'arabic_commands' is not at {data.folder()}")
    for split in ("train", "val"):
        files = (data.corpus("arabic_commands") / split).glob("*/*.flac")
        assert {file.stem.rsplit("_", 1)[0] for file in files} == set(WORDS)


def test_the_pooled_loss_is_of_each_words_share():
    p = torch.tensor([[[0.5, 0.1], [0.7, 0.2], [0.1, 0.3], [0.0, 0.0]]])
    p = torch.cat([p, torch.zeros(1, 4, NOTHING - 2), 1 - p.sum(-1, keepdim=True)], dim=-1)
    label, which = torch.tensor([[0, 0, 1, NOTHING]]), torch.tensor([[1, 1, 2, 0]])
    got = pooled_loss(p, label, which)
    wanted = -(np.log(1.2 / 1.5) + np.log(0.3 / 0.4)) / 2
    assert float(got) == pytest.approx(wanted, abs=1e-3)


def test_masking_hides_a_few_neighbours_and_nothing_else():
    torch.manual_seed(0)
    x = torch.randn(50, 30, 20)
    masked = hidden(x, 2, 4)
    changed = (masked != x).any(dim=1)
    assert int(changed.sum(dim=1).max()) == 4
    for row in changed:
        at = row.nonzero()[:, 0]
        assert not len(at) or int(at.max() - at.min()) == len(at) - 1
    assert (hidden(x, 1, 0) == x).all()


def test_noise_is_as_loud_as_told(monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(commands_scenes, "noises", lambda _: (augment.coloured(rng, 40_000, 0.0),))
    clip = word(3)
    (mixed,) = commands_scenes.noisy((clip,), 10.0)
    ratio = np.mean(np.square(clip.samples)) / np.mean(np.square(mixed - clip.samples))
    assert 10 * np.log10(ratio) == pytest.approx(10.0, abs=0.1)


def test_a_long_recording_says_where_its_words_are(monkeypatch):
    monkeypatch.setattr(commands_scenes, "noises", lambda _: (np.zeros(100, np.float32),))
    scenes = commands_scenes.long(tuple(word(n, speaker) for n in range(3) for speaker in "ab"))
    assert [scene.name for scene in scenes] == ["a", "b"]
    for scene in scenes:
        assert sorted(w.label for w in scene.words) == [0, 1, 2]
        for w in scene.words:
            inside = np.sqrt(np.mean(np.square(scene.samples[w.start : w.end])))
            assert inside == pytest.approx(0.3 / np.sqrt(2), rel=0.05)


def test_a_speaker_who_is_left_out_is_judged_and_not_learnt_from():
    if not (data.folder() / "arabic_commands").is_dir():
        pytest.skip(f"corpus 'arabic_commands' is not at {data.folder()}")
    made = task(dataclasses.replace(RECIPE, speakers=2, leave_out="05"))
    assert {clip.speaker for clip in made._listeners()} == {"05"}
    assert set(made.composer._by_speaker) == {"01"}
    with pytest.raises(ConfigError, match="no such speaker"):
        task(dataclasses.replace(RECIPE, leave_out="99"))


def test_an_architecture_that_is_asked_for_gets_its_size_and_what_is_set_besides():
    made = chosen("commands", {"cell": "lstm", "hidden": "48"}).recipe
    assert (made.cell, made.layers, made.hidden, made.options) == ("lstm", 2, 48, {})
    assert chosen("commands", {}).recipe == RECIPE
    assert chosen("commands", {"cell": "crnn"}).recipe == RECIPE


def test_the_shipped_bundle_hears_a_speaker_it_never_heard():
    if not (data.folder() / "arabic_commands").is_dir():
        pytest.skip(f"corpus 'arabic_commands' is not at {data.folder()}")
    heard = commands_data.clips("val", 1)[::4]
    bundle = load("commands")
    assert bundle.manifest.labels == LABELS
    assert bundle.size_bytes <= 4_000_000
    found = keywords.judged(bundle, [clip.samples for clip in heard], [clip.label for clip in heard])
    assert found["same"]
    assert found["clips"] == 50
    assert found["accuracy_streaming"] >= 0.9
