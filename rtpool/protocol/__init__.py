"""
The sans-I/O core: WebSocket frames, Phoenix messages, one connection's session, placement.

Nothing here opens a socket, starts a thread, reads a clock or draws a random number: time is an argument, chance is
injected. Whatever a peer sends, this layer raises nothing but `rtpool.errors.ProtocolError` or `MessageTooBig`.
"""
