"""echo_client.py ADDRESS|/SOCKET PORT COUNT: sends a line at a time over one connection and prints what comes back."""
import socket
import sys
import time

where, port, count = sys.argv[1:]
local = where.startswith("/")
server = socket.socket(socket.AF_UNIX if local else socket.AF_INET)
server.connect(where if local else (where, int(port)))
stream = server.makefile("r")
for i in range(1, int(count) + 1):
    server.sendall(f"line {i}\n".encode())
    print(i, stream.readline().rstrip(), flush=True)
    time.sleep(0.05)
