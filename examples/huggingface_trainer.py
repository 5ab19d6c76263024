"""Hugging Face's Trainer: one callback, and the run is watched.

A tiny vision transformer, made from its configuration (nothing is downloaded), learns handwritten
digits.

    pip install 'ntkwatch[demo,transformers]' && python examples/huggingface_trainer.py
"""

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

from ntkwatch import NTKTrainerCallback


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer epochs, for a first look")
    parser.add_argument("--out", type=Path, default=Path("trainer-run"), help="output folder")
    options = parser.parse_args()

    set_seed(0)
    images, digits = load_digits(return_X_y=True)
    pixels = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    labels = torch.tensor(digits)
    items = [{"pixel_values": x, "labels": y} for x, y in zip(pixels, labels, strict=True)]
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        initializer_range=0.1,  # 0.02, the default, is for widths of many hundreds
        num_labels=10,
    )
    # The probe is drawn from eval_dataset and put together by the Trainer's collator. By default
    # the callback looks often at first, then seldom, and takes 2 % of the time.
    watch = NTKTrainerCallback(probe_size=32, every_n_steps=30)
    trainer = Trainer(
        model=ViTForImageClassification(config),
        args=TrainingArguments(
            output_dir=str(options.out),
            num_train_epochs=3 if options.quick else 6,
            per_device_train_batch_size=25,
            learning_rate=3e-3,
            logging_steps=30,
            report_to="tensorboard",  # where the callback's scalars go, too
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=items[:1500],
        eval_dataset=items[1500:],
        compute_metrics=lambda seen: {
            "accuracy": float((seen.predictions.argmax(-1) == seen.label_ids).mean())
        },
        callbacks=[watch],
    )
    trainer.train()
    for seen in watch.history:
        print(
            f"step {seen.step:4d}   loss {seen.loss:6.4f}   kernel angle {seen.kernel_angle:5.3f}"
        )
    accuracy = trainer.evaluate()["eval_accuracy"]
    print(f"accuracy {accuracy:.1%}   verdict: {watch.verdict.label}\n{watch.verdict.reason}")


if __name__ == "__main__":
    main()
