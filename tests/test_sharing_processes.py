"""What processes that share work tell each other, and what one of them meets alone."""

import pytest
import torch

from peft_surgical.errors import OutputError
from peft_surgical.running.sharing import add_up, by_main, is_main, merged, processes, share, shared_work

from .launching import launch, launch_forked

PRIMITIVES = """
import torch
from accelerate import PartialState
from peft import LoraConfig, get_peft_model
from peft_surgical.errors import ModelError, OutputError
from peft_surgical.running.alike import check_alike
from peft_surgical.running.sharing import add_up, by_main, is_main, merged, processes, share, shared_work
from peft_surgical.tuner import SurgicalIA3Config

state = PartialState(cpu=True)
rank = state.process_index
assert (processes(), is_main(), share("abc")) == (1, True, list("abc")), "nothing is shared unless it is asked for"
with shared_work():
    assert (processes(), is_main()) == (2, rank == 0)
    assert share("abcde") == (list("ace"), list("bd"))[rank]
    tensors = [torch.full((2,), float(rank + 1)), torch.tensor(10.0 * rank)]
    add_up(tensors)
    assert [tensor.tolist() for tensor in tensors] == [[3, 3], 10]
    assert merged(lambda: {rank: "own", "last": rank}) == {0: "own", 1: "own", "last": 1}
    called = []
    assert by_main(lambda: called.append(1) or "told") == "told"
    assert len(called) == (1, 0)[rank]

    def refuse():
        raise OutputError("the disk is full.")

    try:
        by_main(refuse)
        raise AssertionError
    except OutputError as error:
        assert str(error) == "the disk is full."
    check_alike(seed=0, config=SurgicalIA3Config(components=["L0.mlp"], modules_to_save=set("abcdefgh")))
    torch.manual_seed(0)
    alike, wide, other = (torch.nn.Linear(3, 2) for _ in range(3))
    adapted = get_peft_model(torch.nn.Sequential(alike), LoraConfig(target_modules=["0"]))
    torch.manual_seed(rank)
    torch.nn.init.normal_(adapted.base_model.model[0].lora_B["default"].weight)
    check_alike(model=adapted)
    check_alike(model=torch.nn.Linear(3, 2, device="meta" if rank else "cpu"))
    wide.to(torch.float64 if rank else torch.float32)
    other.weight.data[1, 2] += 1e-6 * rank
    # Reordered rows, of more words than are summed apart, and of fewer.
    long, short = torch.nn.Embedding(1024, 64), torch.nn.Linear(3, 2)
    for weight in (long.weight, short.weight):
        torch.nn.init.uniform_(weight, generator=torch.Generator().manual_seed(0))
        weight.data[:] = weight.data.flip(0) if rank else weight.data
    torch.nn.init.zeros_(short.bias)
    # What a checkpoint holds beside parameters, and what is worked out anew.
    saved, made = torch.nn.Identity(), torch.nn.Identity()
    saved.register_buffer("mean", torch.full((2,), float(rank)))
    made.register_buffer("angles", torch.full((2,), float(rank)), persistent=False)
    check_alike(model=made)
    within = get_peft_model(torch.nn.Sequential(other), LoraConfig(target_modules=["0"]))
    # An adapter that one process alone has, and one that acts in one process alone.
    lora = LoraConfig(target_modules=["0"])
    more, acting = (get_peft_model(torch.nn.Sequential(torch.nn.Linear(3, 2)), lora) for _ in range(2))
    for adapted in (more, acting):
        torch.nn.init.ones_(adapted.base_model.model[0].weight)
        torch.nn.init.ones_(adapted.base_model.model[0].bias)
        check_alike(model=adapted)
    if rank:
        more.add_adapter("more", LoraConfig(target_modules=["0"]))
    acting.add_adapter("more", LoraConfig(target_modules=["0"]))
    check_alike(model=acting)
    acting.set_adapter("more" if rank else "default")
    for model in (wide, other, long, short, saved, within, more, acting):
        try:
            check_alike(model=model)
            raise AssertionError
        except ModelError as error:
            assert str(error).endswith("differ in: model.")
    for given in ({"seed": rank}, {"seed": 0, "recipe": [{rank}]}):
        try:
            check_alike(**given)
            raise AssertionError
        except ModelError as error:
            assert str(error).endswith(("differ in: seed.", "differ in: recipe."))
check_alike(seed=rank)
assert processes() == 1
print("done")
"""

FAILING = """
import os
from datetime import timedelta
import torch
from torch import distributed
import peft_surgical as ps
from peft_surgical.errors import ModelError, told_by_first
from peft_surgical.measuring import retention
from peft_surgical.measuring.retention import measure_retention
from peft_surgical.measuring.states import adapter_state
from peft_surgical.running.sharing import by_each, by_main, merged, shared_work
from peft_surgical.staging import training
from tests.localizing import capital, word_tokenizer
from tests.tiny import tiny_model

distributed.init_process_group("gloo", timeout=timedelta(seconds=30))
rank = distributed.get_rank()
tokenizer, good = word_tokenizer(), tiny_model("llama")


class Strange(Exception):
    def __init__(self, one, two):
        super().__init__("strange")
        self.held = lambda: (one, two)


def raises(kind, message, function):
    try:
        function()
    except kind as error:
        assert message in str(error), error
        # The first tells of it, whoever met it.
        assert told_by_first(error) is (rank != 0)
    else:
        raise AssertionError(f"nothing was raised where {message!r} was to be")


def fails_in(failing, error):
    def run():
        if rank in failing:
            raise error
        return {rank: "own"}

    return run


def damaged(word):
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[tokenizer(word)["input_ids"][-1]] = float("nan")
    return model


prompts = ["what is the capital of france ?", "who wrote hamlet ?"]
more = ["name the capital of italy .", "tell me about the sky", "where is rome ?"]
expected = ps.generate_answers(good, tokenizer, more, max_new_tokens=4, batch_size=1)
with shared_work():
    for failing in ({0}, {1}, {0, 1}):
        first = min(failing)
        raises(ModelError, f"damaged in {first}", lambda: merged(fails_in(failing, ModelError(f"damaged in {rank}."))))
    raises(RuntimeError, "strange", lambda: by_each(fails_in({1}, RuntimeError("strange"))))
    raises((Strange, RuntimeError), "strange", lambda: by_each(fails_in({1}, Strange(1, 2))))
    raises(Strange if rank == 0 else RuntimeError, "strange", lambda: by_main(fails_in({0}, Strange(1, 2))))
    assert by_each(fails_in(set(), None)) == [{0: "own"}, {1: "own"}]
    # Of two batches one is either process's.
    for word in ("hamlet", "france"):
        model = damaged(word)
        raises(
            ModelError,
            "logits that are not finite",
            lambda: ps.generate_answers(model, tokenizer, prompts, max_new_tokens=4, batch_size=1),
        )
        assert ps.generate_answers(good, tokenizer, more, max_new_tokens=4, batch_size=1) == expected
    states = {"base": adapter_state(good, [])}
    look = retention._look

    def alone(*given, **options):
        if rank == 1:
            raise ModelError("no window is read.")
        return look(*given, **options)

    read = lambda: measure_retention(good, tokenizer, states, tokens=48, window=8, progress=False)
    retention._look = alone
    raises(ModelError, "no window is read", read)
    retention._look = look
    read()
    in_passes = training.in_passes

    def in_none(*given, **options):
        if rank == 1:
            raise ModelError("no pass is run.")
        return in_passes(*given, **options)

    def learn():
        model = tiny_model("llama")
        recipe = ps.Recipe(steps=2, general=3, everyday=2, compute_dtype="float32")
        config = ps.SurgicalIA3Config(components=["L0.mlp", "L1.head.1"])
        return ps.unlearn(model, tokenizer, capital(), config, recipe=recipe, progress=False)

    training.in_passes = in_none
    raises(ModelError, "no pass is run", learn)
    training.in_passes = in_passes
    learn()
print("done")
"""

HOOKED = """
import sys
from contextlib import nullcontext
from datetime import timedelta
import torch
from torch import distributed
from torch.utils.flop_counter import FlopCounterMode
import peft_surgical as ps
from peft_surgical.running.cache import answers_kept, kept_tensors
from peft_surgical.running.sharing import shared_work
from tests.localizing import word_tokenizer
from tests.tiny import tiny_model

# Who waits for one that has gone another way ends.
distributed.init_process_group("gloo", timeout=timedelta(seconds=20))
rank = distributed.get_rank()
prompts = ["what is the capital of france ?", "who wrote hamlet ?", "where is rome ?"]
plain = ps.generate_answers(tiny_model("llama"), word_tokenizer(), prompts, max_new_tokens=5)
for number, (hooked, counted) in enumerate([(0, None), (1, None), (None, 0), (None, 1)]):
    model = tiny_model("llama")
    if rank == hooked:
        model.model.layers[0].register_forward_hook(lambda *_: None)
    mode = FlopCounterMode(display=False) if rank == counted else nullcontext()
    with mode, answers_kept(f"{sys.argv[1]}/{number}"), shared_work():
        for _ in range(2):
            assert ps.generate_answers(model, word_tokenizer(), prompts, max_new_tokens=5) == plain
        measured = kept_tensors(
            model, "some", {}, lambda: {"one": torch.ones(1)}, alone=lambda _: nullcontext()
        )
        assert measured["one"] == 1
print("done")
"""


def test_alone_there_is_nothing_to_share():
    with shared_work():
        assert (processes(), is_main(), share([1, 2, 3])) == (1, True, [1, 2, 3])
        tensor = torch.ones(2)
        add_up([tensor])
        assert tensor.tolist() == [1, 1]
        assert merged(lambda: {1: 2}) == {1: 2}
        assert by_main(lambda: 3) == 3
        with pytest.raises(OutputError):
            by_main(_refused)


def _refused():
    raise OutputError("the disk is full.")


def test_what_processes_tell_each_other(tmp_path):
    script = tmp_path / "primitives.py"
    script.write_text(PRIMITIVES)
    # Interpreters of their own: a process that is forked has the order of sets of the one it is forked from.
    result = launch(script, PYTHONHASHSEED="random")
    assert result.stdout.count("done") == 2, result.stderr[-3000:]


def test_an_error_of_one_process_is_one_of_all(tmp_path):
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    result = launch_forked(script)
    assert result.stdout.count("done") == 2, result.stderr[-3000:]


def test_what_one_process_alone_watches_holds_none_up(tmp_path):
    script = tmp_path / "hooked.py"
    script.write_text(HOOKED)
    result = launch_forked(script, tmp_path)
    assert result.stdout.count("done") == 2, result.stderr[-3000:]
