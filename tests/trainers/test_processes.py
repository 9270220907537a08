"""A training does not outlive its server."""

import subprocess
import sys
from pathlib import Path

import psutil

from lib.trainers import processes

CHILD = """
import sys, threading, time
sys.path.insert(0, sys.argv[1])
from lib.trainers.processes import end_with_parent
rounds, sleep = [], time.sleep
def counted(seconds):
    sleep(seconds)
    rounds.append(seconds)
    if len(rounds) == 3:
        print("ready", flush=True)
time.sleep = counted
end_with_parent(interval=0.1)
threading.Event().wait(300)
"""
"""CHILD: says "ready" after the watch has seen its parent alive three times."""

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


def test_a_training_ends_with_the_process_that_started_it() -> None:
    app = str(Path(processes.__file__).parents[2])
    command = [sys.executable, "-c", PARENT, CHILD, app]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running() and child.status() != psutil.STATUS_ZOMBIE
        parent.kill()
    child.wait(timeout=30)
