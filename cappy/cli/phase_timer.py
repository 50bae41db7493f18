"""Seconds that each phase of a job takes."""

import time


class PhaseTimer:
    """Starts when it is made; `lap` ends a phase. seconds: {phase: seconds}, in order."""

    def __init__(self):
        self.seconds, self.last = {}, time.perf_counter()

    def lap(self, phase):
        """End a phase, which began where the previous one ended."""
        now = time.perf_counter()
        self.seconds[phase], self.last = round(now - self.last, 3), now
