from time import perf_counter

# When this process began on its own work: a stage's imports are counted from here (mrse/component.py).
BEGAN = perf_counter()
