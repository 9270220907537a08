"""Cut a Python process off from the network, except this machine.

Python imports this module at start-up if its folder is in PYTHONPATH. Each attempt to reach another
machine fails, and is written as a line of the file NETWORK_LOG.
"""

import os
import socket

HERE = (None, "", "127.0.0.1", "::1", "localhost")

real_connect = socket.socket.connect
real_getaddrinfo = socket.getaddrinfo


def note(target):
    with open(os.environ["NETWORK_LOG"], "a") as log:
        log.write(f"{target}\n")


def connect(self, address):
    if self.family != socket.AF_UNIX and address[0] not in HERE:
        note(address)
        raise OSError(f"no network: {address}")
    return real_connect(self, address)


def getaddrinfo(host, *arguments, **options):
    if host not in HERE:
        note(host)
        raise socket.gaierror(f"no network: {host}")
    return real_getaddrinfo(host, *arguments, **options)


socket.socket.connect, socket.getaddrinfo = connect, getaddrinfo
