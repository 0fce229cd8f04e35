"""Greedy decoding with Whisper's rules: its prompt, and the tokens that are never chosen."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from examples.librispeech.whisper import Network

# Of "Non-speech tokens" in OpenAI's tokenizer.py: annotations such as "[music]" or speakers' names.
_SYMBOLS = [*'"#()*+/:;<=>@[\\]^_`{|}~「」『』']
_SYMBOLS += "<< >> <<< >>> -- --- -( -[ (' (\" (( )) ((( ))) [[ ]] {{ }} ♪♪ ♪♪♪".split()
_MUSIC = [*"♩♪♫♬♭♮♯"]  # of several bytes: the first token of each is enough


@dataclasses.dataclass(frozen=True)
class DecodingRules:
    """Tokens of a transcript.

    Attributes:
        prompt: ids that it begins with.
        end: id that ends it.
        never: ids that are never chosen.
        not_first: ids that are not chosen as the first one.
    """

    prompt: tuple[int, ...]
    end: int
    never: np.ndarray
    not_first: np.ndarray


def decoding_rules(tokenizer: Any, vocabulary_size: int, language: str) -> DecodingRules:
    """Return the rules of transcription without timestamps.

    They are those of OpenAI's `DecodingOptions(without_timestamps=True)`: symbols that are no
    speech, special tokens and timestamps are suppressed, and a transcript does not begin with a
    space or its end.

    Args:
        tokenizer: of KerasHub.
        vocabulary_size: of the network, which has ids of timestamps beyond the tokenizer's.
        language: such as "en"; a tokenizer of English alone takes no other.

    Raises:
        ValueError: the tokenizer does not know the language.
    """
    prompt = [tokenizer.bos_token_id]
    languages = tokenizer.language_tokens
    if languages is not None:
        name = f"<|{language}|>"
        if name not in languages:
            known = ", ".join(sorted(one.strip("<|>") for one in languages))
            raise ValueError(f"--language={language}: the preset knows {known}")
        prompt += [languages[name], tokenizer.transcribe_token_id]
    elif language != "en":
        raise ValueError(f"--language={language}: the preset knows English alone, leave it out")
    prompt.append(tokenizer.no_timestamps_token_id)
    special = {*tokenizer.special_token_ids, *(languages or {}).values()}
    end = tokenizer.eos_token_id
    special |= set(range(end + 1, vocabulary_size))  # timestamps
    never = (special | _non_speech(tokenizer)) - {end}
    blank = _encode(tokenizer, " ")
    return DecodingRules(
        tuple(prompt), end, np.array(sorted(never)), np.array(sorted({end, *blank[:1]}))
    )


def _non_speech(tokenizer: Any) -> set[int]:
    """Return the ids of symbols that nobody says, with and without a space before."""
    # Hyphens and apostrophes are suppressed where a word would begin with them.
    result = {ids[0] for text in (" -", " '") if len(ids := _encode(tokenizer, text)) == 1}
    for symbol in [*_SYMBOLS, *_MUSIC]:
        for ids in (_encode(tokenizer, symbol), _encode(tokenizer, f" {symbol}")):
            if len(ids) == 1 or (ids and symbol in _MUSIC):
                result.add(ids[0])
    return result


def _encode(tokenizer: Any, text: str) -> list[int]:
    return [int(one) for one in np.asarray(tokenizer(text)).reshape(-1) if one >= 0]


def greedy(
    network: Network, features: np.ndarray, rules: DecodingRules, max_length: int
) -> list[list[int]]:
    """Return the token ids of transcripts, without prompt and end.

    Args:
        network: float or quantized.
        features: log-mel spectrograms, [utterances, frames, mels].
        rules: of the tokens.
        max_length: tokens of a transcript, the prompt included.
    """
    count, position = len(features), len(rules.prompt)
    prompt = np.tile(np.array(rules.prompt, np.int32), (count, 1))
    logits, own, cross = network.start(features, prompt)
    scores = np.array(logits)[:, -1]
    scores[:, rules.not_first] = -np.inf
    result: list[list[int]] = [[] for _ in range(count)]
    ended = np.zeros(count, bool)
    while True:
        scores[:, rules.never] = -np.inf
        chosen = np.where(ended, rules.end, scores.argmax(axis=1)).astype(np.int32)
        ended |= chosen == rules.end
        for ids, token, over in zip(result, chosen, ended, strict=True):
            if not over:
                ids.append(int(token))
        position += 1
        if ended.all() or position >= max_length:
            return result
        logits, own = network.step(chosen[:, None], own, cross, np.int32(position - 1))
        scores = np.array(logits)[:, 0]
