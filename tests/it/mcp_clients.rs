//! The official MCP clients against `mcp-host`: those of Python and TypeScript, and the inspector.
