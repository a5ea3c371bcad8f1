"""One process at a time writes a folder. A dead holder (kill -9, power loss) blocks nobody.

The holder has a file ``.writer.N`` in the folder. It says who the holder is, and a helper process
writes a growing count into it (`dq.one_writer.beat`). If the holder's process is visible from here,
`/proc` shows whether it lives. Otherwise the count decides: it must grow, measured with the
reader's own clock. Clocks of two machines are never compared. The file system only needs hard links
that fail if the name exists (`os.link`), which NFS has. A dead holder is replaced by the process
that creates the file with the next number; only one process can.
"""
