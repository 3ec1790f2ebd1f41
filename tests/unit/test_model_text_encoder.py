"""The text encoder does not see what follows the end of a text."""

import torch
from torch.testing import assert_close

from training.model.registry import hyperclip_test
from training.model.text_encoder import TextEncoder
from training.tokenizer import Tokenizer

TEXTS = ["a cat", "", "a photo of two dogs that run along a beach in the evening", "word " * 100]


def encoder() -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(hyperclip_test().text).eval().requires_grad_(False)


def test_texts_cut_to_the_longest_equal_texts_padded_to_the_context() -> None:
    tokenizer, short = Tokenizer(), TEXTS[:3]
    cut = tokenizer(short)
    assert cut.shape[1] < 77
    assert_close(encoder()(cut), encoder()(tokenizer.padded(short)), atol=1e-6, rtol=0)


def test_a_text_has_the_same_feature_in_any_company() -> None:
    tokenizer = Tokenizer()
    together = encoder()(tokenizer(TEXTS))
    alone = torch.cat([encoder()(tokenizer([text])) for text in TEXTS])
    assert_close(together, alone, atol=1e-6, rtol=0)
    assert_close(together.norm(dim=1), torch.ones(len(TEXTS)))


def test_words_and_their_order_matter() -> None:
    features = encoder()(Tokenizer()(["dog bites man", "man bites dog", "a cat"]))
    assert (features[0] - features[1]).abs().max() > 1e-3
    assert (features[0] - features[2]).abs().max() > 1e-3
