"""real_processes.py [N]: a pool of processes, a pipe, shared memory and a semaphore of multiprocessing; prints results: of N
rounds, or until its standard input ends."""
import itertools
import multiprocessing as mp
import select
import sys


def piece(number):
    value = number
    for _ in range(20000):
        value = (value * 6364136223846793005 + 1442695040888963407) % 2**64
    with total.get_lock():
        total.value += 1
    return number, value


def use(shared):
    global total
    total = shared


def echo(pipe, turn):
    while (word := pipe.recv()) is not None:
        with turn:
            pipe.send(word[::-1])


def is_over(count, n):
    return count == n if n is not None else bool(select.select([sys.stdin], [], [], 0)[0])


if __name__ == "__main__":
    n = int(sys.argv[1]) if len(sys.argv) > 1 else None
    shared, turn = mp.Value("q", 0), mp.Semaphore(1)
    here, there = mp.Pipe()
    child = mp.Process(target=echo, args=(there, turn))
    child.start()
    with mp.Pool(3, use, (shared,)) as pool:
        for count in itertools.count():
            if is_over(count, n):
                break
            results = pool.map(piece, range(6 * count, 6 * count + 6), chunksize=1)
            here.send(" ".join(f"{value:x}" for _, value in results))
            print(count, here.recv(), shared.value, flush=True)
        pool.close()
        pool.join()
    here.send(None)
    child.join()
    print("child", child.exitcode)
