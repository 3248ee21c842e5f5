import os
import signal

import pytest

from ctm.training.interrupt import InterruptLater


def test_the_first_signal_waits_and_a_second_ctrl_c_does_not():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), InterruptLater() as interrupt:  # noqa: PT012
        assert interrupt.requested == 0
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.requested == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_scheduler_may_send_sigterm_twice():
    with InterruptLater() as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.requested == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.requested == signal.SIGINT
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.requested == signal.SIGINT
