"""real_numpy.py [N]: steps of matrices, sorting, a Fourier transform and random numbers, their sums to the last bit: N steps, or
until its standard input ends."""
import itertools
import select
import sys

import numpy

n = int(sys.argv[1]) if len(sys.argv) > 1 else None
random = numpy.random.default_rng(7)
state = random.random((160, 160))
for step in itertools.count():
    if step == n or n is None and select.select([sys.stdin], [], [], 0)[0]:
        break
    state = state @ random.random((160, 160))
    state /= numpy.linalg.norm(state)
    waves = numpy.abs(numpy.fft.fft2(state)).sum()
    order = numpy.sort(state, axis=None)
    print(step, float(state.trace()).hex(), float(waves).hex(), float(order[1000]).hex(), flush=True)
print("end")
