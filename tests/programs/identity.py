"""identity.py: prints who and where it is, again and again; no line may ever differ from the first."""
import os
import socket
import time

for _ in range(40):
    print(
        os.getpid(), os.getppid(), os.getpgid(0), os.getsid(0), os.getresuid(), os.getresgid(), os.getgroups(),
        os.getcwd(), os.uname(), socket.gethostname(), sorted(os.listdir("/")), os.readlink("/proc/self/exe"),
        os.stat("/").st_ino, open("/proc/self/cmdline").read().split("\0"), len(open("/etc/passwd").read()),
        sorted(name for _, name in socket.if_nameindex()), os.umask(0o22), sep="|", flush=True,
    )
    time.sleep(0.05)
