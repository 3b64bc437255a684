"""uvicorn with h11, graceful shutdown, and limits on size, time and memory of each connection.

    server        the server process: startup, signals, draining
    listener      the socket that the server listens on
    connection    one connection: timeouts for its request heads and its readers
    transport     flow control in both directions
    parser        h11's parser with limits

uvicorn runs with h11. httptools loses the body of a POST with `Upgrade: h2c`, which the JDK's
client sends, accepts heads of any length, and merges trailers into the headers.
"""
