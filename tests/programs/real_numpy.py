"""real_numpy.py N: N steps of matrices, sorting, a Fourier transform and random numbers, their sums to the last bit."""
import sys

import numpy

random = numpy.random.default_rng(7)
state = random.random((160, 160))
for step in range(int(sys.argv[1])):
    state = state @ random.random((160, 160))
    state /= numpy.linalg.norm(state)
    waves = numpy.abs(numpy.fft.fft2(state)).sum()
    order = numpy.sort(state, axis=None)
    print(step, float(state.trace()).hex(), float(waves).hex(), float(order[1000]).hex(), flush=True)
