"""How what takes long shows its progress: a run by a bar or a line now and then, a measurement by its stage."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from flatlab.federated.rounds import Run
from flatlab.runs.lines import Lines
from flatlab.runs.metrics import Record
from flatlab.tell import Tell
from flatlab.terminal.console import say, status
from flatlab.trackers.follower import tracked


class _Latest(ProgressColumn):
    """One number of the newest record that has it; nothing before there is one."""

    def __init__(self, form: str, key: str) -> None:
        super().__init__()
        self.form, self.key = form, key

    def render(self, task: Task) -> Text:
        """Format the number."""
        value = task.fields.get(self.key)
        return Text("" if value is None else self.form.format(value), no_wrap=True)


@contextmanager
def bar(run: Run, trackers: Sequence[str] = ()) -> Iterator[Callable[[Record], None]]:
    """Yield what shows the rounds of `run`: a bar on a terminal, and elsewhere a line now and then.

    run.log gets these lines in any case, and so do the `trackers` (`read_trackers`) the numbers.
    """
    config = run.world.config
    columns = (
        TextColumn("round {task.completed}/{task.total}"),
        BarColumn(bar_width=10),
        _Latest("loss {:.3f}", "train_loss"),
        _Latest("acc {:.1%}", "test_accuracy"),
        _Latest("|a|² {:.4g}", "activation_norm"),
        _Latest("{:,.0f} img/s", "images_per_second"),
        TimeRemainingColumn(compact=True),
    )
    latest: Record = dict(run.server.evaluated)
    with ExitStack() as stack:
        observers: list[Callable[[Record], None]] = [latest.update]
        tell: Tell = run.files.log
        if status.is_terminal:
            progress = stack.enter_context(Progress(*columns, console=status))
            task = progress.add_task("", total=config.rounds, completed=run.server.round, **latest)
            observers.append(lambda record: progress.update(task, advance=1, **latest))
        else:
            tell = _both(tell, say)
        observers.append(stack.enter_context(tracked(run, trackers, say)))
        observers.append(Lines(run.server.round, config.rounds, tell))

        def on_round(record: Record) -> None:
            for observe in observers:
                observe(record)

        yield on_round


def _both(one: Tell, other: Tell) -> Tell:
    def tell(line: str) -> None:
        one(line)
        other(line)

    return tell


@contextmanager
def progress_line(name: str) -> Iterator[Tell]:
    """Within the block, a line on standard error that says what goes on, and for how long; only on a terminal."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TextColumn("{task.fields[stage]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=status, transient=True, disable=not status.is_terminal) as progress:
        task = progress.add_task(name, total=None, stage="")

        def tell(stage: str) -> None:
            progress.update(task, stage=stage)

        yield tell
