import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.strategies.launchers import subprocess_script

from contrastive.training import processes
from contrastive.training.processes import Watch, agree, lost_process


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What tests/training/stopped_processes.py left, how its runs ended, and what their processes said."""
    folder = tmp_path_factory.mktemp("stopped")
    script = Path(__file__).with_name("stopped_processes.py")
    done = subprocess.run([sys.executable, script, folder], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    ends = json.loads((folder / "ends.json").read_text())
    said = {name: [(folder / name / f"{rank}.log").read_text() for rank in range(2)] for name in ends}
    return SimpleNamespace(folder=folder, ends=ends, said=said)


def trained(runs, name):
    return torch.load(runs.folder / name / "end.ckpt", weights_only=True)


def assert_ended_as_if_nothing_had_happened(runs, name):
    assert runs.ends[name] == [0, 0], runs.said[name]
    straight, resumed = trained(runs, "straight"), trained(runs, name)
    assert resumed["global_step"] == straight["global_step"] == 12
    for key, value in straight["state_dict"].items():
        assert torch.equal(resumed["state_dict"][key], value), key
    for key, state in straight["optimizer_states"][0]["state"].items():
        for part, value in state.items():
            assert torch.equal(resumed["optimizer_states"][0]["state"][key][part], value), (key, part)


def test_a_signal_in_one_process_stops_all_and_the_run_goes_on_as_if_nothing_had_happened(runs):
    assert runs.ends["terminated"] == [143, 143], runs.said["terminated"]
    assert_ended_as_if_nothing_had_happened(runs, "terminated-resumed")


def test_a_signal_in_validation_stops_all_and_the_run_goes_on_as_if_nothing_had_happened(runs):
    assert runs.ends["hung-up"] == [129, 129], runs.said["hung-up"]
    assert_ended_as_if_nothing_had_happened(runs, "hung-up-resumed")
    straight, stopped, resumed = (
        (runs.folder / name / "val_loss.txt").read_text().split()
        for name in ("straight", "hung-up", "hung-up-resumed")
    )
    assert len(straight) == 3
    assert (stopped, resumed) == (straight[:1], straight[1:])


def test_the_death_of_one_process_ends_all_and_the_run_goes_on_from_its_last_checkpoint(runs):
    assert runs.ends["killed"] == [-signal.SIGKILL, 1], runs.said["killed"]
    assert "Connection" in runs.said["killed"][1]
    assert_ended_as_if_nothing_had_happened(runs, "killed-resumed")


def test_an_exception_in_one_process_ends_all(runs):
    assert runs.ends["failed"] == [1, 1], runs.said["failed"]
    assert "ValueError: mine" in runs.said["failed"][1]
    assert "ValueError: mine" not in runs.said["failed"][0]


def test_a_bad_value_in_one_process_stops_all_with_a_checkpoint(runs):
    assert runs.ends["not-finite"] == [1, 1], runs.said["not-finite"]
    assert "see the error of another process" in runs.said["not-finite"][0]
    assert "the loss is nan" in runs.said["not-finite"][1]
    saved = torch.load(runs.folder / "not-finite" / "checkpoints" / "not_finite.ckpt", weights_only=True)
    assert saved["global_step"] == 2


# ---------------------------------------------------------------------- the watch


@pytest.fixture
def ended(monkeypatch):
    """How the watch would have ended this process: exit code and reason."""
    calls = []
    monkeypatch.setattr(processes, "_end_now", lambda *call: calls.append(call))
    monkeypatch.setattr(processes, "PATIENCE", 0.0)
    monkeypatch.setattr(processes, "GRACE", 0.0)
    return calls


@pytest.fixture
def deaf():
    """A signal does nothing, as if the main thread were inside a collective operation."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def start_child():
    """Start ``python -c code`` as a process of the run."""
    children = []

    def start(code):
        children.append(subprocess.Popen([sys.executable, "-S", "-c", code], stdin=subprocess.PIPE))
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.wait()
        child.stdin.close()


def wait_for(calls):
    until = time.monotonic() + 20
    while not calls and time.monotonic() < until:
        time.sleep(0.02)
    return calls[0] if calls else None


@pytest.mark.usefixtures("deaf")
def test_a_process_that_hears_no_signal_is_ended(ended):
    watch = Watch()
    watch.start()
    os.kill(os.getpid(), signal.SIGTERM)
    first = wait_for(ended)
    watch.stop()
    assert first == (143, "SIGTERM came")
    assert signal.set_wakeup_fd(-1) == -1  # given back


@pytest.mark.usefixtures("deaf")
def test_a_process_that_stops_in_time_is_left_alone(ended, monkeypatch):
    monkeypatch.setattr(processes, "PATIENCE", 1.0)
    watch = Watch()
    watch.start()
    os.kill(os.getpid(), signal.SIGTERM)
    watch.stop()
    watch.join(20)
    assert not watch.is_alive()
    assert not ended


def test_a_process_whose_child_has_failed_ends_the_others(ended, start_child):
    failed, idle = start_child("raise SystemExit(3)"), start_child("input()")
    watch = Watch([failed, idle])
    watch.start()
    first = wait_for(ended)
    watch.stop()
    assert first == (1, "process 1 has ended with code 3")
    assert idle.wait(20) == -signal.SIGKILL


def test_the_watch_takes_the_place_of_lightnings_observer(start_child):
    child = start_child("input()")
    observer = subprocess_script._ChildProcessObserver(os.getpid(), [child], sleep_period=0.05)
    observer.start()
    strategy = SimpleNamespace(launcher=SimpleNamespace(procs=[child]))
    watch = Watch.over(SimpleNamespace(strategy=strategy))
    observer.join(20)
    assert not observer.is_alive()
    assert watch.children == [child]
    watch.stop()
    watch.end_children(grace=0.0)
    assert child.wait(20) == -signal.SIGKILL


def test_a_process_that_nobody_started_for_a_run_watches_no_parent(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    before = threading.active_count()
    processes.end_with_parent()
    assert threading.active_count() == before


def test_one_process_agrees_with_itself():
    assert agree(SimpleNamespace(world_size=1), 0, 3) == [0, 3]


def test_the_loss_of_another_process_is_told_from_other_errors():
    gloo = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4242"
    assert "another process of this run has ended" in lost_process(RuntimeError(gloo))
    assert lost_process(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert lost_process(OSError("Connection reset by peer")) is None
