"""What a figure was measured on, and what a process has used; it measures no server by itself."""

import os
import platform
import time
from pathlib import Path

CPU_CLOCK = 2  # CPUCLOCK_SCHED: what the scheduler has counted.
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process so far, all its threads together; 0 for no process."""
    if not pid:
        return 0.0
    # Its clock's number is made of its id: clock_getcpuclockid(3). The ticks of /proc/PID/stat,
    # 10 ms each, are too coarse for a server that has little to do.
    return time.clock_gettime(~pid << 3 | CPU_CLOCK)


def core_busy_seconds(core: int) -> float:
    """Return how long a core was not idle so far, whoever used it."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name == f"cpu{core}":
            # user, nice, system, idle, iowait, irq, softirq, steal: proc(5).
            ticks = [int(field) for field in fields[:8]]
            return (sum(ticks) - ticks[3] - ticks[4]) / TICKS_PER_SECOND
    return 0.0


def proportional_bytes(pid: int) -> int:
    """Return the memory of a process, of what it shares its part (PSS)."""
    return _kilobytes(Path(f"/proc/{pid}/smaps_rollup"), "Pss:") * 1024


def resident_bytes(pid: int) -> int:
    """Return the memory of a process that is in RAM (RSS)."""
    return _kilobytes(Path(f"/proc/{pid}/status"), "VmRSS:") * 1024


def _kilobytes(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise RuntimeError(f"{path} has no {name}")


def listen_overflows() -> int:
    """Return how many connects found a full queue so far; each is tried again a second later."""
    lines = Path("/proc/net/netstat").read_text().splitlines()
    names, values = (line.split() for line in lines if line.startswith("TcpExt:"))
    return int(dict(zip(names, values, strict=True))["ListenOverflows"])


def describe_machine() -> dict[str, str | int]:
    """Return what the figures depend on, and when they were taken."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "cores": os.cpu_count() or 0,
        "cpu": _cpu_model(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()
