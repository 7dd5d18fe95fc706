"""Tells all that a copy of a tree must keep, a line a file: for specs that compare two trees.

usage: tree.py ROOT [LEFT_OUT...]
"""
import hashlib
import os
import stat
import sys


def content(path, status):
    if not stat.S_ISREG(status.st_mode):
        return ""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def describe(root, path, links):
    status = os.lstat(path)
    name = os.path.relpath(path, root)
    names = os.listxattr(path, follow_symlinks=False)
    return [
        ascii(name),
        oct(status.st_mode),
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        "" if stat.S_ISDIR(status.st_mode) else status.st_size,
        [(key, os.getxattr(path, key, follow_symlinks=False)) for key in sorted(names)],
        ascii(os.readlink(path)) if stat.S_ISLNK(status.st_mode) else "",
        "" if stat.S_ISDIR(status.st_mode) else ascii(links.setdefault(status.st_ino, name)),
        # A hole is a hole: how many blocks may differ by a few, since file systems do.
        "sparse" if stat.S_ISREG(status.st_mode) and status.st_blocks * 512 + (1 << 20) < status.st_size else "",
        content(path, status),
    ]


def main():
    root, left_out = sys.argv[1], set(sys.argv[2:])
    links = {}
    rows = [describe(root, root, links)]
    for directory, names, files in os.walk(root):
        names.sort()
        for name in sorted(names + files):
            path = os.path.join(directory, name)
            if os.path.relpath(path, root) not in left_out:
                rows.append(describe(root, path, links))
    for row in rows:
        print(*row)


main()
