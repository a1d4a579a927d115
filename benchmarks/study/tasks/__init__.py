"""What the study trains on, by name."""

from __future__ import annotations

from benchmarks.study.tasks.digits import Digits
from benchmarks.study.tasks.task import Task
from benchmarks.study.tasks.teacher import Teacher
from benchmarks.study.tasks.text import Text

TASKS: dict[str, Task] = {
    "digits-vit": Digits("vit"),
    "digits-mixer": Digits("mixer"),
    "text": Text(),
    "teacher": Teacher(layers=1),
    "teacher-mlp": Teacher(layers=2),
}
