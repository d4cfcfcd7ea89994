"""Runs gpu_suites.py over several calls to a machine that allows each call only so long.

python benchmarks/gpu_evidence.py --out $OUT --seconds 560            starts the bench, and packs what there is
python benchmarks/gpu_evidence.py --out $OUT --seconds 430 --last     follows it, stops it, and packs

The bench is a session of its own: it works on between the calls, from a copy of this tree. Should it have been ended
with the first call, a further one starts it again, and it goes on where it was. What follows -- is gpu_suites.py's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLAN = "e1,e2,e3/soak,slo,weights,e5b"
MOST_BYTES = 15 << 20
PACK_S = 12.0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="what the call hands back")
    parser.add_argument("--seconds", type=float, required=True, help="of this call")
    parser.add_argument("--total", type=float, default=1100.0, help="of all calls and what is between them")
    parser.add_argument("--last", action="store_true", help="stop the bench when this call's time is over")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/gpu-evidence"))
    parser.add_argument("rest", nargs="*", help=f"gpu_suites.py's (default: --plan {PLAN})")
    arguments = parser.parse_args()
    ends = time.monotonic() + arguments.seconds
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    begun = folder / "begun"
    if not begun.exists():
        begun.write_text(str(time.time()))
        (folder / "arguments.json").write_text(json.dumps(arguments.rest or ["--plan", PLAN]))
        for name in ("pytest_tokenpower", "benchmarks"):
            shutil.copytree(ROOT / name, folder / "tree" / name, ignore=shutil.ignore_patterns("__pycache__"))
    left = arguments.total - (time.time() - float(begun.read_text()))
    if arguments.last:
        left = min(left, arguments.seconds - PACK_S)
    if not alive(folder):
        start(folder, left, json.loads((folder / "arguments.json").read_text()))
    told = 0
    interrupted = False
    while alive(folder) and time.monotonic() < ends - PACK_S / 2:
        time.sleep(0.5)
        lines = (folder / "driver.log").read_text("utf-8", "replace").splitlines()
        print(*lines[told:], sep="\n", end="\n" if lines[told:] else "", flush=True)
        told = len(lines)
        # 15 s before the end, for pytest has to write what it measured.
        if arguments.last and not interrupted and time.monotonic() > ends - PACK_S - 15:
            interrupted = True
            (folder / "results" / "stop").touch()
    pack(folder, arguments.out)
    if arguments.last and alive(folder):
        with suppress(ProcessLookupError):
            os.killpg(int((folder / "pid").read_text()), signal.SIGTERM)
    return 0


def alive(folder: Path) -> bool:
    """Tell whether the bench runs."""
    try:
        pid = int((folder / "pid").read_text())
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, ValueError):
        return False


def start(folder: Path, seconds: float, rest: list[str]) -> None:
    """Start the bench as a session of its own, on from what it has."""
    command = [
        *(sys.executable, str(folder / "tree" / "benchmarks" / "gpu_suites.py"), "run", "--resume"),
        *("--out", str(folder / "results"), "--seconds", f"{seconds:.0f}", *rest),
    ]
    path = os.pathsep.join(filter(None, (str(folder / "tree"), os.environ.get("PYTHONPATH", ""))))
    with (folder / "driver.log").open("ab") as log:
        child = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    (folder / "pid").write_text(str(child.pid))
    print(f"the bench is process {child.pid}, for {seconds:.0f} s", flush=True)


def pack(folder: Path, out: Path) -> None:
    """Pack what there is into one file, without single runs and in whole what fits."""
    out.mkdir(parents=True, exist_ok=True)
    results = folder / "results"
    packed = out / "results.tar.gz"
    files = [path for path in sorted(results.rglob("*")) if path.is_file() and "runs" not in path.parts]
    # Journals and the soak first: what is largest is left out where all is too much.
    for most in (8 << 20, 2 << 20, 1 << 18):
        with tarfile.open(packed, "w:gz") as tar:
            for path in files:
                with suppress(FileNotFoundError):
                    if path.suffix == ".jsonl" or path.stat().st_size < most:
                        tar.add(path, str(path.relative_to(results)))
        if packed.stat().st_size < MOST_BYTES:
            break
    for name in ("driver.log", "results/h200-suites.md"):
        with suppress(FileNotFoundError):
            shutil.copy(folder / name, out)
    print(f"packed {packed.stat().st_size / 1e6:.2f} MB of {len(files)} files", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
