import os
import signal
from types import SimpleNamespace

import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException

from contrastive.training.signals import ENDING, Signals, Terminated, stopped_by

TRAINER = SimpleNamespace()


@pytest.fixture
def signals():
    before = {signum: signal.getsignal(signum) for signum in ENDING}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield Signals()
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize("signum", ENDING)
def test_a_signal_is_noted_and_the_handlers_given_back(signals, signum):
    before = [signal.getsignal(each) for each in ENDING]
    signals.take_over(TRAINER)
    os.kill(os.getpid(), signum)
    assert signals.asked == signum
    signals.give_back()
    assert [signal.getsignal(each) for each in ENDING] == before
    assert signals.asked == 0


def test_a_second_ctrl_c_is_not_deferred_and_a_second_sigterm_changes_nothing(signals):
    signals.take_over(TRAINER)
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    assert signals.asked == signal.SIGTERM
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_what_the_program_or_its_environment_has_set_stays(signals):
    def mine(*_):
        pass

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    signal.signal(signal.SIGINT, mine)
    signals.take_over(TRAINER)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) is mine


def test_lightnings_own_handler_gives_way_and_one_of_the_user_before_it_does_not(signals):
    def lightnings(*_):
        pass

    for before, taken in ((signal.SIG_DFL, True), (lambda *_: None, False)):
        signal.signal(signal.SIGTERM, lightnings)
        connector = SimpleNamespace(_original_handlers={signal.SIGTERM: before})
        signals.take_over(SimpleNamespace(_signal_connector=connector))
        assert (signal.getsignal(signal.SIGTERM) is not lightnings) == taken
        signals.give_back()
        assert signal.getsignal(signal.SIGTERM) is lightnings


def test_a_forked_worker_obeys_the_signal(signals):
    signals.take_over(TRAINER)
    pid = os.fork()
    if not pid:
        os.kill(os.getpid(), signal.SIGINT)  # for the process that trains to decide on
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
    assert signals.asked == 0


def test_what_is_raised_has_the_code_that_shells_report():
    assert isinstance(stopped_by(signal.SIGINT), KeyboardInterrupt)
    for signum, code in ((signal.SIGTERM, 143), (signal.SIGHUP, 129)):
        stop = stopped_by(signum)
        assert isinstance(stop, Terminated)
        assert isinstance(stop, SIGTERMException)
        assert (stop.signum, stop.code) == (signum, code)
