"""connect_again.py ADDRESS PORT COUNT: makes a new connection again and again and prints the answer on each."""
import socket
import sys
import time

for _ in range(int(sys.argv[3])):
    with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as server:
        server.sendall(b"hello\n")
        print(server.makefile().readline().rstrip(), *server.getpeername(), flush=True)
    time.sleep(0.05)
