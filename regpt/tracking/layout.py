"""File and directory names in a run directory. Every other module takes them from here.

RUN/recipe.toml                         settings, completely
    environment.json                    software, device, data and number of ranks
    journal.jsonl                       a record per line
    lock                                held by the process that writes the run
    checkpoints/step_NNNNNN/            weights and optimizer state after N steps
    evaluations/step_NNNNNN/            results.json, predictions per task, losses per window
    evidence/step_NNNNNN/               a rejected step: its batch and gradient norms
    img/  report.md  report.html        written by `regpt report`
"""

from dataclasses import dataclass
from pathlib import Path

RECIPE_FILE = "recipe.toml"
ABLATION_FILE = "ablation.json"  # above the folder of its runs
ENVIRONMENT_FILE = "environment.json"
JOURNAL_FILE = "journal.jsonl"
LOCK_FILE = "lock"
CHECKPOINTS_DIR = "checkpoints"
EVALUATIONS_DIR = "evaluations"
EVIDENCE_DIR = "evidence"
IMAGES_DIR = "img"
REPORT_FILE = "report.md"
HTML_REPORT_FILE = "report.html"

RESULTS_FILE = "results.json"  # in a directory of evaluations
VALIDATION = "validation"  # the evaluation that is not a multiple-choice task
STEP_PREFIX = "step_"


@dataclass(frozen=True)
class RunPaths:
    """Paths in the run directory `root`; nothing is opened or created. Steps are completed optimizer steps."""

    root: Path

    @property
    def recipe(self) -> Path:
        return self.root / RECIPE_FILE

    @property
    def environment(self) -> Path:
        return self.root / ENVIRONMENT_FILE

    @property
    def journal(self) -> Path:
        return self.root / JOURNAL_FILE

    @property
    def lock(self) -> Path:
        return self.root / LOCK_FILE

    @property
    def checkpoints(self) -> Path:
        return self.root / CHECKPOINTS_DIR

    @property
    def evaluations(self) -> Path:
        return self.root / EVALUATIONS_DIR

    @property
    def images(self) -> Path:
        return self.root / IMAGES_DIR

    @property
    def report(self) -> Path:
        return self.root / REPORT_FILE

    @property
    def html_report(self) -> Path:
        return self.root / HTML_REPORT_FILE

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / step_name(step)

    def evaluation(self, step: int, averaged: bool = False) -> Path:
        """Return the directory of evaluations after a step: of the last weights, or of the averaged ones."""
        return self.evaluations / f"{step_name(step)}{'-averaged' if averaged else ''}"

    def evidence(self, step: int) -> Path:
        return self.root / EVIDENCE_DIR / step_name(step)


def step_name(step: int) -> str:
    """Return the name of a step's directory, such as 'step_000250'."""
    return f"{STEP_PREFIX}{step:06d}"


def parse_step(name: str) -> int | None:
    """Return the step that a directory's name gives, or None if it is not the name of a step's directory."""
    digits = name.removeprefix(STEP_PREFIX)
    return int(digits) if name.startswith(STEP_PREFIX) and digits.isdecimal() else None


def step_directories(parent: Path) -> list[tuple[int, Path]]:
    """List (step, path) of the steps' directories in `parent`, in order of steps."""
    found = ((parse_step(path.name), path) for path in parent.glob(f"{STEP_PREFIX}*"))
    return sorted((step, path) for step, path in found if step is not None)
