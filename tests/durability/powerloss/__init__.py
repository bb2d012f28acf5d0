"""The power-loss proof: what the shipped code may find after the machine died at any instant.

A program of the shipped code runs under strace (`recorder`). Its trace is read into a list of
operations on a model volume (`trace`, `volume`). For an instant of that list, `crash` says what is
certainly on the disk and what is only perhaps there, and `losses` choose among the latter. Each
choice is written into a fresh folder, opened by the shipped code in another boot and compared with
what the program had been told (`oracle`, `checker`); `campaign` picks instants and choices.

The crash model is that of ALICE (Pillai and others, "All File Systems Are Not Created Equal", OSDI
2014) and CrashMonkey (OSDI 2018), made meaner than any one file system:

- `fsync` and `fdatasync` of a file make its bytes and its size durable, for all that had returned
  before the call; they say nothing of its directory entry. `fsync` of a folder makes the changes of
  its entries durable; `sync` and `syncfs` make everything durable.
- Of the writes since, any subset may be there, in any order, each torn at sectors of 512 or 4096
  bytes, with or without the growth of the file. What was never written reads as zeros.
- Of the changes of a folder since, any subset may be there. A rename is atomic. An entry whose removal
  was lost is back with the file it had.

Nothing here knows how the runtime makes anything durable: it reads system calls. What stays
out of the model: shared memory maps (only SQLite's `-shm`, which nobody reads after a boot), disks that
lie about a sync, and bits that rot.
"""
