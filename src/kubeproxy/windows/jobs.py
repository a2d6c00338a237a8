"""A job: a program and all that it starts, which can be ended together.

A process belongs to the job from when it is put there, with the children that it starts later. A process in a
container is in a job already; Windows 8 and later allow jobs within jobs.

Source: CreateJobObject, AssignProcessToJobObject, TerminateJobObject.
"""

from ctypes import c_int32, c_uint32, c_void_p
from typing import Final

from kubeproxy.windows.dll import SystemLibrary, load

_MAY_END: Final = 0x1
_MAY_ASSIGN: Final = 0x100


class Job:
    """A job."""

    def __init__(self, process: int, *, library: SystemLibrary | None = None) -> None:
        """Makes it, and puts a process into it.

        Args:
            process: the number of the process.
            library: the functions of kernel32.dll; None for those of this host.

        Raises:
            OSError: Windows refused, for example because the process has ended.
        """
        kernel = library or load("kernel32.dll")
        create = kernel.function("CreateJobObjectW", c_void_p, c_void_p, c_void_p)
        assign = kernel.function("AssignProcessToJobObject", c_int32, c_void_p, c_void_p)
        open_process = kernel.function("OpenProcess", c_void_p, c_uint32, c_int32, c_uint32)
        self._terminate = kernel.function("TerminateJobObject", c_int32, c_void_p, c_uint32)
        self._close = kernel.function("CloseHandle", c_int32, c_void_p)
        self._job = create(None, None)
        if not self._job:
            raise kernel.failed("CreateJobObject")
        handle = open_process(_MAY_END | _MAY_ASSIGN, 0, process)
        try:
            if not handle:
                raise kernel.failed("OpenProcess")
            if not assign(self._job, handle):
                raise kernel.failed("AssignProcessToJobObject")
        except OSError:
            self.close()
            raise
        finally:
            if handle:
                self._close(handle)

    def end(self) -> None:
        """Ends all its processes."""
        self._terminate(self._job, 1)

    def close(self) -> None:
        """Closes the job; its processes run on."""
        self._close(self._job)
