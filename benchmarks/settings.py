"""What a run of the benchmarks is asked to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.structures import PERMUTED


@dataclass(frozen=True)
class Settings:
    """`quick` measures less of everything; `only` keeps the structures of these names."""

    quick: bool = False
    rounds: int = 20
    only: tuple[str, ...] = ()

    @property
    def layers(self) -> int:
        """Of the transformers."""
        return 1 if self.quick else 12

    def permutations(self, structure: str) -> tuple[str, ...]:
        """What a structure is measured behind in whole models."""
        both = structure in PERMUTED and not self.quick
        return ("identity", "random") if both else ("identity",)

    def choose(self, full: Iterable[str], quick: Iterable[str]) -> list[str]:
        """The structures to measure: those asked for, else these."""
        return list(self.only or (quick if self.quick else full))
