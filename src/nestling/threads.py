"""How many threads OpenMP, in which torch computes on a CPU, may use, and how they wait.

By default each of its threads spins while it waits for the others. Beside other busy processes it spins through the
time in which those it waits for would have run: a training took four times as long as with threads that sleep instead.
"""

import os

# What the user sets stays.
WAIT_POLICY, NUM_THREADS = "OMP_WAIT_POLICY", "OMP_NUM_THREADS"


def limit_threads() -> None:
    """Set the environment of OpenMP for this process and those that it starts; to be called before torch is imported.

    Waiting threads sleep, and there are no more threads than the CPU quota of a container allows, shared among the
    processes of a launch on this machine. OpenMP itself heeds only the affinity mask.
    """
    os.environ.setdefault(WAIT_POLICY, "PASSIVE")
    if NUM_THREADS not in os.environ:
        from joblib import cpu_count  # takes a fifth of a second, which --help does not wait for

        quota, visible = cpu_count(), usable_cores()
        threads = max(1, min(quota, visible) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        if threads < visible:
            os.environ[NUM_THREADS] = str(threads)


def usable_cores() -> int:
    """Cores in the affinity mask of this process, where the system has one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
