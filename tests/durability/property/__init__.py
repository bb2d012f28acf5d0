"""Generated workflow programs, what they must come to, and how they are run and disturbed.

`tree` is what a program is made of; `strategy` generates programs; `expected` says what one must come
to, and knows nothing of the runtime; `workflow` runs one by `step.*`; `lives` lets it live in this
process and `server`, a program, in processes that are killed; `verdict` compares. The parts that run
import nothing of the parts that expect.
"""
