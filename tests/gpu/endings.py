"""Checks that end in every way there is."""

import os
import signal
import time

from scripts.gpu.place import NotRunError, Place


def passes(place: Place) -> None:
    place.add("figures", found=1)


def fails(place: Place) -> None:
    place.add("figures", found=2)
    raise ValueError("the kernel is wrong")


def crashes(place: Place) -> None:
    print("about to crash", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(place: Place) -> None:
    child = os.fork()
    (place.work / ("child" if child else "grandchild")).write_text(str(child or os.getpid()))
    time.sleep(100)


def lacks(place: Place) -> None:
    raise NotRunError("no such kernel in this version")
