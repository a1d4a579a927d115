"""What the study trains on, by name."""

from __future__ import annotations

from benchmarks.study.tasks.digits import Digits
from benchmarks.study.tasks.task import Task
from benchmarks.study.tasks.teacher import Teacher
from benchmarks.study.tasks.text import Text
from padst_fx import Block, Diag

TASKS: dict[str, Task] = {
    "digits-vit": Digits("vit"),
    "digits-mixer": Digits("mixer"),
    "text": Text(depth=2, heads=4, length=64),
    "text-gpt2": Text(depth=12, heads=12, length=512),  # with size 768 GPT-2 small's shape
    "teacher": Teacher(Diag(), layers=1),
    "teacher-block": Teacher(Block(4), layers=1),
    "teacher-mlp": Teacher(Diag(), layers=2),
}
