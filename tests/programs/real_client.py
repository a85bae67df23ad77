"""real_client.py http|echo HOST PORT N: keeps one connection open, asks N times, prints what it is told.

http asks a server of sums; echo sends lines of growing length, which come back."""
import http.client
import socket
import sys

kind, host, port, n = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
if kind == "http":
    connection = http.client.HTTPConnection(host, port, timeout=30)
    for i in range(n):
        for path in (f"/sum?n={16 + i % 5}", "/ticks"):
            connection.request("GET", path)
            answer = connection.getresponse()
            print(i, path, answer.status, answer.read().decode().strip(), flush=True)
else:
    with socket.create_connection((host, port), timeout=30) as connection:
        stream = connection.makefile("rwb")
        for i in range(n):
            line = b"%d:" % i + b"x" * (i * 37 % 5000) + b"\n"
            stream.write(line)
            stream.flush()
            back = stream.readline()
            assert back == line, (line, back)
            print(i, len(back), flush=True)
print("done")
