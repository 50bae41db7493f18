"""Seconds that the phases of a job took."""

import time


class PhaseTimer:
    """Started when made; `lap` ends a phase. seconds: {phase: seconds}, in order."""

    def __init__(self):
        self.seconds, self.last = {}, time.perf_counter()

    def lap(self, phase):
        """End a phase: what has gone by since the last one."""
        now = time.perf_counter()
        self.seconds[phase], self.last = round(now - self.last, 3), now
