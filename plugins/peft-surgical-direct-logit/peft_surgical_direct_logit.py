"""Direct logit attribution: what each head and neuron writes straight into the answer's logit, past later layers."""

import torch

import peft_surgical as ps


def direct_logit(context):
    """Each component's output along the gradient of the logit difference at the final residual stream.

    With the embedding's and the blocks' biases' they add up to the gradient times the stream: about 0 under a norm.
    """
    config = context.model.original_model.config
    normed = hasattr(context.model.blocks[0], "ln1_post") or not getattr(config, "do_layer_norm_before", True)
    if {site.projection for site in context.sites} - {"z", "post"} or normed:
        raise ps.ScorerError("it reads z and post, of models that add a block's output to the stream without a norm.")
    factor, totals = getattr(config, "residual_multiplier", 1.0), {}  # Granite's
    for window in context.windows():
        leaves = []

        def cut(tensor, hook, leaves=leaves):
            leaves.append(tensor.detach().requires_grad_(True))
            return leaves[0]

        with torch.enable_grad():
            out = context.runs.logits(window, window.clean, [(f"blocks.{context.shape.n_layers - 1}.hook_out", cut)])
            slope = torch.autograd.grad(window.difference(out).sum(), leaves)[0][:, -1].float()  # [prompt, d_model]
        with torch.no_grad():
            for site, values in context.runs.capture(window, window.clean, context.sites)[0].items():
                block, last = context.model.blocks[site.layer], values[:, -1].float()
                weight = block.attn.W_O if site.of_heads else block.mlp.W_out  # [..., d_model]
                written = factor * last * (slope @ weight.float().flatten(0, -2).T).reshape(last.shape)
                totals[site] = totals.get(site, 0) + (written.sum(-1) if site.of_heads else written).sum(0)
    return {site: total / len(context.pairs) for site, total in totals.items()}


@ps.hookimpl
def register_scorers(register):
    """Register `direct_logit`."""
    register("direct_logit", direct_logit)
