import torch

from peft_surgical.localizing.effects import site_scores
from peft_surgical.localizing.patching import Target
from peft_surgical.localizing.runs import Site


def test_site_scores_put_each_target_in_its_place():
    z, post = Site("z", 0, 3), Site("post", 0, 8)
    found = site_scores([Target(post), Target(z, 2), Target(z, 0)], torch.tensor([5.0, 2.0, 1.0]))
    assert {site: values.tolist() for site, values in found.items()} == {post: [5.0], z: [1.0, 0.0, 2.0]}
