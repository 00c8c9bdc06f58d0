"""
Threads and sockets: one I/O thread, dial threads on demand, callback workers.
"""
