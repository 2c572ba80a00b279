"""Two processes on one machine, gloo: the adapter trains, both hold the same scales, the saved one reloads equal."""

import torch
from peft import PeftModel

from tests.adapters import deltas, logits, tiny_peft
from tests.launching import launch_forked
from tests.tiny import tiny_model

SCRIPT = """
import sys
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tests.adapters import deltas, tiny_peft
from tests.tiny import tiny_ids

accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2, accelerator.num_processes
model = tiny_peft(perturbed=False)
base = {n: p.detach().clone() for n, p in model.named_parameters() if "surgical" not in n}
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
loader = torch.utils.data.DataLoader(tiny_ids(batch=8), batch_size=4)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
losses = []
for _ in range(6):
    for ids in loader:
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        accelerator.backward(loss)
        optimizer.step()
        losses.append(accelerator.gather(loss.detach()).mean().item())
assert losses[-1] < losses[0], losses
plain = accelerator.unwrap_model(model)
assert all(torch.equal(base[n], p) for n, p in plain.named_parameters() if n in base)
mine = {name: delta.tolist() for name, delta in deltas(plain).items()}
first, second = gather_object([mine])
assert first == second
plain.save_pretrained(sys.argv[1], is_main_process=accelerator.is_main_process)
accelerator.wait_for_everyone()
print("done")
"""


def test_two_processes(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    result = launch_forked(script, tmp_path / "adapter")
    assert result.stdout.count("done") == 2, result.stderr[-3000:]
    model = PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "adapter")
    assert all((delta != 0).all() for delta in deltas(model).values())
    assert not torch.equal(logits(model), logits(tiny_peft(perturbed=False)))
