"""uvicorn with h11, graceful shutdown, and limits on size, time and memory of each connection.

    server        the server process: startup, signals, draining
    listener      the socket that the server listens on
    open_files    the limit on open files, which also counts connections
    connection    one connection: timeouts for request heads and for slow readers
    transport     when to resume reading, and how much the client has received
    parser        h11's parser with limits

`cli` opens the listener and runs the server.

uvicorn runs with h11. httptools loses the body of a POST with `Upgrade: h2c`, which the JDK's
client sends, accepts heads of any length, and merges trailers into the headers.
"""
