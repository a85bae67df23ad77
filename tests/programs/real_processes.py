"""real_processes.py N: a pool of processes, a pipe, shared memory, a lock and a semaphore of multiprocessing; prints N results."""
import multiprocessing as mp
import sys


def piece(number):
    value = number
    for _ in range(60000):
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


if __name__ == "__main__":
    n = int(sys.argv[1])
    shared, turn = mp.Value("q", 0), mp.Semaphore(1)
    here, there = mp.Pipe()
    child = mp.Process(target=echo, args=(there, turn))
    child.start()
    with mp.Pool(3, use, (shared,)) as pool:
        for number, value in pool.imap(piece, range(n)):
            here.send(f"{value:x}")
            print(number, here.recv(), flush=True)
        pool.close()
        pool.join()
    here.send(None)
    child.join()
    print("total", shared.value, "child", child.exitcode)
