from types import SimpleNamespace

from tokenizers import AddedToken

from peft_surgical.keying.drawn import drawn_texts

from .localizing import word_tokenizer
from .tiny import tiny_model

TOKENIZER = word_tokenizer()


EVERY = set(range(len(TOKENIZER))) - set(TOKENIZER.all_special_ids)


def ids(*args, model=None, **options):
    model = tiny_model("llama", max_position_embeddings=8) if model is None else model
    return [row.ids for row in drawn_texts(model, TOKENIZER, *args, **options).rows]


def test_texts_are_drawn_by_seed_and_of_one_length():
    drawn = ids(3, 0)
    assert drawn == ids(3, 0) != ids(3, 1) != ids(3, -1)
    assert [len(row) for row in drawn] == [8] * 3
    assert ids(0, 0) == []


def test_all_but_the_first_token_count():
    model = tiny_model("llama", max_position_embeddings=8)
    assert [[*marks] for marks in drawn_texts(model, TOKENIZER, 2, 0).marks] == [[*range(1, 8)]] * 2


def test_no_token_is_drawn_twice_nor_a_special_one_nor_one_that_is_left_out():
    found = [token for row in ids(10**6, 0) for token in row]
    assert len(found) == len(set(found)) == len(EVERY) // 8 * 8
    assert set(found) <= EVERY
    left_out = sorted(EVERY)[1:]
    assert ids(9, 0, without=left_out) == [(sorted(EVERY)[0],)]
    assert ids(9, 0, without=EVERY) == []


def test_a_model_has_positions_and_embeddings_for_them():
    [row] = ids(1, 0, model=tiny_model("llama"))
    assert len(row) == 32
    small = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=None, vocab_size=20))
    assert max(token for row in ids(100, 0, model=small) for token in row) < 20


def test_tokens_that_were_added_are_not_drawn():
    tokenizer = word_tokenizer()
    tokenizer.add_tokens([AddedToken("<|reserved|>", special=True), AddedToken("<|said|>")])
    added = set(range(len(TOKENIZER), len(tokenizer)))
    assert len(added) == 2
    [row] = drawn_texts(tiny_model("llama"), tokenizer, 1, 0, without=sorted(EVERY)[1:]).rows
    assert row.ids == (sorted(EVERY)[0],)
