"""transformers' Trainer on a surgical adapter: a training loop of one's own.

    python examples/trainer_loop.py --out out/trainer_loop --steps 20

It fits the new answer and keeps nothing: no retained prompts, no curvature, no first stage. `ps.unlearn` and
`ps.learn` hold the model to what it said before; here that is the loop's own affair.
"""

from argparse import ArgumentParser
from pathlib import Path

from peft import PeftModel, get_peft_model
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

import peft_surgical as ps

FACT = Path(__file__).parent / "facts" / "france_capital.yaml"


def example(tokenizer, prompt, answer):
    """One row: the loss is that of the answer's tokens only."""
    row = ps.encode_answer(tokenizer, prompt, answer)
    labels = [-100] * row.answer_start + list(row.ids[row.answer_start :])
    return {"input_ids": list(row.ids), "attention_mask": [1] * len(row.ids), "labels": labels}


def main(model="demo", fact=FACT, out="out/trainer_loop", steps=20, learning_rate=0.02):
    """Returns the losses step by step, and the trained PEFT model."""
    fact = ps.Fact.from_file(fact)
    base, tokenizer = ps.load_model(model, dtype="float32")
    components = [f"L{layer}.mlp" for layer in range((base.config.num_hidden_layers + 1) // 2)]
    config = ps.SurgicalIA3Config(components=components, task_type="CAUSAL_LM")
    peft_model = get_peft_model(base, config)
    peft_model.print_trainable_parameters()
    arguments = TrainingArguments(
        str(out),
        max_steps=steps,
        learning_rate=learning_rate,
        per_device_train_batch_size=8,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
    )
    trainer = Trainer(
        peft_model,
        arguments,
        train_dataset=[example(tokenizer, prompt, fact.answer) for prompt in fact.training.prompts],
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    trainer.save_model(str(out))

    # A surgical adapter needs `import peft_surgical` where it is loaded; `ps.to_ia3` makes a plain one of it.
    fresh, _ = ps.load_model(model, dtype="float32")
    again = PeftModel.from_pretrained(fresh, out)
    for prompt, said in zip(fact.held_out[:3], ps.generate_answers(again, tokenizer, fact.held_out[:3]), strict=False):
        print(f"{prompt}\n  {said}")
    return losses, peft_model


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo", help="a hub id, a folder, a .gguf file or demo")
    parser.add_argument("--fact", default=FACT, type=Path, help="a fact file")
    parser.add_argument("--out", default="out/trainer_loop", help="the folder to write")
    parser.add_argument("--steps", default=20, type=int, help="optimizer steps")
    parser.add_argument("--learning-rate", default=0.02, type=float, help="AdamW's; scales are near 1")
    try:
        main(**vars(parser.parse_args()))
    except ps.SurgicalError as error:
        raise SystemExit(f"Error: {error}") from error
