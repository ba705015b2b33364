"""sentence-transformers' trainer on a CPU: a schedule that can follow the clock, checkpoints to go on from, and nothing said or
sent anywhere.
"""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optbench.errors import StepError
from optbench.machine.cpu import usable_threads
from optbench.machine.progress import Progress
from optbench.steps.training.step import TrainingStep

if TYPE_CHECKING:
    import torch
    from datasets import Dataset, DatasetDict
    from sentence_transformers import SentenceTransformer

__all__ = ["Trained", "train"]

CHECKPOINT = "checkpoint-"
WEIGHTS = "trained.safetensors"
LOSSES = "losses.json"
REPORT = "trained.json"
START, DONE = "start", "done"
NEVER = 10**9
STATE = "trainer_state.json"


@dataclass(frozen=True)
class Trained:
    """What training did.

    Attributes:
        steps: done.
        planned_steps: in all epochs.
        stopped: why it ended: `epochs`, `minutes` or `patience`.
        best_step: whose weights were kept; 0 for the source's own.
        seconds: of training, over all runs that it took.
        resumed_from: the step this run went on from; 0 for none.
        losses: (step, mean loss since the one before, loss of the held-out part) at each evaluation, the first before any step.
    """

    steps: int
    planned_steps: int
    stopped: str
    best_step: int
    seconds: float
    resumed_from: int
    losses: tuple[tuple[int, float | None, float], ...]

    def facts(self) -> dict[str, Any]:
        """For a step's report."""
        return {
            "steps": self.steps,
            "planned_steps": self.planned_steps,
            "stopped": self.stopped,
            "best_step": self.best_step,
            "training_seconds": round(self.seconds, 1),
            "resumed_from": self.resumed_from,
            "loss_curve": [[step, train and round(train, 6), round(held_out, 6)] for step, train, held_out in self.losses],
        }


class _Schedule:
    """The learning rate's factor by how much is done, in steps or on the clock.

    Its attributes are saved with the scheduler, so that a run that goes on knows what the one before has spent.
    """

    def __init__(self, warmup: float, seconds: float | None) -> None:
        self.warmup, self.seconds = warmup, seconds
        self.steps = 1
        self.spent_seconds = 0.0

    def share(self, step: int) -> float:
        """How much of the training is done, 0 to 1."""
        by_clock = 0.0 if self.seconds is None else self.spent_seconds / self.seconds
        return min(1.0, max(step / self.steps, by_clock))

    def __call__(self, step: int) -> float:
        done = self.share(step)
        return done / self.warmup if done < self.warmup else (1 - done) / (1 - self.warmup)


def train(
    model: "SentenceTransformer",
    loss: "torch.nn.Module",
    texts: "Dataset | DatasetDict",
    held_out: "Dataset | DatasetDict",
    settings: TrainingStep,
    epochs: int,
    folder: Path,
    progress: Progress,
    *,
    learning_rate: float,
    batch: int,
    bf16: bool,
    **arguments: Any,
) -> Trained:
    """Train in place, and leave the weights of the best evaluation in `model`; its own where none was better.

    Args:
        model: of `build_trainable`.
        loss: one of sentence-transformers' losses, or a module in their form.
        texts: what to train on, in the columns that the loss takes.
        held_out: the same for the part that decides when to stop.
        settings: how long and how hard.
        epochs: passes over the texts, if the clock allows.
        folder: where checkpoints are kept; one of a run that was killed is gone on from.
        progress: is told.
        learning_rate: at its highest.
        batch: rows a step.
        bf16: compute in bf16, keep weights and optimizer in float32.
        arguments: further ones for sentence-transformers' training arguments (mixing, prompts).

    Raises:
        StepError: the loss is not a number.
    """
    import torch
    from safetensors.torch import load_file, save_file
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback, set_seed

    torch.set_num_threads(usable_threads())
    set_seed(settings.seed)
    schedule = _Schedule(settings.warmup, None if settings.minutes is None else 60 * settings.minutes)
    losses: list[tuple[int, float | None, float]] = []
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

    def save_weights(target: Path) -> None:
        """Only what is trained: the frozen tables are most of a model."""
        target.mkdir(parents=True, exist_ok=True)
        save_file({name: parameter.detach().contiguous() for name, parameter in trainable.items()}, target / WEIGHTS)

    def load_weights(checkpoint: Path) -> None:
        with torch.no_grad():
            for name, tensor in load_file(checkpoint / WEIGHTS).items():
                trainable[name].copy_(tensor)

    class Watch(TrainerCallback):  # type: ignore[misc]  # not type-checked here
        """Progress, the clock, and the loss curve."""

        def __init__(self) -> None:
            self.recent: list[float] = []
            self.evaluated = 0.0
            self.since = 0.0

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.since = time.monotonic()
            self.evaluated = schedule.share(state.global_step)

        def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any, **_: Any) -> None:
            # On a resumed epoch transformers 5.5 tells only accelerate's wrapper, and the order would be that of the first epoch.
            train_dataloader.batch_sampler.set_epoch(int(state.epoch))

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            now = time.monotonic()
            schedule.spent_seconds += now - self.since
            self.since = now
            done = schedule.share(state.global_step)
            progress(f"step {state.global_step} of {state.max_steps}, loss {self.recent[-1]:.4f}", done)
            # Evaluations are spread over what will be done: a clock may end it long before the epochs do.
            if done - self.evaluated >= 1 / settings.evaluations or done >= 1:
                self.evaluated = done
                control.should_evaluate = control.should_save = True
            if done >= 1:
                control.should_training_stop = True

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Mapping[str, float], **_: Any) -> None:
            mean = sum(self.recent) / len(self.recent) if self.recent else None
            losses.append((state.global_step, mean, metrics["eval_loss"]))
            self.recent.clear()

    watch = Watch()

    class Trainer(SentenceTransformerTrainer):  # type: ignore[misc]  # not type-checked here
        def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
            """None: what was done stands in the step's report, and a card would count every token of the texts."""

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            schedule.steps = num_training_steps
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, schedule)
            self._created_lr_scheduler = True
            return self.lr_scheduler

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            value = super().training_step(model, inputs, num_items_in_batch)
            if not math.isfinite(value.item()):
                raise StepError(
                    f"the loss became {value.item()} at step {self.state.global_step + 1}; "
                    f"lower learning_rate ({learning_rate:g}), or look for broken texts and weights"
                )
            watch.recent.append(value.item())
            return value

        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            target = Path(output_dir or self.args.output_dir)
            save_weights(target)
            (target / LOSSES).write_text(json.dumps(losses), encoding="utf-8")

        def _load_from_checkpoint(self, checkpoint_path: str, model: Any = None) -> None:
            load_weights(Path(checkpoint_path))

        def _load_best_model(self) -> None:
            self._load_from_checkpoint(self.state.best_model_checkpoint)

    if (folder / DONE / REPORT).is_file():
        load_weights(folder / DONE)
        return Trained(**json.loads((folder / DONE / REPORT).read_text(encoding="utf-8")))
    begin = _last_whole_checkpoint(folder)
    options = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=batch,
        learning_rate=learning_rate,
        weight_decay=settings.weight_decay,
        bf16=bf16,
        use_cpu=True,
        seed=settings.seed,
        data_seed=settings.seed,
        # Of sentence-transformers' samplers the one that draws an epoch's order by its number, so that a resumed one has it too.
        batch_sampler="no_duplicates",
        # Evaluations and checkpoints are called for by Watch; these only allow them.
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=NEVER,
        save_steps=NEVER,
        restore_callback_states_from_checkpoint=True,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **arguments,
    )
    trainer = Trainer(
        model=model,
        args=options,
        train_dataset=texts,
        eval_dataset=held_out,
        loss=loss,
        callbacks=[watch, EarlyStoppingCallback(settings.patience)],
    )
    trainer.remove_callback(PrinterCallback)
    if begin is None:
        trainer.evaluate()
        save_weights(folder / START)
    else:
        losses[:] = json.loads((begin / LOSSES).read_text(encoding="utf-8"))
    trainer.train(resume_from_checkpoint=None if begin is None else str(begin))
    state, best_step = trainer.state, trainer.state.best_global_step or 0
    if state.best_metric is None or not state.best_metric < losses[0][2]:
        load_weights(folder / START)
        best_step = 0
    by_clock = "minutes" if schedule.share(state.global_step) >= 1 else "patience"
    trained = Trained(
        steps=state.global_step,
        planned_steps=state.max_steps,
        stopped="epochs" if state.global_step >= state.max_steps else by_clock,
        best_step=best_step,
        seconds=schedule.spent_seconds,
        resumed_from=0 if begin is None else int(begin.name.removeprefix(CHECKPOINT)),
        losses=tuple(losses),
    )
    save_weights(folder / DONE)
    draft = folder / DONE / f".{REPORT}"
    draft.write_text(json.dumps(asdict(trained)), encoding="utf-8")
    draft.replace(folder / DONE / REPORT)
    return trained


def _last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end: the trainer writes its state file last."""
    found = []
    for path in folder.glob(f"{CHECKPOINT}*"):
        try:
            json.loads((path / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        found.append((int(path.name.removeprefix(CHECKPOINT)), path))
    return max(found)[1] if found else None
