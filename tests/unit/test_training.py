"""Training: it learns, it resumes to the same weights, it refuses a bundle that is not its model."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install -e '.[training]')")
librosa = pytest.importorskip("librosa", reason="librosa is not installed (pip install -e '.[training]')")

from pipeline.errors import ConfigError, ManifestError  # noqa: E402
from pipeline.frontend import PowerSpectrum  # noqa: E402
from pipeline.head import Events  # noqa: E402
from pipeline.manifest import Provenance  # noqa: E402
from training import augment, data, detector, export, fit, keywords, synthetic  # noqa: E402
from training.compose import BG, Composer, Pools, Word, targets  # noqa: E402
from training.data import LABELS  # noqa: E402
from training.recipes import digits  # noqa: E402
from training.recipes.digits import RECIPE, DigitsTask  # noqa: E402

TINY = dataclasses.replace(
    RECIPE, hidden=24, cepstra=12, auxiliary=1, streams=8, stream_s=2.0, stretched=0.1, segment_frames=50, batches=6,
    passes=3, dropout=0.1, dropout_output=0.1, foreign=0.3,
)  # fmt: skip
TOLD = Provenance(recipe="a test", commit="", data_sha256="", created="2026-01-01")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pools() -> Pools:
    """Ten 'words', each a tone of its own pitch; hiss is speech without any."""
    rng = np.random.default_rng(0)
    t = np.arange(2400) / 8000
    words = [np.sin(2 * np.pi * 250 * 1.3**label * t).astype(np.float32) for label in range(10)]
    digits = tuple(data.Clip(word * np.hanning(2400).astype(np.float32), n, "tone") for n, word in enumerate(words))
    hiss = tuple(data.Clip(rng.normal(0, 0.1, 4000).astype(np.float32), BG, "hiss") for _ in range(3))
    buzz = tuple(data.Clip(np.sign(np.sin(600 * t)).astype(np.float32), len(LABELS), "buzz") for _ in range(3))
    return Pools(digits=digits, synthetic=digits, others=buzz, decoys=hiss, noises=())


def needs(corpus: str) -> None:
    if not (data.folder() / corpus).is_dir():
        pytest.skip(f"corpus {corpus!r} is not at {data.folder()}")


def test_the_filterbank_is_librosas():
    theirs = librosa.filters.mel(sr=8000, n_fft=256, n_mels=40).T
    np.testing.assert_array_equal(digits.task().build().front.mel.numpy(), theirs)
    nearly = augment.filterbank(8000, 256, 40, warp=1.0 + 1e-9)
    np.testing.assert_allclose(nearly, theirs, rtol=1e-4, atol=1e-7)


def test_a_warped_filterbank_reads_higher():
    f = np.arange(129)
    plain, warped = augment.filterbank(8000, 256, 40), augment.filterbank(8000, 256, 40, 1.1)
    centres = [(bank * f[:, None]).sum(axis=0)[10:30] / bank.sum(axis=0)[10:30] for bank in (plain, warped)]
    np.testing.assert_allclose(centres[1] / centres[0], 1.1, rtol=0.02)


def test_frames_are_librosas_log_mel():
    """Left-padded, not centred, in 64-bit on librosa's side: within 1e-4 in log units."""
    told = digits.task().manifest(TOLD)
    samples = export.trial_signal(told, 3.0)[: 3 * 8000 // 160 * 160, 0].astype(np.float32) / np.float32(32768)
    window, hop = RECIPE.window_samples, RECIPE.hop_samples
    frontend = PowerSpectrum(window, hop)
    net = digits.task().build()
    power, _ = frontend.step(samples[None, :, None], frontend.initial_state(1))
    ours = net.features(torch.from_numpy(power))[0].numpy()
    padded = np.pad(samples.astype(np.float64), (window - hop, 0))
    mel_power = librosa.feature.melspectrogram(
        y=padded, sr=8000, n_fft=window, hop_length=hop, center=False, n_mels=40, power=2.0, dtype=np.float64
    )
    theirs = np.log(mel_power + RECIPE.log_floor).T
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


def test_the_model_by_steps_is_the_model_by_the_whole():
    torch.manual_seed(0)
    model = DigitsTask(TINY).build().eval()
    power = torch.rand(3, 40, 129)
    with torch.no_grad():
        whole, h, c = model(power, *model.initial_state(3))
        state, parts = model.initial_state(3), []
        for cut in (power[:, :1], power[:, 1:17], power[:, 17:]):
            y, *state = model(cut, *state)
            parts.append(y)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(state[0], h, atol=1e-6, rtol=0)
    torch.testing.assert_close(state[1], c, atol=1e-6, rtol=0)
    torch.testing.assert_close(whole.sum(dim=-1), torch.ones(3, 40))


def test_targets_leave_the_beginning_open_and_fix_the_decision():
    recipe = dataclasses.replace(RECIPE, hop_samples=80, decide_from=0.5, decide_after_frames=10, fade_frames=5)
    allowed = targets([Word(4, 1600, 4800)], 100, recipe)  # frames 20 to 60
    both = allowed[:, 4] & allowed[:, BG]
    assert not allowed[:20, 4].any()
    assert both[20:40].all()
    assert (allowed[40:70].sum(axis=1) == 1).all()
    assert allowed[40:70, 4].all()
    assert both[70:75].all()
    assert not allowed[75:, 4].any()
    assert allowed.any(axis=1).all()


def test_targets_of_words_without_a_gap_always_allow_something():
    words = [Word(1, 0, 1600), Word(2, 1600, 3200), Word(3, 3300, 3800)]
    allowed = targets(words, 80, RECIPE)
    assert allowed.any(axis=1).all()
    for word in words:
        assert (allowed[:, word.label] & ~allowed[:, BG]).any()


def test_a_batch_depends_on_seed_and_index_alone(pools):
    composer = Composer(pools, TINY)
    first, _ = composer.batch(3, None)
    composer.batch(4, None)
    again, _ = Composer(pools, TINY).batch(3, None)
    assert first.power.tobytes() == again.power.tobytes()
    assert first.allowed.tobytes() == again.allowed.tobytes()
    other, _ = composer.batch(4, None)
    assert first.power.tobytes() != other.power.tobytes()


def test_it_learns(pools, tmp_path):
    recipe = dataclasses.replace(TINY, passes=5, batches=16, learning_rate=1e-2, average=0.9)
    learner = fit.fit(DigitsTask(recipe, pools), tmp_path / "weights.pt", bar=False)
    losses = [row["train_loss"] for row in learner.history]
    assert losses[-1] < 0.7 * losses[0]
    assert learner.history[-1]["pooled"] > 0.5  # of ten: chance is 0.1


def test_a_resumed_run_ends_at_the_same_weights(pools, tmp_path):
    unbroken = fit.fit(DigitsTask(TINY, pools), tmp_path / "unbroken.pt", bar=False)
    path = tmp_path / "broken.pt"
    fit.fit(DigitsTask(TINY, pools), path, bar=False, until=1)
    torch.rand(5)  # whatever else draws from the global generator in between
    resumed = fit.fit(DigitsTask(TINY, pools), path, bar=False)
    assert resumed.steps == unbroken.steps
    assert [row["train_loss"] for row in resumed.history] == [row["train_loss"] for row in unbroken.history]
    for name, value in unbroken.average.state_dict().items():
        assert torch.equal(value, resumed.average.state_dict()[name]), name


def test_resuming_another_recipe_is_refused(pools, tmp_path):
    path = tmp_path / "weights.pt"
    fit.Learner(DigitsTask(TINY, pools)).save(path)
    other = dataclasses.replace(TINY, seed=8)
    with pytest.raises(ConfigError, match=r"another recipe: seed 7 \(now 8\)"):
        fit.Learner(DigitsTask(other, pools)).resume(path)


def test_an_export_says_what_torch_says(tmp_path):
    torch.manual_seed(1)
    task = digits.task()
    net = task.build()
    bundle = export.write(net, task.manifest(TOLD), tmp_path / "digits.onnx", task.max_bytes)
    assert export.prove(net, bundle) <= export.TOLERANCE
    assert bundle.manifest.labels == LABELS
    assert bundle.size_bytes <= task.max_bytes == 1_000_000


def test_an_export_of_other_weights_is_refused(tmp_path):
    torch.manual_seed(1)
    task = digits.task()
    net = task.build()
    bundle = export.write(net, task.manifest(TOLD), tmp_path / "digits.onnx")
    with torch.no_grad():
        net.readout.bias[3] += 0.5
    with pytest.raises(export.Refused, match="apart"):
        export.prove(net, bundle)


def test_an_export_that_is_too_big_leaves_no_file(tmp_path):
    task = DigitsTask(dataclasses.replace(RECIPE, hidden=160))
    with pytest.raises(export.Refused, match="at most"):
        export.write(task.build(), task.manifest(TOLD), tmp_path / "digits.onnx", task.max_bytes)
    assert not list(tmp_path.iterdir())


def test_an_export_whose_manifest_lies_leaves_no_file(tmp_path):
    with pytest.raises(ManifestError):
        export.write(DigitsTask(TINY).build(), digits.task().manifest(TOLD), tmp_path / "digits.onnx")
    assert not list(tmp_path.iterdir())


def test_a_clip_gets_the_label_of_its_best_event():
    events = Events(
        stream=np.array([0, 0, 2]),
        label=np.array([3, 5, 1]),
        start=np.array([0, 9, 0]),
        end=np.array([5, 15, 5]),
        score=np.array([0.5, 0.9, 0.6], np.float32),
    )
    assert keywords.best(events, 3).tolist() == [5, -1, 1]


def test_a_detector_counts_each_word_and_each_event_once():
    scene = detector.Scene("a", np.zeros(16000, np.float32), (Word(1, 1600, 3200), Word(2, 8000, 9600)))
    events = Events(
        stream=np.zeros(4, int),
        label=np.array([1, 1, 3, 2]),
        start=np.array([25, 30, 100, 121]),
        end=np.array([40, 40, 110, 130]),
        score=np.ones(4, np.float32),
    )
    hits = detector.detected(events, scene, 80)
    assert (hits.right, hits.extra) == (1, 3)
    np.testing.assert_allclose(hits.overlap, [15 / 20])


def test_a_missing_corpus_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("STATEBELT_DATA", str(tmp_path))
    with pytest.raises(ConfigError, match="STATEBELT_DATA"):
        data.corpus("fsdd")


def test_speakers_are_split_whole():
    needs("fsdd")
    clips = data.digits(("george",))
    assert {clip.speaker for clip in clips} == {"george"}
    assert sorted({clip.label for clip in clips}) == list(range(10))


def test_no_arabic_speaker_is_in_both_splits():
    needs("arabic_commands")
    folders = [{p.name for p in (data.corpus("arabic_commands") / split).iterdir()} for split in ("train", "val")]
    assert not folders[0] & folders[1]


def test_the_noises_here_have_the_hash_that_a_download_must_have():
    needs("noise")
    from training import download

    assert download.recorded(data.corpus("noise")) == download.SHA256["noise"]


def test_held_out_voices_are_no_training_voices():
    heard = {voice.name.split("+")[-1] for voice in synthetic.voices()} | {
        voice.name.split("+")[-1] for voice, _, _ in synthetic.abroad()
    }
    kept = {voice.name.split("+")[-1] for voice in synthetic.held_out()}
    assert not heard & kept
    assert len(synthetic.voices()) > 100


def test_retouching_moves_one_voices_spectrum_to_anothers():
    rng = np.random.default_rng(0)
    dull, flat = (augment.coloured(rng, 16000, exponent) for exponent in (1.5, 0.0))
    curve = augment.tilt([flat]) - augment.tilt([dull])
    moved = augment.tilt([augment.retouch(dull, curve)])
    assert np.abs(augment.tilt([flat]) - augment.tilt([dull]))[8:].max() > 6
    assert np.abs(moved - augment.tilt([flat]))[8:].max() < 3
    np.testing.assert_allclose(augment.retouch(flat, np.zeros(129, np.float32)), flat, atol=1e-5)


@pytest.mark.parametrize("rate", [0.8, 1.0, 1.4])
def test_words_said_faster_keep_their_pitch(rate):
    t = np.arange(8000) / 16_000
    x = (np.sin(2 * np.pi * 440 * t) * np.hanning(8000)).astype(np.float32)
    y = augment.overlapped(x, rate)
    assert y.size == round(x.size / rate)
    peak_hz = np.abs(np.fft.rfft(y * np.hanning(y.size))).argmax() * 16_000 / y.size
    assert peak_hz == pytest.approx(440, abs=16_000 / y.size)
    assert np.abs(y).max() == pytest.approx(1.0, abs=0.1)
    if rate == 1.0:
        np.testing.assert_allclose(y, x, atol=0.02)


def test_trimming_keeps_what_is_loud():
    x = np.concatenate([np.full(800, 1e-4), np.full(1600, 0.5), np.full(800, 1e-4)]).astype(np.float32)
    np.testing.assert_array_equal(augment.trimmed(x, 30.0), x[800:2400])
    assert augment.trimmed(np.zeros(800, np.float32), 30.0).size == 0
