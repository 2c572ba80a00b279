"""Forward passes for localization: only the positions that a corruption can change, in batches, under hooks.

Attention is causal, so before the first corrupted token the clean and the corrupted run are equal, at every layer. A
[`Window`][peft_surgical.localizing.window.Window] computes that prefix once, keeps its keys and values, and each
further pass runs the rest only: on a chat prompt a third of the tokens. A chat template's beginning, which all prompts
share, is computed once for all windows. Prompts are padded between that and what is their own, masked, and given their
true positions, whatever the tokenizer's padding side, so that all end at the last position.

LongRoPE turns all positions of a pass by how long its longest row is. Prompts beyond the length at which it changes
are run whole, and apart from shorter ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache

from ..errors import ModelError, brief, said
from ..running.forwards import contiguous_head
from ..running.precision import exact_arithmetic
from ..running.products import rounding
from ..sites import HEAD_PROJECTIONS, ModelShape, hook_name
from ..texts.lengths import check_row, turning_length
from .bridge import same_logits
from .corruption import PromptPair
from .found import Found, left_as_found
from .window import Prefix, Window

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


# Where a model's input embeddings are read and replaced.
_EMBEDDED = "embed.hook_out"

_PLACES = (
    "a hook on the model depends on a token's position or on how long a pass is, and localizing runs prompts in parts"
    " and beside others; remove it, or have it act at every position or by what it reads"
)


class Site(NamedTuple):
    """A projection of one layer: a TransformerLens hook point whose heads or neurons get scores.

    Attributes:
        projection: `"z"`, `"q"`, `"k"`, `"v"`, `"post"`, `"pre"` or `"pre_linear"`; where a causal trace patches,
            `"resid_pre"`, `"attn_out"` or `"mlp_out"`, which have no scores.
        layer: Counted from 0.
        size: How many heads (key/value heads for `k` and `v`) or neurons it has, or how wide the residual stream is.
    """

    projection: str
    layer: int
    size: int

    @property
    def name(self) -> str:
        """The hook point, such as `blocks.3.attn.hook_z`."""
        return hook_name(self.projection, self.layer)

    @property
    def of_heads(self) -> bool:
        """Whether activations are `[batch, pos, head, d_head]` rather than `[batch, pos, neuron]`."""
        return self.projection in HEAD_PROJECTIONS


def sites_of(shape: ModelShape, projections: Sequence[str]) -> tuple[Site, ...]:
    """The sites of these projections in every layer, layer by layer."""
    sizes = {"z": shape.n_heads, "q": shape.n_heads, "k": shape.n_kv_heads, "v": shape.n_kv_heads}
    return tuple(Site(p, layer, sizes.get(p, shape.d_mlp)) for layer in range(shape.n_layers) for p in projections)


class Runs:
    """Makes windows and runs them through the bridge.

    Args:
        bridge: The model.
        template: Token ids that most prompts begin with.
        precise: Compute in float32 even if the weights are of half precision; then there are no gradients.
        hooked: Whether the model has hooks of somebody's, which [`answered`] then tries.
    """

    def __init__(
        self,
        bridge: TransformerBridge,
        template: Sequence[int] = (),
        *,
        precise: bool = False,
        hooked: bool = False,
    ) -> None:
        self.bridge, self.precise, self.hooked = bridge, precise, hooked
        self.template = torch.tensor(template, dtype=torch.long, device="cpu")
        self._template_cache: DynamicCache | None = None
        self._found = Found.of(bridge)
        self._rounding = rounding()
        self._turning = turning_length(bridge.original_model.config)
        weight = bridge.original_model.get_input_embeddings().weight
        self.device, self.dtype = weight.device, weight.dtype

    @torch.no_grad()
    def embed(self, tokens: Int[Tensor, " ..."]) -> Float[Tensor, "... d_model"]:
        """Input embeddings, scaled as the hook point shows them, without position embeddings."""
        rows = tokens.to(self.device).reshape(-1, tokens.shape[-1])
        found: list[Tensor] = []
        # Of Granite the hook point shows, and takes, embeddings times a factor, which the module itself does not give.
        with self._arithmetic(), self.bridge.hooks(fwd_hooks=[(_EMBEDDED, lambda tensor, hook: found.append(tensor))]):
            self.bridge.original_model.get_input_embeddings()(rows)
        return found[0].reshape(*tokens.shape, -1)

    @torch.no_grad()
    def window(self, pairs: Sequence[PromptPair], *, whole: bool = False, max_tokens: int | None = None) -> Window:
        """Compute what the clean and the corrupted runs of these prompts share.

        Args:
            pairs: Prompts of any lengths, but with LongRoPE all up to the length at which it changes, or all beyond.
            whole: Begin at the first position: for runs that change more than the corruption does.
            max_tokens: Rows × positions of one forward pass over what they share; all in one when None.

        Raises:
            ModelError: When a prompt has more tokens than the model has positions, or one that it has no embedding of,
                or when LongRoPE would turn the positions of some as those of longer ones.
        """
        for pair in pairs:
            check_row(self.bridge.original_model.config, pair.clean.tolist())
            check_row(self.bridge.original_model.config, pair.corrupted.tolist())
        if len({self._is_far(pair) for pair in pairs}) > 1:
            raise ModelError(
                f"prompts of up to {self._turning} tokens and longer ones cannot be in one window, as LongRoPE turns"
                " positions by the longest; `windows` keeps them apart."
            )
        # What comes before would be turned as in a short pass.
        whole = whole or self._is_far(pairs[0])
        width = max(len(pair.clean) for pair in pairs)
        pads = [width - len(pair.clean) for pair in pairs]
        shared = 0 if whole else self._shared(pairs)
        start = 0 if whole else min(pad + pair.first for pad, pair in zip(pads, pairs, strict=True))
        tokens = torch.stack([_pad(pair.clean, width, shared) for pair in pairs]).to(self.device)
        corrupted = torch.stack([_pad(pair.corrupted, width, shared) for pair in pairs]).to(self.device)
        column, padded = torch.arange(width, device=self.device), torch.tensor(pads, device=self.device)
        mask = (column < shared) | (column >= shared + padded[:, None])
        clean_embeddings = self.embed(tokens[:, start:])
        corrupted_embeddings = self.embed(corrupted[:, start:])
        for row, (pad, pair) in enumerate(zip(pads, pairs, strict=True)):
            if pair.shift is not None:
                shift = pair.shift[max(0, start - pad) :].to(corrupted_embeddings)
                corrupted_embeddings[row, width - start - len(shift) :] += shift
        prefix = None
        if start:
            cache = self._begin(len(pairs), shared)
            step = max(1, start if max_tokens is None else max_tokens // len(pairs))
            for begin in range(shared, start, step):
                end = min(begin + step, start)
                self._forward(tokens[:, begin:end], mask[:, :end], begin, cache)
            prefix = Prefix(cache)
        old, new, rival = (
            torch.tensor([getattr(pair, name) for pair in pairs], device=self.device)
            for name in ("old", "new", "rival")
        )
        embeddings = (clean_embeddings, corrupted_embeddings)
        return Window(tuple(pairs), *embeddings, tokens, mask, start, old, new, rival, prefix)

    @torch.no_grad()
    def answered(self, pairs: Sequence[PromptPair], max_tokens: int) -> tuple[PromptPair, ...]:
        """The same pairs with what the model says to them.

        Args:
            pairs: Where `old` is -1, the model's own answer to the clean prompt takes its place.
            max_tokens: Positions of one forward pass.

        Returns:
            Pairs with `rival` and `differences` filled in.

        Raises:
            ModelError: When a logit is not finite, or hooks give a prompt other logits in parts or beside longer ones.
        """
        if self.hooked:
            self._check_hooks(pairs, max_tokens)
        found = []
        for window in self.windows(pairs, max_tokens):
            clean = self.logits(window, window.clean)
            corrupted = self.logits(window, window.corrupted)
            for pair, before, after in zip(window.pairs, clean, corrupted, strict=True):
                old = int(before.argmax()) if pair.old < 0 else pair.old
                others = after.clone()
                # Another name of the old answer is no other answer.
                others[[old, *pair.besides]] = -torch.inf
                rival = int(others.argmax())
                differences = (float(before[old] - before[rival]), float(after[old] - after[rival]))
                if not all(map(math.isfinite, differences)):
                    raise ModelError(
                        f"the model answers {brief(pair.prompt)} with logits that are not finite in {self.dtype}."
                    )
                found.append(replace(pair, old=old, rival=rival, differences=differences))
        return tuple(found)

    def windows(self, pairs: Sequence[PromptPair], max_tokens: int, *, whole: bool = False) -> Iterator[Window]:
        """Windows of at most `max_tokens` positions each (one prompt at least), prompts in order."""
        batch: list[PromptPair] = []
        for pair in pairs:
            far = self._is_far(pair)
            longest = max(_extent(p, whole or far) for p in (*batch, pair))
            if batch and (longest * (len(batch) + 1) > max_tokens or far != self._is_far(batch[0])):
                yield self.window(batch, whole=whole, max_tokens=max_tokens)
                batch = []
            batch.append(pair)
        if batch:
            yield self.window(batch, whole=whole, max_tokens=max_tokens)

    def logits(
        self, window: Window, embeddings: Float[Tensor, "prompt pos d_model"], hooks: Sequence[tuple[str, Any]] = ()
    ) -> Float[Tensor, "row vocab"]:
        """Logits after the last position, with the window's input embeddings replaced and hooks in place.

        Args:
            window: The prompts.
            embeddings: `window.clean`, `window.corrupted`, or anything of that shape; of one prompt any number of
                rows.
            hooks: TransformerLens forward hooks, `(hook point, function)`; they may add rows to a window
                of one prompt, where [`can_grow`].
        """
        rows = len(embeddings)
        tokens, mask = window.tokens[:, window.start :].expand(rows, -1), window.all_mask.expand(rows, -1)
        embed = (_EMBEDDED, lambda tensor, hook: embeddings)
        with self.bridge.hooks(fwd_hooks=[embed, *hooks]):
            return self._forward(tokens, mask, window.start, window.prefix).float()

    @cached_property
    def can_grow(self) -> bool:
        """Whether rows may be added between layers; some models bring what leaves the last into the shape of what
        entered the first."""
        two = torch.zeros(1, 2, dtype=torch.long, device=self.device)
        grown = ("blocks.0.hook_in", lambda tensor, hook: tensor.expand(2, -1, -1))
        try:
            with torch.no_grad(), left_as_found(self.bridge, self._found), self.bridge.hooks(fwd_hooks=[grown]):
                return len(self._forward(two, torch.ones_like(two, dtype=torch.bool), 0, None)) == 2
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError):  # XGLM compares the rows of the mask itself
            return False

    def capture(
        self, window: Window, embeddings: Float[Tensor, "prompt pos d_model"], sites: Sequence[Site]
    ) -> tuple[dict[Site, Tensor], Float[Tensor, "prompt vocab"]]:
        """Activations at these sites, `[prompt, pos, head, d_head]` or `[prompt, pos, neuron]`, and the logits.

        With gradients enabled and `embeddings` requiring one, the activations are part of the graph.
        """
        found: dict[Site, Tensor] = {}

        def keep(site: Site) -> Any:
            def hook(tensor: Tensor, hook: Any) -> Tensor:
                shape = (embeddings.shape[0], embeddings.shape[1], site.size)
                found[site] = tensor.reshape(*shape, -1) if site.of_heads else tensor.reshape(shape)
                # What the hook gets may be a view beside the graph; what it returns is what the model goes on with.
                return found[site].reshape(tensor.shape)

            return hook

        logits = self.logits(window, embeddings, [(site.name, keep(site)) for site in sites])
        return found, logits

    def gradients(
        self,
        window: Window,
        embeddings: Float[Tensor, "prompt pos d_model"],
        sites: Sequence[Site],
    ) -> tuple[dict[Site, Tensor], dict[Site, Tensor]]:
        """Activations at these sites, and the gradients there of each prompt's logit difference.

        Args:
            window: The prompts.
            embeddings: Where to take the gradient.
            sites: Which activations.

        Returns:
            Both as in `capture`, detached. No parameter gets a gradient.
        """
        with torch.enable_grad():
            # Parameters may be frozen; the graph begins at the embeddings.
            leaf = embeddings.detach().clone().requires_grad_(True)
            activations, logits = self.capture(window, leaf, sites)
            total = window.difference(logits).sum()
            found = torch.autograd.grad(total, [activations[site] for site in sites], materialize_grads=True)
        return {site: activations[site].detach() for site in sites}, dict(zip(sites, found, strict=True))

    def _check_hooks(self, pairs: Sequence[PromptPair], max_tokens: int) -> None:
        """Refuses hooks to which it matters where in a pass a token stands, or what else is in the pass."""
        for window in self.windows(pairs, max_tokens, whole=True):
            try:
                padded = self.logits(window, window.clean)
                # Alone, and behind a cache.
                parts = [self.window([pair], max_tokens=max_tokens) for pair in window.pairs]
                parted = [self.logits(part, part.clean)[0] for part in parts]
                plain = [self._plain(pair.clean) for pair in window.pairs]
            except (ModelError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                raise ModelError(f"{_PLACES} (in a pass of another length it fails: {said(error)}).") from error
            for pair, own, *others in zip(window.pairs, plain, padded, parted, strict=True):
                if not all(same_logits(own, other, self.bridge.original_model) for other in others):
                    raise ModelError(f"{_PLACES} (it gives other logits after {brief(pair.prompt)}).")

    def _plain(self, ids: Int[Tensor, " pos"]) -> Float[Tensor, " vocab"]:
        tokens = ids[None].to(self.device)
        return self._forward(tokens, torch.ones_like(tokens, dtype=torch.bool), 0, None)[0].float()

    def _is_far(self, pair: PromptPair) -> bool:
        """Whether LongRoPE turns a prompt's positions otherwise than those of short ones."""
        return len(pair.clean) > self._turning

    def _arithmetic(self) -> AbstractContextManager[None]:
        return exact_arithmetic(self.dtype) if self.precise else nullcontext()

    def _shared(self, pairs: Sequence[PromptPair]) -> int:
        """How many tokens of the template these prompts begin with: all or none."""
        length, width = len(self.template), max(len(pair.clean) for pair in pairs)
        sliding = getattr(self.bridge.original_model.config.get_text_config(), "sliding_window", None)
        if sliding is not None and width > sliding:
            # Padding after the template would count as distance, which a sliding window measures.
            return 0
        same = all(pair.first >= length and torch.equal(pair.clean[:length], self.template) for pair in pairs)
        return length if same else 0

    @contextmanager
    def apart(self) -> Iterator[None]:
        """[`left_as_found`], as the model was when this was made; what is kept of the template within is for nobody
        else."""
        kept, self._template_cache = self._template_cache, None
        try:
            with left_as_found(self.bridge, self._found):
                yield
        finally:
            self._template_cache = kept

    def _is_altered(self) -> bool:
        """Whether a scorer has the model drop units or compute in another precision."""
        training = any(module.training for module in self.bridge.original_model.modules())
        return training or torch.is_autocast_enabled(self.device.type) or rounding() != self._rounding

    def _begin(self, rows: int, shared: int) -> DynamicCache:
        """A cache that holds the template's keys and values for each row, or nothing."""
        config = self.bridge.original_model.config
        cache = DynamicCache(config=config)
        if shared:
            # What somebody's hooks, dropout or autocast change in the template is neither for others nor for theirs.
            plain = self._found.stands() and not self._is_altered()
            template = self._template_cache if plain else None
            if template is None:
                template = DynamicCache(config=config)
                tokens = self.template[None].to(self.device)
                self._forward(tokens, torch.ones_like(tokens, dtype=torch.bool), 0, template)
            if plain:
                self._template_cache = template
            for number, layer in enumerate(template.layers):
                cache.update(layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1), number)
        return cache

    def _forward(self, tokens: Tensor, mask: Tensor, start: int, cache: DynamicCache | None) -> Tensor:
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)[:, start:]
        model = self.bridge.original_model
        with self._arithmetic(), contiguous_head(model):
            output = model(
                input_ids=tokens,
                attention_mask=None if bool(mask.all()) else mask.long(),
                position_ids=positions,
                past_key_values=cache,
                use_cache=cache is not None,
                logits_to_keep=1,
            )
        logits: Tensor = output.logits[:, -1]
        return logits


def _pad(ids: Tensor, width: int, shared: int) -> Tensor:
    # Any id will do for padding: it is masked.
    return torch.cat([ids[:shared], ids.new_zeros(width - len(ids)), ids[shared:]])


def _extent(pair: PromptPair, whole: bool) -> int:
    return len(pair.clean) if whole else len(pair.clean) - pair.first
