# What `make gdb` starts with: the machine stands at its first instruction, in real mode.
set confirm off
set pagination off
source demo/printers.py
set architecture i386:x86-64
target remote target/gdb.socket
hbreak kernel_main
continue
