"""Run code as if on Windows or macOS: ``python other_platform.py win32|darwin COMMAND ...``.

Only a run on the real system proves that something works there. This proves that nothing which is missing there is
imported or called: its modules cannot be imported, its functions of ``os`` are gone, and Linux's files, the NVIDIA
driver and programs that read a BMC cannot be found. Third-party packages are imported before, as they look for the
system that they were installed on.

Commands: ``import`` imports every module of the package and prints a line for each that needs a missing one;
``pytest ARGS`` runs pytest; ``tokenpower ARGS`` runs the command line.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import importlib.abc
import os
import pkgutil
import signal
import sys
import time
from collections.abc import Sequence
from types import ModuleType

UNIX_MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "spwd", "crypt", "nis")
"""Modules of the standard library that Windows does not have."""

MISSING_MODULES = {"win32": UNIX_MODULES, "darwin": ("spwd", "nis")}

LINUX_CALLS = ("sched_getaffinity", "sched_setaffinity", "waitid", "pidfd_open", "prctl")

MISSING_CALLS = {
    "win32": (
        *LINUX_CALLS,
        "chown",
        "chroot",
        "fchmod",
        "fork",
        "forkpty",
        "getegid",
        "geteuid",
        "getgid",
        "getgroups",
        "getloadavg",
        "getpgid",
        "getpgrp",
        "getsid",
        "getuid",
        "killpg",
        "mkfifo",
        "nice",
        "openpty",
        "posix_spawn",
        "setpgid",
        "setsid",
        "setuid",
        "statvfs",
        "sysconf",
        "tcgetpgrp",
        "uname",
        "wait4",
    ),
    "darwin": LINUX_CALLS,
}

MISSING_SIGNALS = {"win32": ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCHLD"), "darwin": ()}
MISSING_CLOCKS = {"win32": ("clock_gettime", "clock_gettime_ns", "pthread_getcpuclockid"), "darwin": ()}

LINUX_FILES = ("/proc", "/sys", "/dev/nvidia", "/dev/dri", "/dev/ipmi")

THIRD_PARTY = (
    "httpx",
    "msgspec",
    "numpy",
    "psutil",
    "pynvml",
    "pytest",
    "scipy.optimize",
    "scipy.special",
    "scipy.stats",
    "tabulate",
    "tomli",
)

LATE = (
    "asyncio",
    "concurrent.futures",
    "ctypes.util",
    "multiprocessing",
    "multiprocessing.connection",
    "ssl",
    "venv",
)
"""Parts of the standard library that look at the system when they are imported."""


class _Missing(importlib.abc.MetaPathFinder):
    def __init__(self, names: Sequence[str]) -> None:
        self._names = frozenset(names)

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> None:
        if name in self._names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def pretend(platform: str) -> None:
    """Make this process look as if it ran on another system; nothing undoes it."""
    for name in (*THIRD_PARTY, *LATE):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for name in MISSING_MODULES[platform]:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, _Missing(MISSING_MODULES[platform]))
    for module, names in (
        (os, MISSING_CALLS[platform]),
        (signal, MISSING_SIGNALS[platform]),
        (time, MISSING_CLOCKS[platform]),
    ):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    sys.platform = platform
    sys.addaudithook(_no_linux)


def _no_linux(event: str, arguments: tuple[object, ...]) -> None:
    if event in ("open", "os.listdir", "os.scandir", "os.readlink"):
        path = arguments[0]
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if isinstance(path, str | os.PathLike) and str(path).startswith(LINUX_FILES):
            raise FileNotFoundError(2, "No such file or directory", str(path))
    elif event == "ctypes.dlopen" and "nvidia" in str(arguments[0]):
        raise OSError(f"{arguments[0]}: cannot open shared object file")
    elif event == "subprocess.Popen" and "ipmitool" in str(arguments[0]):
        raise FileNotFoundError(2, "No such file or directory", "ipmitool")


def import_all(package: str) -> list[str]:
    """Import every module of a package; a line for each that needs what the system lacks."""
    faults = []
    for found in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        if found.name.endswith(".__main__") or ".demo_project" in found.name:
            continue
        try:
            importlib.import_module(found.name)
        except ModuleNotFoundError as error:
            # An engine's own package need not be installed.
            if error.name in UNIX_MODULES or (error.name or "").startswith(package):
                faults.append(f"{found.name}: {error}")
        except ImportError as error:
            faults.append(f"{found.name}: {error}")
        except AttributeError as error:
            faults.append(f"{found.name}: {error}")
    return faults


def main(platform: str, command: str, arguments: Sequence[str]) -> int:
    """Run a command on the pretended system."""
    pretend(platform)
    if command == "import":
        faults = import_all("pytest_tokenpower")
        builtins.print("\n".join(faults))
        return 1 if faults else 0
    if command == "pytest":
        import pytest

        return int(pytest.main([*arguments]))
    from pytest_tokenpower.cli import main as tokenpower

    return tokenpower([*arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
