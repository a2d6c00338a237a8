"""The journal: what changed in the cluster and on this node in the last hours, in files of a limited size.

`records` is what is kept, `frames` the format of a file, `folder` the files, `writer` the thread that writes
them, and `recorder` collects what changes in a running daemon. Files are read by `insight.journal`. The
daemon imports this package only with --journal.
"""
