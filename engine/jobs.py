"""The queue of prompts, the one thread that runs them in order, and the history of what became of them."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .execution import Executor, Record
from .graph import Prompt
from .host import Listener

log = logging.getLogger(__name__)

HISTORY = 1000
"""Prompts remembered; the oldest are forgotten."""


@dataclass
class Job:
    """One accepted prompt."""

    number: float
    prompt_id: str
    prompt: Prompt
    outputs: list[str]
    extra: dict[str, Any]
    listener: Listener
    client_id: str | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    def as_json(self) -> list[Any]:
        """As ``/queue`` and ``/history`` show it."""
        return [self.number, self.prompt_id, self.prompt, self.extra, self.outputs]


class Jobs:
    """Runs what is submitted, lowest number first, and tells ``changed`` whenever the queue's length changes."""

    def __init__(self, executor: Executor, changed: Callable[[], None]) -> None:
        self.executor, self.changed = executor, changed
        self.history: dict[str, dict[str, Any]] = {}
        self.running: Job | None = None
        self._waiting: list[tuple[float, int, Job]] = []
        self._serial = itertools.count()
        self._tasks: list[Callable[[], None]] = []
        self._closed = False
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="likeness-worker", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        with self._news:
            heapq.heappush(self._waiting, (job.number, next(self._serial), job))
            self._news.notify()
        self.changed()

    def pending(self) -> list[Job]:
        with self._news:
            return [job for *_, job in sorted(self._waiting, key=lambda entry: entry[:2])]

    def remaining(self) -> int:
        with self._news:
            return len(self._waiting) + (self.running is not None)

    def delete(self, prompt_ids: set[str] | None) -> None:
        """Take waiting prompts out of the queue; None takes all."""
        with self._news:
            self._waiting = [e for e in self._waiting if prompt_ids is not None and e[2].prompt_id not in prompt_ids]
            heapq.heapify(self._waiting)
        self.changed()

    def interrupt(self, prompt_id: str | None = None) -> bool:
        """Stop the running prompt; with an id, only if it is that one."""
        with self._news:
            job = self.running
            if job is None or (prompt_id is not None and job.prompt_id != prompt_id):
                return False
            job.stop.set()
            return True

    def between_prompts(self, task: Callable[[], None]) -> None:
        """Have ``task`` done by the worker as soon as no prompt is running."""
        with self._news:
            self._tasks.append(task)
            self._news.notify()

    def close(self) -> None:
        """Stop what is running and end the thread."""
        with self._news:
            self._closed = True
            self._waiting.clear()
            if self.running is not None:
                self.running.stop.set()
            self._news.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._closed or self._tasks or self._waiting)
                if self._closed:
                    return
                tasks, self._tasks = self._tasks, []
                if not tasks:
                    self.running = heapq.heappop(self._waiting)[2]
            for task in tasks:
                task()
            if self.running is not None:
                self._run(self.running)

    def _run(self, job: Job) -> None:
        self.changed()
        record = self.executor.run(
            job.prompt, job.outputs, prompt_id=job.prompt_id, extra=job.extra, listener=job.listener, stop=job.stop
        )
        with self._news:
            self.history[job.prompt_id] = _history(job, record)
            while len(self.history) > HISTORY:
                del self.history[next(iter(self.history))]
            self.running = None
        self.changed()
        job.listener.event("executing", {"node": None, "prompt_id": job.prompt_id})


def _history(job: Job, record: Record) -> dict[str, Any]:
    status = {
        "status_str": record.status,
        "completed": record.status == "success",
        "messages": [list(message) for message in record.messages],
    }
    return {"prompt": job.as_json(), "outputs": record.outputs, "status": status, "meta": record.meta()}
