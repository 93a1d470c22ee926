"""The official Python client against `mcp-host`: run as `client.py COMMAND ARGUMENT...`.

The tools that it expects are those of `tests/it/mcp_clients.rs`. It prints `ok` when all is as it should be, and
ends with a traceback where something is not.
"""

import asyncio
import json
import sys

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

LIMIT = 30
TOOLS = ["echo", "slow", "release", "never", "cancelled", "picture", "table", "fail"]


def text(result):
    return "".join(block.text for block in result.content if block.type == "text")


def attribute(thing, *names):
    """The attribute under whichever name this version of the client has for it."""
    for name in names:
        if hasattr(thing, name):
            return getattr(thing, name)
    raise AttributeError(names)


def is_error(result):
    return attribute(result, "is_error", "isError")


async def check(session):
    initialized = await session.initialize()
    assert attribute(initialized, "server_info", "serverInfo").name == "plexum-openai"
    await session.send_ping()

    listed = await session.list_tools()
    assert [tool.name for tool in listed.tools] == TOOLS, listed
    assert attribute(listed, "next_cursor", "nextCursor") is None

    # 50 calls beside one that is not answered before they all are.
    slow = asyncio.create_task(session.call_tool("slow", {}))
    echoes = await asyncio.gather(
        *(session.call_tool("echo", {"n": n}) for n in range(50))
    )
    for n, result in enumerate(echoes):
        assert not is_error(result) and json.loads(text(result)) == {"n": n}, result
    assert not slow.done()
    await session.send_ping()
    await session.call_tool("release", {})
    assert text(await slow) == "released"

    told = []

    async def progress(done, total, message):
        told.append((done, message))

    await session.call_tool("echo", {}, progress_callback=progress)
    assert told == [(0, "echo is running")], told

    # What is cancelled reaches the daemon, and everything goes on.
    never = asyncio.create_task(session.call_tool("never", {}))
    while json.loads(text(await session.call_tool("cancelled", {})))["never"] < 1:
        await asyncio.sleep(0.01)
    never.cancel()
    try:
        await never
        raise AssertionError("a cancelled call was answered")
    except asyncio.CancelledError:
        pass
    while json.loads(text(await session.call_tool("cancelled", {})))["cancelled"] < 1:
        await asyncio.sleep(0.01)

    picture = (await session.call_tool("picture", {})).content[0]
    assert picture.type == "image" and attribute(picture, "mime_type", "mimeType") == "image/png"
    table = await session.call_tool("table", {})
    assert attribute(table, "structured_content", "structuredContent") == {"rows": [1, 2]}
    assert json.loads(text(table)) == {"rows": [1, 2]}
    failed = await session.call_tool("fail", {})
    assert is_error(failed) and text(failed) == "no such luck", failed
    gone = await session.call_tool("gone", {})
    assert is_error(gone) and "no tool 'gone'" in text(gone), gone


async def main():
    server = StdioServerParameters(command=sys.argv[1], args=sys.argv[2:])
    async with stdio_client(server) as (read, write):
        async with ClientSession(read, write) as session:
            await asyncio.wait_for(check(session), LIMIT)
    print("ok")


asyncio.run(main())
