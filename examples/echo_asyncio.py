"""An echo server on becket's event loop: all but the last line is asyncio."""

import asyncio

import becket


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, "127.0.0.1", 7000)
    async with server:
        await server.serve_forever()


becket.run(main())
