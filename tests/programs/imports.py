"""imports.py: after the move, imports modules: built from source files, from caches, and extension modules in shared objects."""
import sys

print("ready", flush=True)
sys.stdin.readline()
import bz2
import ctypes
import decimal
import hashlib
import importlib
import json
import mmap
import os
import pathlib
import sqlite3
import ssl
import sysconfig
import tempfile
import zoneinfo

print(decimal.Decimal(2).sqrt(), json.dumps({"a": [1, 2]}), hashlib.sha256(b"x").hexdigest())
print(len(bz2.compress(b"x" * 100000)), ssl.OPENSSL_VERSION, ctypes.c_long(-1).value)
print(ctypes.CDLL(None).abs(-7), ctypes.sizeof(ctypes.c_void_p))
with sqlite3.connect("data.db") as base:
    base.execute("create table t (n integer, s text)")
    base.executemany("insert into t values (?, ?)", [(i, str(i * i)) for i in range(500)])
    print(base.execute("select count(*), sum(n), max(s) from t").fetchone())
path = pathlib.Path("own.py")
path.write_text("VALUE = 41 + 1\n")
sys.path.insert(0, os.getcwd())
importlib.invalidate_caches()
print(importlib.import_module("own").VALUE, sorted(os.listdir("__pycache__")))
with tempfile.TemporaryDirectory(dir=".") as where, open(where + "/x", "w+b") as file:
    file.write(b"0123456789" * 1000)
    file.flush()
    with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE) as view:
        print(view.find(b"9", 5000), len(view))
print(zoneinfo.ZoneInfo("Europe/Berlin").key if zoneinfo.available_timezones() else "no zones")
print(sysconfig.get_platform(), sorted(os.listdir("."))[:4], sum(1 for _ in os.walk("/usr/lib/python3")) > 0)
try:
    import no_such_module
except ModuleNotFoundError as error:
    print(error)
