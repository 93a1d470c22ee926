//! `mcp-host`: the MCP server that codex starts. Reads the socket and the agent from flags or environment variables;
//! [`crate::mcp::proxy`] does the rest.

use super::flags::{Parsed, usage};
use crate::error::Result;
use crate::mcp::proxy;
use std::ffi::OsString;
use std::path::PathBuf;

/// Serves codex until either side ends.
///
/// # Errors
/// [`crate::error::Kind::Usage`] where the socket or the agent is not given, and those of [`proxy::run`].
pub(crate) fn run(parsed: &Parsed) -> Result<()> {
    let socket = flag_or_variable(
        parsed,
        "socket",
        "PLEXUM_MCP_SOCKET",
        std::env::var_os("PLEXUM_MCP_SOCKET"),
    )?;
    let agent_id = flag_or_variable(
        parsed,
        "agent-id",
        "PLEXUM_MCP_AGENT_ID",
        std::env::var_os("PLEXUM_MCP_AGENT_ID"),
    )?;
    let agent_id = agent_id.into_string().map_err(|value| {
        usage(format!(
            "the value of '--agent-id' is not valid UTF-8: {value:?}"
        ))
    })?;
    let turn = proxy::turn_of_environment();
    proxy::run(&PathBuf::from(socket), &agent_id, turn.as_deref())
}

/// The value of the flag, else of the environment variable; it must not be empty.
fn flag_or_variable(
    parsed: &Parsed,
    flag: &str,
    variable: &str,
    environment: Option<OsString>,
) -> Result<OsString> {
    let (value, source) = match parsed.value(flag) {
        Some(value) => (value.to_owned(), format!("'--{flag}'")),
        None => (environment.unwrap_or_default(), variable.to_owned()),
    };
    if !value.is_empty() {
        return Ok(value);
    }
    Err(match parsed.has(flag) {
        true => usage(format!("the value of {source} is empty")),
        false => usage(format!("'mcp-host' needs '--{flag}' or {variable}"))
            .hint("codex starts it with both, for a turn that has tools"),
    })
}
