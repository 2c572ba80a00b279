"""What enters modules of a model at some tokens of some texts, and its moments there: where a subject is read off.

What an MLP's neurons are at a subject's last token is the *key* that the fact is looked up by, and what its output
projection makes of them the *value* (Geva et al., arXiv 2012.14913; ROME, arXiv 2202.05262).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache

from ..architectures import decoder_layers
from ..errors import SelectionError
from ..running.at_once import deal
from ..running.beginnings import MIN_SHARED, expanded, goes_on_from_keys, shared_prefix
from ..running.devices import input_device
from ..running.forwards import handed_on, passed_over, read_at
from ..running.generation import even_batches
from ..running.modes import told_places
from ..running.replicas import replicate
from ..texts.prompts import EncodedAnswer, unanswered
from ..tuner.fold import features
from ..tuner.targets import unwrapped

_BATCH = 32
# Bytes of second moments that are held at once; with more layers than that the texts are read again.
_ROOM = 3 * 2**28

# Runs token ids and returns what hooks have seen, `[row, token, width]` by name.
_Reader: TypeAlias = Callable[[Tensor, Any], dict[str, Tensor]]
_Watch: TypeAlias = Callable[[Any, dict[str, Tensor]], Iterator[RemovableHandle]]


@dataclass(frozen=True)
class Marked:
    """Texts, and which of their tokens count.

    Attributes:
        rows: The texts.
        marks: For each the positions that count.
    """

    rows: Sequence[EncodedAnswer]
    marks: Sequence[Sequence[int]]

    @classmethod
    def whole(cls, rows: Sequence[EncodedAnswer]) -> Marked:
        """All tokens but the first, which is like no other."""
        return cls(rows, [range(1, len(row.ids)) for row in rows])

    def tokens(self) -> set[int]:
        """The tokens that count."""
        return {row.ids[i] for row, marks in zip(self.rows, self.marks, strict=True) for i in marks}

    def but_for(self, other: Marked) -> Marked:
        """The tokens of these texts that do not count in the other, which has the same texts."""
        pairs = zip(self.marks, other.marks, strict=True)
        return Marked(self.rows, [[i for i in own if i not in left_out] for own, left_out in pairs])

    @classmethod
    def first_of(cls, rows: Sequence[EncodedAnswer], subject: Iterable[Iterable[int]]) -> Marked:
        """Each token that some texts begin with, as a text of its own, but for those that are a subject's last.

        Args:
            rows: The texts.
            subject: The positions of the subject's last tokens in some of them, from the first on.
        """
        own = {row.ids[0] for row, marks in zip(rows, subject, strict=False) if 0 in marks}
        begun = dict.fromkeys(unanswered(row.ids[:1]) for row in rows if row.ids[0] not in own)
        return cls([*begun], [[0]] * len(begun))


def moments(
    model: Any,
    modules: Mapping[str, int],
    kinds: Sequence[Marked],
    further: Mapping[str, int] | None = None,
    squares: dict[str, Tensor] | None = None,
) -> dict[str, tuple[Float[Tensor, "neuron neuron"], Float[Tensor, " neuron"]]]:
    """Each module's second moment and mean of its input over the marked tokens, summed over kinds, float64.

    Args:
        model: As for [`marked_neurons`].
        modules: As for [`marked_neurons`].
        kinds: Texts.
        further: More modules, of which the mean of squares alone is wanted; read in the same passes.
        squares: Gets that added.
    """
    further, squares = further or {}, {} if squares is None else squares
    found: dict[str, tuple[Tensor, Tensor]] = {}
    there: Any = {"dtype": torch.float64, "device": "cpu"}
    for name in modules:
        count = neuron_count(model.get_submodule(name))
        found[name] = (torch.zeros(count, count, **there), torch.zeros(count, **there))
    for texts in kinds:
        share = 1 / max(sum(map(len, texts.marks)), 1)
        for neurons in marked_neurons(model, {**modules, **further}, texts):
            for name in further:
                squares[name] = share * neurons.pop(name).square().sum(0) + squares.get(name, 0.0)
            for name, met in neurons.items():
                # Apple's GPUs have no float64.
                met = met.cpu() if met.device.type == "mps" else met
                second, mean = (moment.to(met.device) for moment in found[name])
                second.add_(met.T @ met, alpha=share)
                found[name] = (second, mean.add_(met.double().sum(0), alpha=share))
    return found


def modules_in_turn(model: Any, modules: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Some modules at a time, so that there is room for their second moments."""
    chosen: dict[str, int] = {}
    room = _ROOM
    for name, layer in modules.items():
        # The subject's own and that of what is kept.
        size = 2 * 8 * neuron_count(model.get_submodule(name)) ** 2
        if chosen and size > room:
            yield chosen
            chosen, room = {}, _ROOM
        chosen[name] = layer
        room -= size
    if chosen:
        yield chosen


def neuron_count(module: nn.Module) -> int:
    """How many numbers a linear module reads, of an output projection the neurons, whether or not an adapter is on it.

    Raises:
        SelectionError: If it is not linear.
    """
    width = features(unwrapped(module), "input")
    if width is None:
        raise SelectionError(f"keys are read off linear modules, and this one is a {type(module).__name__}.")
    return width


def marked_neurons(
    model: Any, modules: Mapping[str, int], texts: Marked, batch: int = _BATCH
) -> Iterator[dict[str, Float[Tensor, "marked neuron"]]]:
    """What enters some modules of decoder layers at some tokens, a batch of rows at a time, float32.

    Rows come in the [order of reading][peft_surgical.keying.keys.order_of_reading]. Layers above the last of the
    modules' are not run.

    Args:
        model: A causal language model.
        modules: Names of linear modules and their layers, as of [`~peft_surgical.architectures.output_projections`].
        texts: What is read, at the marks.
        batch: Rows at a time.
    """

    def watch(own: Any, seen: dict[str, Tensor]) -> Iterator[RemovableHandle]:
        def hook(name: str) -> Any:
            return lambda _, args: seen.__setitem__(name, args[0])

        for name in modules:
            yield own.get_submodule(name).register_forward_pre_hook(hook(name))

    yield from _at_marks(model, modules, texts, watch, batch)


def order_of_reading(texts: Marked) -> list[int]:
    """The places of the texts with a marked token, as they are read: by length up to the last of them, as rows of like
    length are padded least."""
    return sorted((i for i, own in enumerate(texts.marks) if own), key=lambda i: max(texts.marks[i]))


def stream_lengths(model: Any, modules: Mapping[str, int], texts: Marked) -> dict[str, float]:
    """For each MLP the root mean square length of the residual stream behind its layer, at some tokens.

    Args:
        model: As for [`marked_neurons`].
        modules: As for [`marked_neurons`].
        texts: As for [`marked_neurons`].
    """

    def watch(own: Any, seen: dict[str, Tensor]) -> Iterator[RemovableHandle]:
        def hook(name: str) -> Any:
            return lambda _, __, output: seen.__setitem__(name, handed_on(output))

        stack = decoder_layers(own)
        for name, layer in modules.items():
            yield stack[layer].register_forward_hook(hook(name))

    squares, count = dict.fromkeys(modules, 0.0), sum(map(len, texts.marks))
    for states in _at_marks(model, modules, texts, watch, _BATCH):
        for name, state in states.items():
            squares[name] += float(state.square().sum())
    return {name: (square / max(count, 1)) ** 0.5 for name, square in squares.items()}


@torch.no_grad()
def _at_marks(
    model: Any,
    modules: Mapping[str, int],
    texts: Marked,
    watch: _Watch,
    batch: int,
) -> Iterator[dict[str, Tensor]]:
    """Runs texts through the first layers, some at a time, and picks the marked tokens of what hooks have seen.

    What all of them begin with runs once, where that is long enough to be worth it, and what stands behind the last
    mark of a text, which no mark sees, not at all.

    Args:
        model: As for [`marked_neurons`].
        modules: As for [`marked_neurons`]; layers above the last of them are not run.
        texts: What is read, at the marks.
        watch: Puts hooks on a model, or on a replica of it, one by one, which keep what they see.
        batch: So many rows at a time, all replicas together.
    """
    above = 1 + max(modules.values())
    every = [(texts.rows[i].ids[: max(texts.marks[i]) + 1], texts.marks[i]) for i in order_of_reading(texts)]
    length = shared_prefix([ids for ids, _ in every], [len(ids) - 1 for ids, _ in every])
    if length < MIN_SHARED or len(every) < 2 or not goes_on_from_keys(model):
        length = 0
    replicas = replicate(model, most=max(1, len(every)))
    batches = even_batches(every, -(-batch // len(replicas)), len(replicas))
    with ExitStack() as watching:
        readers = [watching.enter_context(_reading(replica.model, above, watch)) for replica in replicas]
        begun, beginning = None, {}
        if length:
            begun = DynamicCache()
            beginning = readers[0](torch.tensor([every[0][0][:length]], device="cpu"), begun)

        def picked(states_of: _Reader, some: Sequence[tuple[Sequence[int], Sequence[int]]]) -> dict[str, Tensor]:
            ids = torch.zeros(len(some), len(some[-1][0]), dtype=torch.long, device="cpu")
            marked = torch.zeros(ids.shape, dtype=torch.bool, device="cpu")
            for place, (own, marks) in enumerate(some):
                ids[place, : len(own)] = torch.tensor(own, device="cpu")
                marked[place, list(marks)] = True
            found = states_of(ids[:, length:], expanded(begun, len(some)))
            for name, state in beginning.items():
                found[name] = torch.cat([state.expand(len(some), -1, -1), found[name]], dim=1)
            return {name: state[marked.to(state.device)].float() for name, state in found.items()}

        for start in range(0, len(batches), len(readers)):
            read = deal(
                readers,
                batches[start : start + len(readers)],
                lambda reader, own: [picked(reader, some) for some in own],
            )
            for found in read:
                yield from found


@contextmanager
def _reading(model: Any, above: int, watch: _Watch) -> Iterator[_Reader]:
    """Runs token ids through a model's first layers, and returns what hooks have seen of each token."""
    stack, head, device = decoder_layers(model), model.get_output_embeddings(), input_device(model)
    seen: dict[str, Tensor] = {}

    def states_of(ids: Tensor, cache: Any) -> dict[str, Tensor]:
        nowhere = torch.zeros(ids.shape, dtype=torch.bool, device=device)
        begin = cache.get_seq_length() if cache is not None else 0
        with passed_over(stack, above), read_at(head, nowhere):
            model(
                input_ids=ids.to(device),
                past_key_values=cache,
                use_cache=cache is not None,
                **told_places(model, begin, begin + ids.shape[1]),
            )
        return {name: own.reshape(*ids.shape, -1) for name, own in seen.items()}

    with ExitStack() as hooked:
        for handle in watch(model, seen):
            hooked.enter_context(handle)
        yield states_of
