"""Slurm on one machine, for tests: called as sbatch, srun or scontrol, as far as a job array of one node needs them.

`sbatch` runs the array's tasks as processes until all are over. It does to them what FAULTS, in the environment, says:
{task: [signal, pattern]} sends TERM to the task's step (the end of its time), or KILL to all of it (its node is gone,
so Slurm queues it again), once a file matches the pattern. A task that asked for it by `scontrol requeue` starts again.
What became of every start is in history.json.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path

JOB = "7"


@dataclass
class Task:
    """One task of the array, as it runs now."""

    number: str
    words: list[str]
    ended: list[int] = field(default_factory=list)  # exit codes of earlier starts

    def start(self) -> None:
        """Start the batch script."""
        own = {"SLURM_ARRAY_JOB_ID": JOB, "SLURM_ARRAY_TASK_ID": self.number}
        with Path(f"task-{self.number}.log").open("ab") as log:
            self.process = subprocess.Popen(
                ["bash", *self.words], env=os.environ | own, stdout=log, stderr=log, start_new_session=True
            )

    def suffer(self, kind: str) -> None:
        """Send the signal to the step, and with KILL to the batch script too."""
        step = int(Path(f"step-{self.number}").read_text())
        os.killpg(step, signal.Signals[f"SIG{kind}"])
        if kind == "KILL":
            os.killpg(self.process.pid, signal.SIGKILL)


def sbatch(words: list[str]) -> None:
    """Run the array and return when it is over."""
    options = [word for word in words if word.startswith("--")]
    script, *arguments = (word for word in words if not word.startswith("--"))
    asked = re.findall(r"^#SBATCH (--\S+)", Path(script).read_text(), re.MULTILINE) + options
    first, last = next(re.findall(r"\d+", word) for word in reversed(asked) if word.startswith("--array="))
    assert "--requeue" in asked
    assert any(word.startswith("--signal=TERM@") for word in asked)
    tasks = [Task(str(number), [script, *arguments]) for number in range(int(first), int(last) + 1)]
    faults = json.loads(os.environ.get("FAULTS", "{}"))
    for task in tasks:
        task.start()
    running = list(tasks)
    while running:
        time.sleep(0.02)
        for task in list(running):
            kind, pattern = faults.get(task.number, ("", ""))
            if pattern and glob(pattern):
                del faults[task.number]
                task.suffer(kind)
            if task.process.poll() is None:
                continue
            task.ended.append(task.process.returncode)
            asked_again = Path(f"requeue-{JOB}_{task.number}")
            if asked_again.exists() or task.process.returncode == -signal.SIGKILL:
                asked_again.unlink(missing_ok=True)
                task.start()
            else:
                running.remove(task)
    Path("history.json").write_text(json.dumps({task.number: task.ended for task in tasks}))


def srun(words: list[str]) -> None:
    """Be the step, in a process group of its own."""
    os.setpgrp()
    Path(f"step-{os.environ['SLURM_ARRAY_TASK_ID']}").write_text(str(os.getpid()))
    os.execvp(words[0], words)


def scontrol(words: list[str]) -> None:
    """Ask that a task starts again."""
    assert words[0] == "requeue"
    Path(f"requeue-{words[1]}").touch()


if __name__ == "__main__":
    {"sbatch": sbatch, "srun": srun, "scontrol": scontrol}[Path(sys.argv[0]).name](sys.argv[1:])
