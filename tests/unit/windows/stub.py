"""Functions that read and write memory as those of Windows do, made of Python functions with the C types of the prototypes."""

import ctypes
from collections.abc import Callable
from typing import Any

from kubeproxy.windows.dll import SystemLibrary


class StubLibrary:
    """A library of such functions, and the error of the last one that failed."""

    def __init__(self) -> None:
        self.error = 0
        self._kept: list[Any] = []

    def add(self, result: Any, *arguments: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Adds the decorated function under its name."""

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            setattr(self, function.__name__, ctypes.CFUNCTYPE(result, *arguments)(function))
            return function

        return decorate

    def keep(self, value: Any) -> Any:
        """Memory that outlives the call that made it."""
        self._kept.append(value)
        return value

    def fail(self, code: int, result: int = 0) -> int:
        self.error = code
        return result

    @property
    def library(self) -> SystemLibrary:
        return SystemLibrary(self, lambda: self.error)
