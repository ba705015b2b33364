"""sentence-transformers' trainer on a CPU: a schedule that can follow the clock, checkpoints to resume from, no output and no network."""

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

__all__ = ["Trained", "Training", "train"]

CHECKPOINT = "checkpoint-"
WEIGHTS = "trained.safetensors"
LOSSES = "losses.json"
REPORT = "trained.json"
START, DONE = "start", "done"
NEVER = 10**9
STATE = "trainer_state.json"


@dataclass(frozen=True)
class Training:
    """One training: its data, and how hard it learns.

    Attributes:
        texts: what to train on, in the columns that the loss takes.
        held_out: the same for the part that decides when to stop.
        learning_rate: the peak.
        bf16: compute in bf16; weights and optimizer stay in float32.
        arguments: further ones for sentence-transformers' training arguments (mixing, prompts).
    """

    texts: "Dataset | DatasetDict"
    held_out: "Dataset | DatasetDict"
    epochs: int
    learning_rate: float
    batch: int
    bf16: bool
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Trained:
    """What training did, over all runs that it took.

    Attributes:
        stopped: why it ended: `epochs`, `minutes` or `patience`.
        best_step: the step whose weights were kept; 0 for the source's own.
        resumed_from: the step that this run resumed from; 0 for none.
        losses: (step, mean training loss since the last evaluation, held-out loss) at each evaluation, the first before any step.
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
    """The factor on the learning rate, by how much is done in steps or on the clock.

    Its attributes are saved with the scheduler, so that a resumed run knows how much time has been used.
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


class _Weights:
    """A model's trained parameters, saved without its frozen tables, which are most of it."""

    def __init__(self, model: "SentenceTransformer") -> None:
        self._parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: parameter.detach().contiguous() for name, parameter in self._parameters.items()}, folder / WEIGHTS)

    def load(self, folder: Path) -> None:
        import torch
        from safetensors.torch import load_file

        with torch.no_grad():
            for name, tensor in load_file(folder / WEIGHTS).items():
                self._parameters[name].copy_(tensor)


class _Watch:
    """Progress, the clock and the loss curve: the events of transformers' `TrainerCallback`."""

    def __init__(self, settings: TrainingStep, progress: Progress) -> None:
        self.schedule = _Schedule(settings.warmup, None if settings.minutes is None else 60 * settings.minutes)
        self.losses: list[tuple[int, float | None, float]] = []
        self.recent: list[float] = []
        self.evaluations, self.patience, self.progress = settings.evaluations, settings.patience, progress
        self.evaluated = 0.0
        self.since = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.since = time.monotonic()
        self.evaluated = self.schedule.share(state.global_step)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any, **_: Any) -> None:
        # When it resumes, transformers 5.5 sets the epoch on accelerate's wrapper only, and the order would be the first epoch's.
        train_dataloader.batch_sampler.set_epoch(int(state.epoch))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = time.monotonic()
        self.schedule.spent_seconds += now - self.since
        self.since = now
        done = self.schedule.share(state.global_step)
        self.progress(f"step {state.global_step} of {state.max_steps}, loss {self.recent[-1]:.4f}", done)
        # Evaluations are spread over what will be done: the clock may end the training long before the epochs do.
        if done - self.evaluated >= 1 / self.evaluations or done >= 1:
            self.evaluated = done
            control.should_evaluate = control.should_save = True
        if done >= 1:
            control.should_training_stop = True

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Mapping[str, float], **_: Any) -> None:
        mean = sum(self.recent) / len(self.recent) if self.recent else None
        self.losses.append((state.global_step, mean, metrics["eval_loss"]))
        self.recent.clear()


def train(
    model: "SentenceTransformer", loss: "torch.nn.Module", training: Training, settings: TrainingStep, folder: Path, progress: Progress
) -> Trained:
    """Train in place, and leave the weights of the best evaluation in `model`, or its own where none was better.

    `folder` keeps the checkpoints: a killed run resumes from the last one there. A loss that is not a number is a StepError.
    """
    import torch
    from transformers import set_seed

    torch.set_num_threads(usable_threads())
    set_seed(settings.seed)
    weights, finished = _Weights(model), folder / DONE
    if (finished / REPORT).is_file():
        weights.load(finished)
        return Trained(**json.loads((finished / REPORT).read_text(encoding="utf-8")))
    checkpoint = _last_whole_checkpoint(folder)
    watch = _Watch(settings, progress)
    trainer = _build_trainer(model, loss, training, _arguments(training, settings, folder), watch, weights)
    if checkpoint is None:
        trainer.evaluate()
        weights.save(folder / START)
    else:
        watch.losses[:] = json.loads((checkpoint / LOSSES).read_text(encoding="utf-8"))
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    state, best_step = trainer.state, trainer.state.best_global_step or 0
    if state.best_metric is None or not state.best_metric < watch.losses[0][2]:
        weights.load(folder / START)
        best_step = 0
    by_clock = "minutes" if watch.schedule.share(state.global_step) >= 1 else "patience"
    trained = Trained(
        steps=state.global_step,
        planned_steps=state.max_steps,
        stopped="epochs" if state.global_step >= state.max_steps else by_clock,
        best_step=best_step,
        seconds=watch.schedule.spent_seconds,
        resumed_from=0 if checkpoint is None else int(checkpoint.name.removeprefix(CHECKPOINT)),
        losses=tuple(watch.losses),
    )
    weights.save(finished)
    draft = finished / f".{REPORT}"
    draft.write_text(json.dumps(asdict(trained)), encoding="utf-8")
    draft.replace(finished / REPORT)
    return trained


def _arguments(training: Training, settings: TrainingStep, folder: Path) -> Any:
    from sentence_transformers import SentenceTransformerTrainingArguments

    return SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=training.epochs,
        per_device_train_batch_size=training.batch,
        per_device_eval_batch_size=training.batch,
        learning_rate=training.learning_rate,
        weight_decay=settings.weight_decay,
        bf16=training.bf16,
        use_cpu=True,
        seed=settings.seed,
        data_seed=settings.seed,
        # The only one of sentence-transformers' samplers whose order depends on the epoch's number, so that a resumed epoch repeats it.
        batch_sampler="no_duplicates",
        # _Watch requests evaluations and checkpoints; these settings only allow them.
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
        **training.arguments,
    )


def _build_trainer(
    model: "SentenceTransformer", loss: "torch.nn.Module", training: Training, arguments: Any, watch: _Watch, weights: _Weights
) -> Any:
    import torch
    from sentence_transformers import SentenceTransformerTrainer
    from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback

    class Trainer(SentenceTransformerTrainer):  # type: ignore[misc]  # not type-checked here
        def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
            """Nothing: the step's report says what was done, and a card would count every token of the texts."""

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            watch.schedule.steps = num_training_steps
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, watch.schedule)
            self._created_lr_scheduler = True
            return self.lr_scheduler

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            value = super().training_step(model, inputs, num_items_in_batch)
            if not math.isfinite(value.item()):
                raise StepError(
                    f"the loss became {value.item()} at step {self.state.global_step + 1}; "
                    f"lower learning_rate ({training.learning_rate:g}), or look for broken texts and weights"
                )
            watch.recent.append(value.item())
            return value

        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            target = Path(output_dir or self.args.output_dir)
            weights.save(target)
            (target / LOSSES).write_text(json.dumps(watch.losses), encoding="utf-8")

        def _load_from_checkpoint(self, checkpoint_path: str, model: Any = None) -> None:
            weights.load(Path(checkpoint_path))

        def _load_best_model(self) -> None:
            self._load_from_checkpoint(self.state.best_model_checkpoint)

    class Callback(TrainerCallback):  # type: ignore[misc]  # not type-checked here
        on_train_begin = watch.on_train_begin
        on_epoch_begin = watch.on_epoch_begin
        on_step_end = watch.on_step_end
        on_evaluate = watch.on_evaluate

    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=training.texts,
        eval_dataset=training.held_out,
        loss=loss,
        callbacks=[Callback(), EarlyStoppingCallback(watch.patience)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint: the trainer writes its state file last."""
    found = []
    for path in folder.glob(f"{CHECKPOINT}*"):
        try:
            json.loads((path / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        found.append((int(path.name.removeprefix(CHECKPOINT)), path))
    return max(found)[1] if found else None
