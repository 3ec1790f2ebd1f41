"""CLIP's tokens: the vocabulary, the cut, and the padding."""

import pickle

import pytest

from training.tokenizer import (
    CONTEXT_LENGTH,
    END_OF_TEXT,
    GOLDEN_TOKENS,
    MAX_CHARACTERS,
    START_OF_TEXT,
    Tokenizer,
    cut_to_longest,
    length_buckets,
)

TOKENIZER = Tokenizer()


@pytest.mark.parametrize("text", sorted(GOLDEN_TOKENS))
def test_the_vocabulary_is_clips(text: str) -> None:
    assert TOKENIZER([text])[0].tolist() == GOLDEN_TOKENS[text]


def test_case_and_spaces_do_not_matter() -> None:
    assert TOKENIZER(["A  Cat "]).tolist() == TOKENIZER(["a cat"]).tolist()


def test_a_batch_is_as_long_as_its_longest_text() -> None:
    tokens = TOKENIZER(["a", "a photo of a cat", ""])
    assert tokens.shape == (3, 7)
    assert tokens[0].tolist() == [START_OF_TEXT, 320, END_OF_TEXT, 0, 0, 0, 0]
    assert tokens[2].tolist() == [START_OF_TEXT, END_OF_TEXT, 0, 0, 0, 0, 0]


def test_a_long_text_is_cut_and_keeps_its_end() -> None:
    text = "word " * 100
    tokens = TOKENIZER([text])
    assert tokens.shape == (1, CONTEXT_LENGTH)
    assert tokens[0, -1] == END_OF_TEXT
    assert TOKENIZER.num_tokens(text) == 102


def test_padded_and_cut_hold_the_same_tokens() -> None:
    texts = ["a cat", "two dogs on a beach"]
    padded = TOKENIZER.padded(texts)
    assert padded.shape == (2, CONTEXT_LENGTH)
    assert cut_to_longest(padded).tolist() == TOKENIZER(texts).tolist()


@pytest.mark.parametrize("count", [1, 31, 70, 500])
def test_buckets_hold_every_text_once_and_waste_less_padding(count: int) -> None:
    tokens = TOKENIZER(["word " * (1 + number * number % 61) for number in range(count)])
    buckets = length_buckets(tokens)
    assert sorted(row for bucket in buckets for row in bucket.tolist()) == list(range(count))
    assert len(buckets) == len(length_buckets(TOKENIZER.padded(["same"] * count)))  # the texts themselves do not matter
    encoded = sum(cut_to_longest(tokens[rows]).numel() for rows in buckets)
    assert encoded <= tokens.numel() and (count < 70 or encoded < 0.8 * tokens.numel())


def test_no_texts_give_no_rows() -> None:
    assert len(TOKENIZER([])) == 0
    assert len(TOKENIZER.padded([])) == 0


def test_a_text_cannot_spell_the_end_of_text() -> None:
    tokens = TOKENIZER(["<|endoftext|> a <|startoftext|>"])[0].tolist()
    assert tokens.count(END_OF_TEXT) == tokens.count(START_OF_TEXT) == 1


def test_a_tokenizer_can_be_sent_to_a_worker() -> None:
    assert pickle.loads(pickle.dumps(TOKENIZER))(["a cat"]).tolist() == TOKENIZER(["a cat"]).tolist()


def test_of_a_very_long_text_only_the_beginning_is_read() -> None:
    word, start = "é" * 200_000, "é" * MAX_CHARACTERS
    assert TOKENIZER.num_tokens(word) == TOKENIZER.num_tokens(start) > MAX_CHARACTERS
    assert TOKENIZER([word, "cat"]).equal(TOKENIZER([start, "cat"]))
    assert TOKENIZER.num_tokens("cat " * MAX_CHARACTERS) == MAX_CHARACTERS // 4 + 2
