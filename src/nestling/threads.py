"""How many threads OpenMP, in which torch computes on a CPU, may use, and how they wait.

By default each of its threads spins while it waits for the others. On free cores that is faster than to sleep and be
woken. Beside other busy processes it spins through the time in which those it waits for would have run. No fixed time
of spinning was nearly as fast as the better of the two in both cases.
"""

import os

import psutil

# What the user sets stays.
WAIT_POLICY, NUM_THREADS = "OMP_WAIT_POLICY", "OMP_NUM_THREADS"
# A core is taken that other processes use for more than half of this time.
WATCHED_SECONDS, TAKEN_PERCENT = 0.2, 50


def limit_threads() -> None:
    """Set the environment of OpenMP for this process and those that it starts; to be called before torch is imported.

    Waiting threads sleep if other processes use the cores now. There are no more threads than the CPU quota of a
    container allows, shared among the processes of a launch on this machine; OpenMP heeds only the affinity mask.
    """
    if WAIT_POLICY not in os.environ and others_are_busy():
        os.environ[WAIT_POLICY] = "PASSIVE"
    if NUM_THREADS not in os.environ:
        from joblib import cpu_count  # takes a fifth of a second, which --help does not wait for

        quota, visible = cpu_count(), usable_cores()
        threads = max(1, min(quota, visible) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        if threads < visible:
            os.environ[NUM_THREADS] = str(threads)


def others_are_busy() -> bool:
    """Whether other processes keep one of the usable cores busy, watched while this process sleeps."""
    shares = psutil.cpu_percent(WATCHED_SECONDS, percpu=True)
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(shares))
    return any(share > TAKEN_PERCENT for core, share in enumerate(shares) if core in usable)


def usable_cores() -> int:
    """Cores in the affinity mask of this process, where the system has one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
