"""Programs that break things at random: requests, kills, full disks, a bad PACS, many clients.

Each one runs briefly in the tests, and as long as wanted by hand: see the README of this folder.
"""
