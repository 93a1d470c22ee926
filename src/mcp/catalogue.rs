//! The list of tools that codex gets: validated, and in pages.

use super::Tool;
use super::schema::{self, InputSchema};
use crate::json::{json_string, truncate};
use std::collections::HashSet;

/// A page of `tools/list` ends after this many tools, or after [`PAGE_BYTES`].
const PAGE_TOOLS: usize = 200;

const PAGE_BYTES: usize = 1024 * 1024;

/// A tool whose JSON is longer than this, in bytes, is not offered: a page must fit into a line.
pub(super) const TOOL_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The tools of a turn as `tools/list` returns them: in the daemon's order, without duplicate names.
#[derive(Debug)]
pub(crate) struct Catalogue {
    /// The number of the list within the turn, so that a cursor of an older list is detected.
    generation: u64,
    pub(super) names: HashSet<String>,
    /// Each tool as JSON.
    tools: Vec<String>,
}

impl Catalogue {
    /// The catalogue of these tools, and a warning for each one that was changed or left out.
    pub(crate) fn new(generation: u64, tools: Vec<Tool>) -> (Catalogue, Vec<String>) {
        let mut warnings = Vec::new();
        let mut names = HashSet::new();
        let mut list = Vec::with_capacity(tools.len());
        for tool in tools {
            let shown = truncate(&tool.name, 256).to_owned();
            if tool.name.is_empty() {
                warnings.push("a tool without a name is not offered".to_owned());
                continue;
            }
            if names.contains(&tool.name) {
                warnings.push(format!(
                    "duplicate tool '{shown}'; the first one is offered"
                ));
                continue;
            }
            let schema = InputSchema::normalize(tool.input_schema.as_deref());
            if let Some(warning) = &schema.warning {
                warnings.push(format!("the input_schema of the tool '{shown}' {warning}"));
            }
            let name = json_string(&tool.name);
            let description =
                schema::description(tool.description.as_deref(), schema.note.as_deref());
            let schema = schema.json;
            let json = match description {
                Some(description) => format!(
                    "{{\"name\":{name},\"description\":{description},\"inputSchema\":{schema}}}"
                ),
                None => format!("{{\"name\":{name},\"inputSchema\":{schema}}}"),
            };
            if json.len() > TOOL_BYTES_MAX {
                warnings.push(format!(
                    "the tool '{shown}' has {} bytes of description and schema and is not offered",
                    json.len()
                ));
                continue;
            }
            names.insert(tool.name);
            list.push(json);
        }
        let catalogue = Catalogue {
            generation,
            names,
            tools: list,
        };
        (catalogue, warnings)
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// The `result` of `tools/list` at this cursor; `None` where the cursor is not one of this list.
    pub(super) fn page(&self, cursor: Option<&str>) -> Option<String> {
        let start = match cursor {
            None => 0,
            Some(cursor) => {
                let at = cursor
                    .strip_prefix(&format!("{}-", self.generation))?
                    .parse()
                    .ok()?;
                // Only the exact form is accepted: `1-007` is not a cursor.
                (self.cursor(at) == cursor && (1..self.tools.len()).contains(&at)).then_some(at)?
            }
        };
        let mut end = start;
        let mut bytes = 0;
        while end < self.tools.len() && end - start < PAGE_TOOLS {
            bytes += self.tools[end].len() + 1;
            if bytes > PAGE_BYTES && end > start {
                break;
            }
            end += 1;
        }
        let tools = self.tools[start..end].join(",");
        Some(if end < self.tools.len() {
            format!(
                "{{\"tools\":[{tools}],\"nextCursor\":{}}}",
                json_string(&self.cursor(end))
            )
        } else {
            format!("{{\"tools\":[{tools}]}}")
        })
    }

    fn cursor(&self, at: usize) -> String {
        format!("{}-{at}", self.generation)
    }
}
