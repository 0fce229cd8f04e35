"""Windows and perplexity against a plain implementation of the published loop."""

import math

import numpy as np
import pytest

from examples.wikitext import text
from examples.wikitext.windows import make_windows, perplexity


def plain_perplexities(token_ids, losses_of, max_length, stride):
    """Both perplexities by one loop over windows, with labels that are masked as in the guide.

    Args:
        token_ids: list of the text.
        losses_of: window -> loss of every token given those before it in the window, None for the
            first.
    """
    means, all_losses, covered = [], [], 0
    begin = 0
    while begin < len(token_ids) - max_length:
        end = begin + max_length
        fresh = end - covered
        labels = [None] * (max_length - fresh) + token_ids[end - fresh : end]
        losses = losses_of(token_ids[begin:end])
        own = [losses[i] for i in range(1, max_length) if labels[i] is not None]
        means.append(math.fsum(own) / len(own))
        all_losses += own
        covered = end
        begin += stride
    return (
        math.exp(math.fsum(means) / len(means)),
        math.exp(math.fsum(all_losses) / len(all_losses)),
        len(all_losses),
        len(means),
    )


def made_losses(window):
    """Losses that depend on the token and all tokens before it."""
    return [None] + [
        1.0 + ((7 * token + 3 * sum(window[:i])) % 11) / 5.0
        for i, token in enumerate(window)
        if i > 0
    ]


@pytest.mark.parametrize(
    ("tokens", "max_length", "stride"),
    [(100, 16, 8), (100, 16, 16), (97, 16, 5), (17, 16, 8), (64, 2, 1), (64, 2, 2), (50, 16, 1)],
)
def test_perplexities_equal_those_of_a_plain_loop(tokens, max_length, stride):
    ids = np.random.default_rng(tokens).integers(0, 50, tokens)
    windows = make_windows(ids, max_length, stride)
    losses = np.array([made_losses(list(map(int, one)))[1:] for one in windows.token_ids])
    result = perplexity(losses, windows)
    expected = plain_perplexities(list(map(int, ids)), made_losses, max_length, stride)
    assert result.perplexity == pytest.approx(expected[0], rel=1e-12)
    assert result.token_perplexity == pytest.approx(expected[1], rel=1e-12)
    assert (result.scored_tokens, len(windows.token_ids)) == expected[2:]


def test_no_token_is_scored_twice_and_the_last_may_be_left_out():
    windows = make_windows(np.arange(100), 16, 8)
    scored = windows.token_ids[:, 1:][windows.mask()]
    assert sorted(scored) == list(range(1, 96))  # the published loop leaves a rest out


def test_a_text_of_one_window_is_too_short():
    with pytest.raises(ValueError, match="has 16 tokens.*lower --max_length"):
        make_windows(np.arange(16), 16, 8)


def test_a_loss_that_is_not_finite_names_its_window():
    windows = make_windows(np.arange(40), 16, 8)
    losses = np.ones((3, 15))
    losses[1, 0] = np.nan  # context alone
    assert perplexity(losses, windows).perplexity == pytest.approx(math.e)
    losses[1, -1] = np.inf
    with pytest.raises(ValueError, match="window 1 .*1 of 3 windows"):
        perplexity(losses, windows)


def test_lines_become_the_rows_of_wikitext(tmp_path):
    path = tmp_path / "wiki.txt"
    path.write_text(" \n = Title = \n \n Text é \n", encoding="utf-8")
    joined = text.read(str(path), join_lines=True)
    assert joined == "\n\n".join(["", " = Title = \n", "", " Text é \n"])
    assert text.read(str(path), join_lines=False) == " \n = Title = \n \n Text é \n"


@pytest.mark.parametrize(
    ("mode", "start", "end", "expected"),
    [
        ("auto", 1, 2, [1, 7, 8]),
        ("auto", 2, 2, [7, 8]),
        ("auto", None, 2, [7, 8]),
        ("always", 2, 2, [2, 7, 8]),
        ("never", 1, 2, [7, 8]),
    ],
)
def test_the_start_token_comes_first_where_it_is_not_the_end_token(mode, start, end, expected):
    class Tokenizer:
        start_token_id, end_token_id = start, end

        def __call__(self, content):
            return [7, 8]

    assert text.tokenize(Tokenizer(), "any", mode).tolist() == expected


def test_a_start_token_that_is_missing_is_refused():
    with pytest.raises(ValueError, match="the tokenizer has no start token"):
        text.tokenize(lambda content: [7], "any", "always")


def prepare_texts(folder, texts):
    """Write prepared records as TFDS does, without its network, in several files."""
    tfds = pytest.importorskip("tensorflow_datasets")
    target = folder / "made" / "1.0.0"
    target.mkdir(parents=True)
    identity = tfds.core.DatasetIdentity(
        name="made", config_name=None, version="1.0.0", data_dir=str(target), module_name=__name__
    )
    features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    writer = tfds.core.SequentialWriter(ds_info=info, max_examples_per_shard=2)
    writer.initialize_splits(["test"])
    writer.add_examples({"test": [{"text": one} for one in texts]})
    writer.close_all()


def test_records_of_tfds_are_joined_in_their_order(tmp_path):
    texts = ["", " = Title = \n", "", " Text \n", "", " More \n", "end"]
    prepare_texts(tmp_path, texts)
    joined = text.read("tfds:made:test", join_lines=True, tfds_dir=str(tmp_path))
    assert joined == "\n\n".join(texts)
    with pytest.raises(ValueError, match="has no split 'dev'; it has test"):
        text.read("tfds:made:dev", join_lines=True, tfds_dir=str(tmp_path))
