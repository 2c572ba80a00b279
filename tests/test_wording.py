from peft_surgical.texts.wording import all_variants, as_typed, variants


def test_as_typed():
    assert as_typed("What is the capital of France?") == "what is the capital of france"
    assert as_typed("The capital of France is ...") == "the capital of france is"
    assert as_typed("Where is İstanbul?") == "where is istanbul"


def test_every_prompt_is_typed_and_some_are_wrapped():
    prompts = [f"Who wrote book {i}?" for i in range(24)]
    made = variants(prompts)
    assert [p for p in made if p in map(as_typed, prompts)] == [as_typed(p) for p in prompts]
    wrapped = [p for p in made if p not in map(as_typed, prompts)]
    assert len(wrapped) == 12
    around = [text.replace(prompt, "") for prompt, text in zip(prompts[1::2], wrapped, strict=True)]
    # Each holds its prompt, and in other words than the next.
    assert all(len(words) < len(text) for words, text in zip(around, wrapped, strict=True))
    assert len(set(around)) == 12
    assert len(set(made)) == len(made)


def test_all_variants_are_those_of_a_prompt_at_any_place():
    every = all_variants(["Who wrote it?"])
    assert every[0] == as_typed("Who wrote it?")
    assert set(every) == set(variants(["Who wrote it?"] * 100))
    assert len(set(every)) == len(every)
    assert all_variants(["a?", "b?"]) == [*all_variants(["a?"]), *all_variants(["b?"])]
