"""The official Python client as the plugin's daemon: run as `daemon.py WORKSPACE COMMAND ARGUMENT...`.

Its codex is the script of `tests/it/mcp_clients.rs`. It prints `ok` when all is as it should be, and ends with a
traceback where something is not.
"""

import asyncio
import os
import sys
from typing import Any

import mcp.types as types
from mcp import ClientSession, MCPError, StdioServerParameters
from mcp.client.extension import NotificationBinding
from mcp.client.stdio import stdio_client
from pydantic import BaseModel, ConfigDict

LIMIT = 30
STREAM = "plexum/provider/stream"
MODELS = ["codex", "codex-mini"]


class Open(BaseModel):
    """An object that may have any members."""

    model_config = ConfigDict(extra="allow")


class Request(types.Request[dict[str, Any], str]):
    """A request that MCP does not know."""


class Daemon:
    def __init__(self):
        self.events = []
        self.logs = []
        self.changed = asyncio.Condition()

    async def event(self, params):
        async with self.changed:
            self.events.append(params.event)
            self.changed.notify_all()

    async def log(self, params):
        async with self.changed:
            self.logs.append(params)
            self.changed.notify_all()

    async def wait_for(self, done):
        async with self.changed:
            await self.changed.wait_for(done)

    def has_event(self, **members):
        return lambda: any(members.items() <= event.items() for event in self.events)


def stream(workspace, text):
    return Request(
        method=STREAM,
        params={
            "agent": {"id": "alice", "workspace": workspace},
            "request": {"messages": [{"role": "user", "content": text}]},
        },
    )


async def check(session, daemon, workspace):
    try:
        await session.send_request(stream(workspace, "too early"), Open)
        raise AssertionError("a stream before initialize")
    except MCPError as error:
        assert error.error.code == -32003, error
    await session.send_ping()

    initialized = await session.initialize()
    assert initialized.server_info.name == "plexum-openai-provider", initialized
    assert initialized.capabilities.logging is not None
    plexum = initialized.capabilities.experimental["plexum"]
    assert plexum["contract"] == 2, plexum
    assert plexum["manifest"]["contracts"]["provider"]["models"] == MODELS, plexum
    await session.send_ping()

    # The client dispatches notifications side by side: their order is not looked at here.
    result = await session.send_request(stream(workspace, "Hello"), Open)
    assert result.stop_reason == "end_turn" and result.thread_state == "new", result
    await daemon.wait_for(daemon.has_event(type="message_end", stop_reason="end_turn"))
    assert daemon.has_event(type="message_start")(), daemon.events
    assert daemon.has_event(type="text_delta", text="Hello.")(), daemon.events
    assert not daemon.logs, daemon.logs

    # The turn's debug lines are told once they are asked for.
    await session.set_logging_level("debug")
    daemon.events.clear()
    running = asyncio.create_task(session.send_request(stream(workspace, "Work"), Open))
    await daemon.wait_for(daemon.has_event(type="text_delta", text="At work."))
    await daemon.wait_for(lambda: any(log.level == "debug" for log in daemon.logs))
    assert all(log.logger == "plexum-openai" for log in daemon.logs), daemon.logs
    await session.send_ping()
    running.cancel()
    try:
        await running
        raise AssertionError("a cancelled request was answered")
    except asyncio.CancelledError:
        pass
    await daemon.wait_for(daemon.has_event(type="message_end", stop_reason="cancelled"))
    await session.send_ping()

    try:
        await session.send_request(Request(method="plexum/nothing", params={}), Open)
        raise AssertionError("an unknown method was answered")
    except MCPError as error:
        assert error.error.code == -32601, error


async def main():
    daemon = Daemon()

    class Event(BaseModel):
        stream: int | str
        event: dict[str, Any]

    events = NotificationBinding(
        method="notifications/plexum/provider/event", params_type=Event, handler=daemon.event
    )
    workspace, command, *arguments = sys.argv[1:]
    server = StdioServerParameters(command=command, args=arguments, env=dict(os.environ))
    async with stdio_client(server) as (read, write):
        async with ClientSession(
            read, write, logging_callback=daemon.log, notification_bindings=[events]
        ) as session:
            await asyncio.wait_for(check(session, daemon, workspace), LIMIT)
    print("ok")


asyncio.run(main())
