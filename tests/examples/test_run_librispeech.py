"""run_librispeech.py on a small random Whisper, against plain loops, and its bad inputs."""

import json
import pathlib

import keras_hub
import numpy as np
import pytest

jiwer = pytest.importorskip("jiwer")
pytest.importorskip("whisper_normalizer")

from examples.librispeech import pipeline, scores, speech  # noqa: E402
from examples.librispeech.checks import check  # noqa: E402
from examples.librispeech.decoding import decoding_rules, greedy  # noqa: E402
from examples.librispeech.settings import Settings  # noqa: E402
from examples.librispeech.whisper import float_network, quantized_network  # noqa: E402
from runs.settings import FlagError  # noqa: E402
from tests.examples import presets  # noqa: E402

RECIPE = "int8_residual_float_asymmetric"
LENGTH = 14


@pytest.fixture(scope="module")
def run(whisper_preset, recordings, tmp_path_factory):
    """Figures of one quantized run, its settings, its output folder and its quantized network."""
    folder = tmp_path_factory.mktemp("run")
    settings = Settings(
        preset=whisper_preset,
        data_dir=recordings[0],
        calibration_dir=recordings[1],
        recipe=RECIPE,
        batch_size=2,
        max_length=LENGTH,
        output_dir=str(folder),
    )
    check(settings)
    made = []

    def recorded(*arguments, **named):
        made.append(quantized_network(*arguments, **named))
        return made[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "quantized_network", recorded)
        figures = pipeline.run(settings)
    return figures, settings, folder, made[0][0]


@pytest.fixture(scope="module")
def whisper(whisper_preset):
    return pipeline.load(Settings(preset=whisper_preset, max_length=LENGTH))


def distance(one: list[str], other: list[str]) -> int:
    """Edit distance of words by the full table of Wagner and Fischer."""
    table = np.zeros((len(one) + 1, len(other) + 1), int)
    table[:, 0], table[0, :] = range(len(one) + 1), range(len(other) + 1)
    for i, a in enumerate(one, 1):
        for j, b in enumerate(other, 1):
            table[i, j] = min(
                table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (a != b)
            )
    return int(table[-1, -1])


def lines(path: pathlib.Path) -> list[str]:
    return path.read_text().splitlines()


def test_word_error_rates_of_a_run_are_those_of_its_texts(run):
    figures, settings, folder, _ = run
    assert figures["utterances"] == 3
    for name in ("float", "quantized"):
        references = lines(folder / name / "references.txt")
        predictions = lines(folder / name / "predictions.txt")
        assert len(references) == len(predictions) == 3
        errors = sum(
            distance(one.split(), other.split())
            for one, other in zip(references, predictions, strict=True)
        )
        words = sum(len(one.split()) for one in references)
        assert figures[name]["wer"] == pytest.approx(100 * errors / words)
    assert figures["quantized"]["recipe"] == RECIPE
    assert figures["quantized"]["sites"] > 30
    assert json.loads((folder / "results.json").read_text())["figures"] == figures
    assert "weighted by words" in lines(folder / "wer_scores.txt")[-1]
    assert (folder / "wer_difference.png").stat().st_size > 1000
    assert pipeline.summary(settings, figures) == {
        "float_wer": figures["float"]["wer"],
        "quantized_wer": figures["quantized"]["wer"],
        "results": str(folder / "results.json"),
    }


def test_references_are_normalised(run):
    _, settings, folder, _ = run
    spoken = [one.text for one in speech.read(settings.data_dir)]
    assert all(text.isupper() for text in spoken)
    # Numbers are written in digits, all else is in lower case.
    expected = [text.lower().replace("two", "2") for text in spoken]
    assert lines(folder / "float" / "references.txt") == expected


def test_runs_are_compared(run, tmp_path):
    figures, _, folder, _ = run
    settings = Settings(
        compare=(str(folder / "float"), str(folder / "quantized")), output_dir=str(tmp_path)
    )
    check(settings)
    result = pipeline.summary(settings, pipeline.run(settings))
    assert result["first_wer"] == figures["float"]["wer"]
    assert result["second_wer"] == figures["quantized"]["wer"]
    assert {name: result[name] for name in figures["comparison"]} == figures["comparison"]
    assert (tmp_path / "wer_scores.txt").read_text() == (folder / "wer_scores.txt").read_text()


def test_caches_give_the_logits_of_the_whole_network(whisper):
    decoder, generator = whisper.decoder, np.random.default_rng(0)
    backbone = decoder.backbone
    features = generator.normal(size=(2, presets.FRAMES, presets.MELS)).astype(np.float32)
    ids = generator.integers(0, 50, (2, 6)).astype(np.int32)
    batch = {"encoder_features": features, "decoder_token_ids": ids}
    batch["decoder_padding_mask"] = np.ones_like(ids)
    hidden = np.asarray(backbone(batch)["decoder_sequence_output"])
    expected = hidden @ np.asarray(backbone.token_embedding.embeddings).T
    network = float_network(decoder, presets.FRAMES)
    logits, own, cross = network.start(features, ids[:, :3])
    np.testing.assert_allclose(logits, expected[:, :3], atol=1e-4)
    for index in range(3, 6):
        logits, own = network.step(ids[:, index : index + 1], own, cross, np.int32(index))
        np.testing.assert_allclose(np.asarray(logits)[:, 0], expected[:, index], atol=1e-4)


def test_quantized_caches_give_the_logits_of_the_quantized_start(run, whisper):
    network = run[3]
    generator = np.random.default_rng(1)
    features = generator.normal(size=(1, presets.FRAMES, presets.MELS)).astype(np.float32)
    ids = generator.integers(0, 50, (1, 6)).astype(np.int32)
    expected = np.asarray(network.start(features, ids)[0])
    exact = float_network(whisper.decoder, presets.FRAMES).start(features, ids)[0]
    assert np.abs(expected - np.asarray(exact)).max() > 1e-3  # it is quantized
    _, own, cross = network.start(features, ids[:, :2])
    for index in range(2, 6):
        logits, own = network.step(ids[:, index : index + 1], own, cross, np.int32(index))
        np.testing.assert_allclose(np.asarray(logits)[:, 0], expected[:, index], atol=1e-4)
    for address, site in network.start.calibration.items():  # none carries a mask
        assert -1e4 < np.min(site.lower) <= np.max(site.upper) < 1e4, address


def test_greedy_decoding_equals_a_plain_loop_without_caches(whisper):
    backbone, rules = whisper.decoder.backbone, whisper.rules
    features = np.random.default_rng(5).normal(size=(2, presets.FRAMES, presets.MELS))
    features = features.astype(np.float32)
    embeddings = np.asarray(backbone.token_embedding.embeddings)
    expected = []
    for one in features:
        ids = list(rules.prompt)
        while len(ids) < LENGTH:
            tokens = np.array([ids], np.int32)
            batch = {"encoder_features": one[None], "decoder_token_ids": tokens}
            batch["decoder_padding_mask"] = np.ones_like(tokens)
            hidden = np.asarray(backbone(batch)["decoder_sequence_output"])[0, -1]
            logits = embeddings @ hidden
            allowed = set(range(len(logits))) - set(rules.never.tolist())
            if len(ids) == len(rules.prompt):
                allowed -= set(rules.not_first.tolist())
            best = max(sorted(allowed), key=lambda token, logits=logits: logits[token])
            if best == rules.end:
                break
            ids.append(best)
        expected.append(ids[len(rules.prompt) :])
    network = float_network(whisper.decoder, presets.FRAMES)
    assert greedy(network, features, rules, LENGTH) == expected
    assert any(expected)


def test_ended_transcripts_wait_for_the_others(whisper):
    """A network of fixed scores: the first utterance ends after one token, the second never."""
    size, end = whisper.decoder.backbone.vocabulary_size, whisper.rules.end

    def scores_of(tokens):
        result = np.zeros((2, tokens, size), np.float32)
        result[:, :, 3] = 1.0
        return result

    class Fixed:
        fed: list = []

        def start(self, features, ids):
            return scores_of(ids.shape[1]), None, None

        def step(self, ids, own, cross, index):
            self.fed.append((ids[:, 0].tolist(), int(index)))
            result = scores_of(1)
            result[0, 0, end] = 2.0
            return result, own

    fixed = Fixed()
    prompt = len(whisper.rules.prompt)
    result = greedy(fixed, np.zeros((2, 1, 1)), whisper.rules, prompt + 3)
    assert result == [[3], [3, 3, 3]]
    assert fixed.fed == [([3, 3], prompt), ([end, 3], prompt + 1)]


def test_rules_of_one_and_of_several_languages(hub):
    path = presets.save_whisper(hub / "multilingual", multilingual=True)
    tokenizer = keras_hub.tokenizers.WhisperTokenizer.from_preset(path)
    special = {**tokenizer._special_token_dict, **tokenizer.language_tokens}
    rules = decoding_rules(tokenizer, len(tokenizer.vocabulary) + 5, "de")
    names = ("<|startoftranscript|>", "<|de|>", "<|transcribe|>", "<|notimestamps|>")
    assert rules.prompt == tuple(special[name] for name in names)
    end = special["<|endoftext|>"]
    assert rules.end == end and end not in rules.never
    later = set(range(end + 1, len(tokenizer.vocabulary) + 5))  # special tokens and timestamps
    assert later <= set(rules.never.tolist())
    assert set(rules.not_first.tolist()) == {end, tokenizer.vocabulary[presets.SPACE]}
    assert tokenizer.vocabulary["="] in rules.never  # a symbol that nobody says
    assert tokenizer.vocabulary["a"] not in rules.never
    with pytest.raises(ValueError, match="--language=xx: the preset knows de, en"):
        decoding_rules(tokenizer, 100, "xx")


def test_word_errors_equal_those_of_an_edit_distance_and_of_jiwer():
    generator = np.random.default_rng(2)
    texts = [" ".join(generator.choice(list("abcd"), n)) for n in generator.integers(0, 9, 60)]
    references, hypotheses = texts[:30], texts[30:]
    errors = [scores.word_errors(*pair).errors for pair in zip(references, hypotheses, strict=True)]
    assert errors == [
        distance(one.split(), other.split())
        for one, other in zip(references, hypotheses, strict=True)
    ]
    rate = scores.word_error_rate(references, hypotheses)
    assert rate == pytest.approx(100 * jiwer.wer(references, hypotheses))
    assert rate == pytest.approx(100 * sum(errors) / sum(len(one.split()) for one in references))


def test_a_comparison_marks_large_differences_and_weighs_by_words():
    references = ["a b c d", "a b", " ".join("a" * 20), ""]
    first = ["a b c d", "a x", " ".join("a" * 20), ""]
    second = ["a b c x", "a b", " ".join("a" * 18 + "xx"), "y"]
    comparison = scores.Comparison.of(references, first, second)
    np.testing.assert_allclose(comparison.differences(), [0.25, -0.5, 0.1, 1.0])
    figures = comparison.figures()
    assert figures["marked"] == 3  # 0.1 itself is not above it
    assert figures["weighted_difference"] == pytest.approx(100 * (1 - 1 + 2) / 26)
    marked = [line.split()[0] for line in comparison.text().splitlines() if line.endswith("***")]
    assert marked == ["0", "1", "3"]
    assert "second: a b c x" in comparison.text()


def test_runs_on_other_data_are_not_compared(tmp_path):
    for name, texts in (("one", ["a"]), ("two", ["b"]), ("three", ["a", "b"])):
        scores.write_texts(str(tmp_path / name), texts, texts)
    output = str(tmp_path / "out")
    for other in ("two", "three"):
        with pytest.raises(ValueError, match="have other references"):
            scores.compare_runs(str(tmp_path / "one"), str(tmp_path / other), output)
    with pytest.raises(FileNotFoundError, match="references.txt"):
        scores.compare_runs(str(tmp_path), str(tmp_path), output)
    with pytest.raises(ValueError, match="no reference has a word"):
        scores.word_error_rate(["", ""], ["a", ""])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": None}, "--preset is missing"),
        ({"data_dir": None}, "--data_dir is missing"),
        ({"data_dir": "nowhere"}, "--data_dir=nowhere: there is no such folder"),
        ({"calibration_dir": "."}, "--calibration_dir only applies with --recipe"),
        ({"max_length": 4}, "--max_length=4: must be at least 5"),
        ({"max_utterances": 0}, "--max_utterances=0: must be at least 1"),
        ({"compare": (".",), "output_dir": "."}, "--compare: takes two folders, got 1"),
        ({"compare": (".", "nowhere")}, "--compare=nowhere: there is no such folder"),
        ({"compare": (".", ".")}, "--compare: set --output_dir"),
        ({"compare": (".", "."), "output_dir": "."}, "--preset has no effect with --compare"),
    ],
)
def test_invalid_options_are_named(whisper_preset, recordings, changes, message):
    with pytest.raises(FlagError, match=message):
        check(Settings(**{"preset": whisper_preset, "data_dir": recordings[0], **changes}))


def test_speech_that_cannot_be_read_is_named(tmp_path):
    import soundfile

    def refused(kind, message):
        with pytest.raises(kind, match=message):
            for one in speech.read(str(tmp_path)):
                one.samples(presets.RATE)

    refused(FileNotFoundError, r"no \*.trans.txt in it or below")
    transcripts = tmp_path / "a.trans.txt"
    transcripts.write_text("1-2-3\n")
    refused(ValueError, "a.trans.txt, line 1: must be NAME TEXT")
    transcripts.write_text("1-2-3 A\n1-2-3 B\n")
    (tmp_path / "1-2-3.wav").write_bytes(b"no audio")
    refused(ValueError, "line 2: 1-2-3 is twice")
    transcripts.write_text("1-2-3 A\n")
    refused(ValueError, "1-2-3.wav: no audio file")
    soundfile.write(tmp_path / "1-2-3.wav", np.zeros(100), 8000)
    refused(ValueError, "100 samples of 8000 Hz in 1 channels; the preset takes 16000 Hz")
    soundfile.write(tmp_path / "1-2-3.wav", np.zeros((100, 2)), 16000)
    refused(ValueError, "in 2 channels")
    (tmp_path / "1-2-3.wav").unlink()
    refused(FileNotFoundError, "no recording .flac or .wav for its transcript")


def prepare_speech(folder, rows):
    """Write prepared records as TFDS does, without its network."""
    tfds = pytest.importorskip("tensorflow_datasets")
    target = folder / "spoken" / "1.0.0"
    target.mkdir(parents=True)
    identity = tfds.core.DatasetIdentity(
        name="spoken", config_name=None, version="1.0.0", data_dir=str(target), module_name=__name__
    )
    features = {"id": np.str_, "speech": tfds.features.Audio(), "text": tfds.features.Text()}
    info = tfds.core.DatasetInfo(builder=identity, features=tfds.features.FeaturesDict(features))
    writer = tfds.core.SequentialWriter(ds_info=info, max_examples_per_shard=10)
    writer.initialize_splits(["test"])
    writer.add_examples({"test": rows})
    writer.close_all()


def test_records_of_tfds_are_the_utterances_of_a_folder(recordings, tmp_path):
    expected = speech.read(recordings[0])
    samples = [one.samples(presets.RATE) for one in expected]
    rows = [
        {"id": one.name, "speech": np.round(values * 2**15).astype(np.int64), "text": one.text}
        for one, values in zip(expected, samples, strict=True)
    ]
    prepare_speech(tmp_path, rows[::-1])
    result = speech.read("tfds:spoken:test", str(tmp_path))
    assert [(one.name, one.text) for one in result] == [(one.name, one.text) for one in expected]
    for one, values in zip(result, samples, strict=True):
        np.testing.assert_array_equal(one.samples(presets.RATE), values)


def test_presets_and_lengths_that_do_not_fit_are_refused(gpt2_preset, whisper_preset):
    with pytest.raises(ValueError, match="no WhisperBackbone can be loaded from it"):
        pipeline.load(Settings(preset=gpt2_preset))
    with pytest.raises(ValueError, match="--max_length=448: the network takes at most 32 tokens"):
        pipeline.load(Settings(preset=whisper_preset))
    with pytest.raises(ValueError, match="--language=de: the preset knows English alone"):
        pipeline.load(Settings(preset=whisper_preset, max_length=9, language="de"))
