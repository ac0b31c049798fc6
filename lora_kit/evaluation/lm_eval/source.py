"""Finding and running the tasks of lm-evaluation-harness: by name, by group, by file."""

from __future__ import annotations

import difflib
import functools
import io
import logging
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from lora_kit.evaluation.suite import TaskSpec
from lora_kit.runtime.errors import EvaluationError

INSTALL = "pip install 'lora-kit[lm-eval]'"
CHATTY = ("lm_eval", "datasets", "huggingface_hub")


def require_lm_eval(place: str) -> None:
    """Fail with what to install.

    Raises:
        EvaluationError: if lm-eval cannot be imported.
    """
    try:
        import lm_eval.tasks  # noqa: F401
    except ImportError as error:
        raise EvaluationError(
            f"{place}: kind lm_eval needs the package lm-eval, which cannot be imported "
            f"({error}): {INSTALL}"
        ) from error


def load_tasks(spec: TaskSpec) -> dict[str, Any]:
    """lm-eval's task objects, by name: one, or those of a group or a tag.

    Raises:
        EvaluationError: if there is none of that name, or one cannot be run here.
    """
    path = Path(spec.source).expanduser()
    if path.suffix in (".yaml", ".yml"):
        manager, source = _manager_of_file(spec, path)
    else:
        manager, source = _bundled(), spec.source
        if source not in manager.task_index:
            raise EvaluationError(f"task {spec.name}: source {source}: {_nearest(source, manager)}")
    tasks: dict[str, Any] = manager.load([source])["tasks"]
    for name, task in tasks.items():
        _refuse_what_cannot_run(f"task {spec.name}: {name}", task)
    return tasks


@functools.cache
def _bundled() -> Any:
    """All tasks of the package; reading their 15,000 files takes some seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def task_names() -> Sequence[str]:
    """Tasks, groups and tags of the installed lm-eval."""
    names: Sequence[str] = _bundled().all_tasks
    return names


def _manager_of_file(spec: TaskSpec, path: Path) -> tuple[Any, str]:
    """A manager that knows the file, and what it calls it."""
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    if not path.is_file():
        raise EvaluationError(f"task {spec.name}: source {path}: no such file")
    group = load_yaml(path, resolve_func=False).get("group")
    if group is None:
        return TaskManager(include_defaults=False), str(path)
    # A group names its tasks, which lie beside it or in the package. lm-eval 0.4.13 cannot load it
    # by its path: it takes the list of its tasks for its name.
    manager = TaskManager(include_defaults=False, include_path=str(path.parent))
    for name, entry in _bundled().task_index.items():
        manager.task_index.setdefault(name, entry)
    return manager, str(group)


def _nearest(name: str, manager: Any) -> str:
    near = difflib.get_close_matches(name, manager.all_tasks, n=4, cutoff=0.7)
    hint = f"did you mean {', '.join(near)}?" if near else "`lm-eval ls tasks` lists them"
    return f"lm-eval has no task, group or tag of this name; {hint} A task of yours is a YAML file"


def _refuse_what_cannot_run(place: str, task: Any) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise EvaluationError(f"{place}: runs code that the model wrote, which is not done here")
    if getattr(task, "MULTIMODAL", False):
        raise EvaluationError(f"{place}: has images or audio; only text is evaluated here")
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        raise EvaluationError(
            f"{place}: takes the likelihood of whole texts, which lm-eval adds up over all of "
            "them, so that an item has no score of its own. What works is multiple_choice, "
            "loglikelihood and generate_until; for texts, write a task of `kind: loss`"
        )
    custom = getattr(task.config, "process_results", None) is not None
    metrics = getattr(task, "_metric_fn_list", {})
    unknown = [name for name, function in metrics.items() if function is None and not custom]
    if unknown:
        raise EvaluationError(
            f"{place}: metric {', '.join(unknown)} is not lm-eval's own but code from a hub, which "
            "is not run here"
        )


@contextmanager
def explained(place: str) -> Iterator[None]:
    """What goes wrong in a task, as an error that says what to do about it."""
    try:
        yield
    except EvaluationError:
        raise
    except ModuleNotFoundError as error:
        raise EvaluationError(
            f"{place}: needs the package {error.name}: pip install {error.name}"
        ) from error
    except OSError as error:
        raise EvaluationError(
            f"{place}: its data set cannot be read here: {error}. lm-eval fetches a data set when "
            "it is first used, which takes a network; afterwards it lies in the cache of `datasets`"
        ) from error
    except Exception as error:
        # Tasks are templates and code of hundreds of authors: anything may come out of them.
        raise EvaluationError(
            f"{place}: lm-eval cannot run it: {type(error).__name__}: {error}"
        ) from error


@contextmanager
def as_lm_eval_runs() -> Iterator[None]:
    """Its seeds, without its chatter, and without code from a hub."""
    with ExitStack() as stack:
        for part in (_seeded, _no_code_from_a_hub, quiet):
            stack.enter_context(part())
        yield


@contextmanager
def _seeded() -> Iterator[None]:
    """lm-eval's default seeds: some tasks shuffle their choices with the global generators."""
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
    """Some tasks call `evaluate.load(NAME)`, which fetches a module from a hub and runs it."""
    import evaluate

    def refuse(name: str, *_: Any, **__: Any) -> None:
        raise EvaluationError(f"it wants the metric {name}, which is code from a hub; not run here")

    original = evaluate.load
    evaluate.load = refuse
    try:
        yield
    finally:
        evaluate.load = original


@contextmanager
def quiet() -> Iterator[None]:
    """Neither logs, progress bars nor prints of lm-eval; its errors still reach stderr."""
    errors = logging.StreamHandler(sys.stderr)
    errors.setLevel(logging.ERROR)
    loggers = [logging.getLogger(name) for name in CHATTY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    loggers[0].addHandler(errors)
    # Its progress bars have no switch; they write to what stderr is at the time.
    with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
        try:
            yield
        finally:
            loggers[0].removeHandler(errors)
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
