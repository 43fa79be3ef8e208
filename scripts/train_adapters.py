"""Train the adapters that ship in adapters/, from the examples in adapters/data/, in minutes.

    .venv/bin/python scripts/train_adapters.py [NAME ...] [--out adapters]

Each is trained on SmolLM2-135M-Instruct, on the CPU, to continue an example's prompt with its
completion and then to end. The examples hold the exact texts: what is trained is what is served.
The seed is fixed, so one machine makes the same files again.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import peft
import torch
import transformers
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import save_file

from app.engine.model.find import find_model
from app.settings import Settings
from softserve.schema.adapters import CONFIG_FILE, WEIGHTS_FILE

ADAPTERS = Path(__file__).resolve().parent.parent / "adapters"
BASE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
SEED = 0
IGNORED = -100  # the label of a token that the loss leaves out
WARM_UP_SHARE = 0.1

TokenIds = list[int]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an adapter is made: the examples' name in adapters/data/, and how it learns from them."""

    data: str
    config: peft.PeftConfig
    learning_rate: float
    num_epochs: int
    batch_size: int = 8


@dataclass(frozen=True, slots=True)
class Example:
    """A tokenized prompt with its completion, whose last token ends it."""

    prompt: TokenIds
    completion: TokenIds

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


def lora(*target_modules: str, rank: int = 8, alpha: int = 16, dropout: float = 0.05) -> Any:
    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(target_modules),
    )


def soft_prompt(text: str, num_virtual_tokens: int) -> Any:
    """Virtual tokens that start out as the tokens of `text`, repeated or cut to their number."""
    return peft.PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=num_virtual_tokens,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text=text,
        tokenizer_name_or_path=BASE_MODEL,
    )


RECIPES = {
    "support-intent-lora": Recipe(
        data="support-intent",
        config=lora("q_proj", "v_proj"),
        learning_rate=2e-3,
        num_epochs=6,
    ),
    "support-intent-prompt": Recipe(
        data="support-intent",
        config=soft_prompt(
            "Name the message's intent in one word: "
            "billing, delivery, technical, account or praise.\n",
            num_virtual_tokens=20,
        ),
        learning_rate=1e-2,
        num_epochs=8,
    ),
    "dialogue-summary-lora": Recipe(
        data="dialogue-summary",
        config=lora("q_proj", "k_proj", "v_proj", "o_proj"),
        learning_rate=2e-3,
        num_epochs=6,
    ),
}

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@cli.command()
def main(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help=f"Of {', '.join(RECIPES)}.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder to put their folders into.")] = ADAPTERS,
) -> None:
    """Train the adapters that ship with softserve, or only those that are named."""
    if unknown := set(names or ()) - RECIPES.keys():
        raise typer.BadParameter(f"no {sorted(unknown)}: there are {', '.join(RECIPES)}")
    _, model_folder = find_model(Settings(model=None))
    transformers.utils.logging.disable_progress_bar()
    console = Console(stderr=True)
    for name in names or RECIPES:
        with progress_bar(console) as progress:
            model = train(RECIPES[name], model_folder, progress, name)
        folder = save(model, out, name)
        size = (folder / WEIGHTS_FILE).stat().st_size
        console.print(f"{folder}: {size / 1e6:.2f} MB", highlight=False)


def train(recipe: Recipe, model_folder: Path, progress: Progress, name: str) -> Any:
    transformers.set_seed(SEED)
    torch.use_deterministic_algorithms(True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
    examples = tokenized(read_examples(recipe.data), tokenizer)
    model = with_adapter(recipe, model_folder)
    batches = list(shuffled_batches(examples, recipe))
    optimizer = torch.optim.AdamW(
        [weight for weight in model.parameters() if weight.requires_grad],
        lr=recipe.learning_rate,
        weight_decay=0.0,
    )
    schedule = transformers.get_cosine_schedule_with_warmup(
        optimizer, int(WARM_UP_SHARE * len(batches)), len(batches)
    )
    model.train()
    task = progress.add_task(name, total=len(batches), loss=float("nan"))
    mean_loss = None
    for batch in batches:
        loss = loss_on_completions(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        mean_loss = loss.item() if mean_loss is None else 0.9 * mean_loss + 0.1 * loss.item()
        progress.update(task, advance=1, loss=mean_loss)
    return model


def read_examples(data: str) -> list[dict[str, str]]:
    lines = (ADAPTERS / "data" / f"{data}.training.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def tokenized(examples: list[dict[str, str]], tokenizer: Any) -> list[Example]:
    """Prompt and completion apart, as the server tokenizes a prompt without its completion."""
    return [
        Example(
            prompt=tokenizer(example["prompt"])["input_ids"],
            completion=[
                *tokenizer(example["completion"], add_special_tokens=False)["input_ids"],
                tokenizer.eos_token_id,
            ],
        )
        for example in examples
    ]


def with_adapter(recipe: Recipe, model_folder: Path) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    if isinstance(recipe.config, peft.PromptTuningConfig):
        recipe.config.tokenizer_name_or_path = str(model_folder)
    return peft.get_peft_model(model, recipe.config)


def shuffled_batches(examples: list[Example], recipe: Recipe) -> Iterator[list[Example]]:
    """Every example once in an epoch, beside others of about its length: little padding."""
    chance = random.Random(SEED)  # noqa: S311
    for _ in range(recipe.num_epochs):
        order = sorted(examples, key=lambda example: len(example) + chance.uniform(0, 8))
        batches = [
            order[start : start + recipe.batch_size]
            for start in range(0, len(order), recipe.batch_size)
        ]
        chance.shuffle(batches)
        yield from batches


def loss_on_completions(model: Any, batch: list[Example]) -> Any:
    """The mean cross-entropy over the completions' tokens; examples are padded at the end."""
    width = max(map(len, batch))
    tokens = [padded(example.prompt + example.completion, width, 0) for example in batch]
    masks = [padded([1] * len(example), width, 0) for example in batch]
    labels = [
        padded([IGNORED] * len(example.prompt) + example.completion, width, IGNORED)
        for example in batch
    ]
    # The prompts' logits over 49,152 tokens would be a third of the work.
    num_predicted = width - min(len(example.prompt) for example in batch)
    logits = model(
        input_ids=torch.tensor(tokens),
        attention_mask=torch.tensor(masks),
        logits_to_keep=num_predicted + 1,
    ).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1),
        torch.tensor(labels)[:, -num_predicted:].flatten(),
        ignore_index=IGNORED,
    )


def padded(values: TokenIds, width: int, filler: int) -> TokenIds:
    return values + [filler] * (width - len(values))


def save(model: Any, out: Path, name: str) -> Path:
    """Write the adapter as a PEFT folder that a watching server never sees half-made."""
    out.mkdir(parents=True, exist_ok=True)
    folder = out / name
    # One level deeper than a server looks, and on the same disk, so that it can be renamed.
    with TemporaryDirectory(dir=out, prefix=".partial-") as partial:
        new = Path(partial) / "new"
        new.mkdir()
        weights = peft.get_peft_model_state_dict(model)
        save_file(
            {key: value.to(torch.float16).contiguous() for key, value in weights.items()},
            new / WEIGHTS_FILE,
            metadata={"format": "pt"},
        )
        # It is written for its owner alone; a server may run as another user.
        (new / WEIGHTS_FILE).chmod(0o644)
        (new / CONFIG_FILE).write_text(portable_config(model))
        if folder.exists():
            folder.rename(Path(partial) / "old")
        new.rename(folder)
    return folder


def portable_config(model: Any) -> str:
    """adapter_config.json that names the base model, not a folder of this machine."""
    config = model.peft_config["default"].to_dict()
    config["inference_mode"] = True
    config["base_model_name_or_path"] = BASE_MODEL
    if "tokenizer_name_or_path" in config:
        config["tokenizer_name_or_path"] = BASE_MODEL
    # PEFT keeps modules in sets, whose order changes from run to run.
    return json.dumps(config, default=sorted, indent=2, sort_keys=True) + "\n"


def progress_bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<24}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


if __name__ == "__main__":
    cli()
