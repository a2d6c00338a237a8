"""A host of Windows in memory: its interfaces, its lock and its processes, for tests on any system."""

import contextlib
from collections.abc import Callable, Iterable, Iterator

from kubeproxy.windows.adapters import Adapter


class FakeAdapters:
    """See `adapters.Adapters`.

    Attributes:
        present: the interfaces.
    """

    def __init__(self, present: Iterable[Adapter] = ()) -> None:
        self.present = list(present)
        self._watchers: list[Callable[[], None]] = []

    def list(self) -> list[Adapter]:
        """See `Adapters`."""
        return list(self.present)

    @contextlib.contextmanager
    def watch(self, changed: Callable[[], None]) -> Iterator[None]:
        """See `Adapters`."""
        self._watchers.append(changed)
        try:
            yield
        finally:
            self._watchers.remove(changed)

    def change(self, present: Iterable[Adapter]) -> None:
        """Replaces the interfaces, and notifies those that watch."""
        self.present = list(present)
        for changed in list(self._watchers):
            changed()


class FakeLock:
    """See `instance.SystemLock`.

    Attributes:
        process: the process that has it; None if there is none.
    """

    def __init__(self) -> None:
        self.process: int | None = None

    def take(self, process: int) -> bool:
        """See `SystemLock`."""
        if self.process is not None:
            return False
        self.process = process
        return True

    def holder(self) -> int | None:
        """See `SystemLock`."""
        return self.process

    def release(self) -> None:
        """See `SystemLock`."""
        self.process = None


class FakeProcesses:
    """See `processes.Processes`.

    Attributes:
        lines: the arguments of each process, by its number.
    """

    def __init__(self) -> None:
        self.lines: dict[int, tuple[str, ...]] = {}

    def arguments(self, process: int) -> tuple[str, ...]:
        """See `Processes`."""
        if process not in self.lines:
            raise ProcessLookupError(f"no process {process}")
        return self.lines[process]
