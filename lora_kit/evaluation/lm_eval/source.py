"""Loading and running of lm-evaluation-harness tasks: by name, by group or by file."""

from __future__ import annotations

import difflib
import functools
import io
import logging
import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from lora_kit.evaluation.task_spec import TaskSpec
from lora_kit.runtime.errors import EvaluationError

INSTALL = "pip install 'lora-kit[lm-eval]'"
CHATTY = ("lm_eval", "datasets", "huggingface_hub")


def require_lm_eval(place: str) -> None:
    """Require that lm-eval can be imported.

    Raises:
        EvaluationError: if lm-eval cannot be imported; names the command to install it.
    """
    try:
        import lm_eval.tasks  # noqa: F401
    except ImportError as error:
        raise EvaluationError(
            f"{place}: kind lm_eval needs the package lm-eval (got {error}). Fix: {INSTALL}"
        ) from error


def load_tasks(spec: TaskSpec) -> dict[str, Any]:
    """Load lm-eval's task objects by name: one task, or the tasks of a group or a tag.

    Raises:
        EvaluationError: if the name is unknown, or a task cannot be evaluated here.
    """
    path = Path(spec.source).expanduser()
    if path.suffix in (".yaml", ".yml"):
        manager, source = _manager_of_file(spec, path)
    else:
        manager, source = _bundled(), spec.source
        if source not in manager.task_index:
            raise EvaluationError(f"task {spec.name}: {_unknown_source(source, manager)}")
    tasks: dict[str, Any] = manager.load([source])["tasks"]
    for name, task in tasks.items():
        _refuse_unsupported(f"task {spec.name}: {name}", task)
    return tasks


@functools.cache
def _bundled() -> Any:
    """Return the manager of the package's tasks; reading their 15,000 files takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _manager_of_file(spec: TaskSpec, path: Path) -> tuple[Any, str]:
    """Return a manager that knows the file, and the name of the task or group in it."""
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    if not path.is_file():
        raise EvaluationError(
            f"task {spec.name}: source: no such file (got {path}). Fix: correct the path"
        )
    group = load_yaml(path, resolve_func=False).get("group")
    if group is None:
        return TaskManager(include_defaults=False), str(path)
    # The tasks of a group are in the group's directory or in the package. lm-eval 0.4.13 cannot
    # load a group by its path: it takes the list of tasks for the name.
    manager = TaskManager(include_defaults=False, include_path=str(path.parent))
    for name, entry in _bundled().task_index.items():
        manager.task_index.setdefault(name, entry)
    return manager, str(group)


def _unknown_source(name: str, manager: Any) -> str:
    near = difflib.get_close_matches(name, manager.all_tasks, n=4, cutoff=0.7)
    names = f"use one of {', '.join(near)}" if near else "see `lm-eval ls tasks`"
    return (
        f"source: lm-eval has no such task, group or tag (got {name}). Fix: {names}, or give a "
        "task's YAML file"
    )


def _refuse_unsupported(place: str, task: Any) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise EvaluationError(
            f"{place}: runs generated code, which is not supported (got UNSAFE_CODE). Fix: use "
            "another task"
        )
    if getattr(task, "MULTIMODAL", False):
        raise EvaluationError(
            f"{place}: has images or audio, only text is supported (got MULTIMODAL). Fix: use "
            "another task"
        )
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        raise EvaluationError(
            f"{place}: lm-eval sums the likelihoods of complete texts, so items have no scores "
            "(got output type loglikelihood_rolling). Fix: use a task of multiple_choice, "
            "loglikelihood or generate_until; for texts, `kind: loss`"
        )
    custom = getattr(task.config, "process_results", None) is not None
    metrics = getattr(task, "_metric_fn_list", {})
    unknown = [name for name, function in metrics.items() if function is None and not custom]
    if unknown:
        raise EvaluationError(
            f"{place}: needs a metric that is code from a hub, which is not run (got "
            f"{', '.join(unknown)}). Fix: use a task with metrics of lm-eval"
        )


@contextmanager
def explain_errors(place: str) -> Iterator[None]:
    """Convert exceptions of a task to errors with a remedy."""
    try:
        yield
    except EvaluationError:
        raise
    except ModuleNotFoundError as error:
        raise EvaluationError(
            f"{place}: needs a package that is not installed (got {error.name}). Fix: pip install "
            f"{error.name}"
        ) from error
    except OSError as error:
        raise EvaluationError(
            f"{place}: the data set cannot be read (got {error}). Fix: connect to a network for "
            "the first use; later uses read the cache of `datasets`"
        ) from error
    except Exception as error:
        # Tasks are templates and code by hundreds of authors and can raise anything.
        raise EvaluationError(
            f"{place}: lm-eval cannot run the task (got {type(error).__name__}: {error}). Fix: "
            "correct the task, or use another one"
        ) from error


@contextmanager
def lm_eval_environment() -> Iterator[None]:
    """Run lm-eval with its default seeds, without output and without code from a hub."""
    with ExitStack() as stack:
        for part in (_seeded, _no_code_from_a_hub, quiet_lm_eval):
            stack.enter_context(part())
        yield


@contextmanager
def _seeded() -> Iterator[None]:
    """Set lm-eval's default seeds: some tasks shuffle choices with the global generators."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)


@contextmanager
def _no_code_from_a_hub() -> Iterator[None]:
    """Refuse `evaluate.load(NAME)`, with which some tasks run code from a hub."""
    import evaluate

    def refuse(name: str, *_: Any, **__: Any) -> None:
        raise EvaluationError(
            f"{name}: a metric that is code from a hub, which is not run (got a call of "
            "evaluate.load). Fix: use another task"
        )

    original = evaluate.load
    evaluate.load = refuse
    try:
        yield
    finally:
        evaluate.load = original


@contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Suppress logs, progress bars and prints of lm-eval; its errors still go to stderr."""
    errors = logging.StreamHandler(sys.stderr)
    errors.setLevel(logging.ERROR)
    loggers = [logging.getLogger(name) for name in CHATTY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    loggers[0].addHandler(errors)
    # The progress bars cannot be disabled; they write to the current sys.stderr.
    with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
        try:
            yield
        finally:
            loggers[0].removeHandler(errors)
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
