"""A server of five lines: it sends each line back. docs/tutorial.md goes on from here."""

import becket


def echo(connection):
    for line in connection:
        connection.sendall(line)


becket.serve(echo, "tcp://127.0.0.1:7000")
