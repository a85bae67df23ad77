"""network.py: after the move, resolves names as its origin does, talks HTTP to itself over selectors, and copies trees of files."""
import os
import selectors
import shutil
import socket
import subprocess
import sys
import threading

print("ready", flush=True)
sys.stdin.readline()
print(sorted({a[4][0] for a in socket.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)}))
print(socket.getaddrinfo("127.0.0.1", "http", proto=socket.IPPROTO_TCP)[0][4], socket.gethostbyname(socket.gethostname()) != "")
try:
    socket.getaddrinfo("no-such-host.invalid", 80)
except socket.gaierror as error:
    print(type(error).__name__)
with socket.create_server(("127.0.0.1", 0)) as server, selectors.DefaultSelector() as selector:
    server.setblocking(False)
    client = socket.create_connection(server.getsockname(), timeout=5)
    selector.register(server, selectors.EVENT_READ)
    client.sendall(b"x" * 300000)
    got, peers = 0, []
    while got < 300000:
        for key, _ in selector.select(timeout=5):
            if key.fileobj is server:
                peers.append(server.accept()[0])
                selector.register(peers[0], selectors.EVENT_READ)
            else:
                got += len(key.fileobj.recv(7777))
    print(got, client.getsockname() == peers[0].getpeername())
    client.settimeout(0.05)
    try:
        client.recv(1)
    except TimeoutError as error:
        print(error)
os.makedirs("tree/a/b")
for name in ["tree/x", "tree/a/y", "tree/a/b/z"]:
    with open(name, "w") as file:
        file.write(name * 1000)
shutil.copytree("tree", "copy")
print(sorted(os.path.join(d, f) for d, _, files in os.walk("copy") for f in files), shutil.disk_usage(".").total > 0)
shutil.rmtree("copy")
print(os.listdir("."), os.path.exists("copy"), os.cpu_count() == len(os.sched_getaffinity(0)))
if "home" in sys.argv:
    print(subprocess.run(["sh", "-c", "cat tree/x | wc -c; exit 3"], capture_output=True, text=True))
    thread = threading.Thread(target=print, args=("in a thread", os.getpid() == os.getpid()))
    thread.start()
    thread.join()
    print(subprocess.check_output(["echo", "again"]))
