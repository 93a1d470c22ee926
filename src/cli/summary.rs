//! `parse-rollout --summary`: the calls or tools that fill a thread's context, the biggest first, as a table or as
//! JSON.
//!
//! Sizes are bytes of JSON text as in the rollout, without the quotes around a string.

use super::color;
use super::columns::{self, truncate_middle, width};
use super::flags::Parsed;
use crate::error::Result;
use crate::os;
use crate::rollout::calls::write_input;
use crate::rollout::record::{Call, Content};
use serde::Serialize;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

/// The markers in place of a consumed output, which are truncated where the output was shorter.
const MARKERS: [(&str, Consumed); 2] = [
    ("...(consumed)", Consumed::Light),
    ("...(tool called)", Consumed::Heavy),
];

/// Whether a row is a call or the sum of a tool's calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GroupBy {
    Call,
    Tool,
}

/// How much of the arguments is kept for the preview, in bytes.
const PREVIEW_BYTES: usize = 120;

/// The calls of one or more rollouts.
#[derive(Debug, Default)]
pub(super) struct Summary {
    rows: Vec<CallRow>,
}

/// One call; its names are those of `--json`.
#[derive(Debug, Serialize)]
struct CallRow {
    id: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    arguments_bytes: u64,
    /// Their first bytes: see [`preview`].
    arguments: String,
    output_bytes: u64,
    /// Whether it has an output.
    answered: bool,
    is_error: bool,
    consumed: Option<Consumed>,
}

/// How a call was consumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Consumed {
    Light,
    Heavy,
    /// One of the two: the marker is truncated to a prefix that both have.
    Cut,
}

/// The properties of stdout that the table depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Screen {
    /// In columns.
    pub(super) width: usize,
    /// In lines; `None` (no limit) where stdout is not a terminal.
    pub(super) height: Option<usize>,
    pub(super) color: bool,
}

impl Screen {
    /// Reads them from stdout and `--color`.
    ///
    /// # Errors
    /// Those of [`color::is_enabled`].
    pub(super) fn of_stdout(parsed: &Parsed) -> Result<Screen> {
        let terminal = io::stdout().is_terminal();
        let color = color::is_enabled(parsed, &io::stdout())?;
        let size = terminal.then(|| os::terminal_size(io::stdout())).flatten();
        Ok(Screen {
            width: columns::terminal_width(io::stdout()),
            height: size.map(|(_, rows)| rows).filter(|height| *height > 0),
            color,
        })
    }
}

impl Summary {
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Adds a call and returns the index of its row.
    pub(super) fn add_call(&mut self, call: &Call<'_>) -> usize {
        let mut arguments = Vec::new();
        // Writing to a `Vec` cannot fail.
        let _ = write_input(&mut arguments, &call.input);
        self.rows.push(CallRow {
            id: call.id.clone().into_owned(),
            name: call.name.clone().into_owned(),
            namespace: call
                .namespace
                .clone()
                .map(|namespace| namespace.into_owned()),
            arguments_bytes: size(&arguments),
            arguments: preview(&arguments),
            output_bytes: 0,
            answered: false,
            is_error: false,
            consumed: None,
        });
        self.rows.len() - 1
    }

    pub(super) fn add_output(&mut self, row: usize, content: &Content<'_>, is_error: bool) {
        let row = &mut self.rows[row];
        row.answered = true;
        row.is_error = is_error;
        row.output_bytes = content.bytes();
        row.consumed = consumed(content);
    }

    pub(super) fn remove_calls_without_output(&mut self) {
        self.rows.retain(|row| row.answered);
    }
}

/// The length of a JSON text in bytes, without the quotes of a string.
fn size(json: &[u8]) -> u64 {
    let quotes = if json.first() == Some(&b'"') { 2 } else { 0 };
    json.len().saturating_sub(quotes) as u64
}

/// The first [`PREVIEW_BYTES`] of a JSON text, without the quotes of a string.
fn preview(json: &[u8]) -> String {
    let text = json.strip_prefix(b"\"").unwrap_or(json);
    let text = match text.len() < json.len() {
        true => text.strip_suffix(b"\"").unwrap_or(text),
        false => text,
    };
    let text = &text[..text.len().min(PREVIEW_BYTES)];
    match str::from_utf8(text) {
        Ok(text) => text.to_owned(),
        // The last character is incomplete.
        Err(error) => String::from_utf8_lossy(&text[..error.valid_up_to()]).into_owned(),
    }
}

/// How this output was consumed, if it is a marker.
fn consumed(content: &Content<'_>) -> Option<Consumed> {
    let text = content.only_text()?;
    let matching =
        MARKERS.map(|(marker, way)| (!text.is_empty() && marker.starts_with(&text)).then_some(way));
    match matching {
        [Some(_), Some(_)] => Some(Consumed::Cut),
        [light, heavy] => light.or(heavy),
    }
}

impl Summary {
    /// The calls, the biggest first; calls of the same size in the order in which they were made.
    fn sorted(&self) -> Vec<&CallRow> {
        let mut rows: Vec<&CallRow> = self.rows.iter().collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.bytes()));
        rows
    }

    fn sum(&self, value: impl Fn(&CallRow) -> u64) -> u64 {
        self.rows.iter().map(value).sum()
    }

    /// A row for each tool, the biggest first, with the number of its calls, which is also its id.
    fn tools(&self) -> Vec<(CallRow, usize)> {
        let mut tools: Vec<(CallRow, usize)> = Vec::new();
        let mut indices = HashMap::new();
        for row in &self.rows {
            let index = *indices.entry(row.tool()).or_insert_with(|| {
                tools.push((
                    CallRow {
                        id: String::new(),
                        name: row.name.clone(),
                        namespace: row.namespace.clone(),
                        arguments_bytes: 0,
                        arguments: String::new(),
                        output_bytes: 0,
                        answered: true,
                        is_error: false,
                        consumed: None,
                    },
                    0,
                ));
                tools.len() - 1
            });
            let (sum, calls) = &mut tools[index];
            sum.arguments_bytes += row.arguments_bytes;
            sum.output_bytes += row.output_bytes;
            *calls += 1;
        }
        for (row, calls) in &mut tools {
            row.id = grouped(*calls);
        }
        tools.sort_by_key(|(row, _)| std::cmp::Reverse(row.bytes()));
        tools
    }

    pub(super) fn write_json(&self, out: &mut impl Write, group_by: GroupBy) -> io::Result<()> {
        #[derive(Serialize)]
        struct JsonRow<'a> {
            #[serde(flatten)]
            row: &'a CallRow,
            /// The share of all bytes, from 0 to 1.
            share: f64,
        }
        #[derive(Serialize)]
        struct JsonTool {
            name: String,
            #[serde(skip_serializing_if = "Option::is_none")]
            namespace: Option<String>,
            calls: usize,
            arguments_bytes: u64,
            output_bytes: u64,
            share: f64,
        }
        #[derive(Serialize)]
        struct Total {
            calls: usize,
            arguments_bytes: u64,
            output_bytes: u64,
            consumed: usize,
        }
        #[derive(Serialize)]
        struct JsonSummary<'a> {
            #[serde(skip_serializing_if = "Option::is_none")]
            calls: Option<Vec<JsonRow<'a>>>,
            #[serde(skip_serializing_if = "Option::is_none")]
            tools: Option<Vec<JsonTool>>,
            total: Total,
        }
        let all = self.sum(CallRow::bytes).max(1) as f64;
        let call = |row| JsonRow {
            row,
            share: CallRow::bytes(row) as f64 / all,
        };
        let tool = |(row, calls): (CallRow, usize)| JsonTool {
            share: row.bytes() as f64 / all,
            name: row.name,
            namespace: row.namespace,
            calls,
            arguments_bytes: row.arguments_bytes,
            output_bytes: row.output_bytes,
        };
        let is_by_tool = group_by == GroupBy::Tool;
        let summary = JsonSummary {
            calls: (!is_by_tool).then(|| self.sorted().into_iter().map(call).collect()),
            tools: is_by_tool.then(|| self.tools().into_iter().map(tool).collect()),
            total: Total {
                calls: self.rows.len(),
                arguments_bytes: self.sum(|row| row.arguments_bytes),
                output_bytes: self.sum(|row| row.output_bytes),
                consumed: self.consumed_count(),
            },
        };
        serde_json::to_writer(&mut *out, &summary)?;
        out.write_all(b"\n")
    }

    fn consumed_count(&self) -> usize {
        self.rows
            .iter()
            .filter(|row| row.consumed.is_some())
            .count()
    }

    /// Writes the table, limited to the height of the terminal.
    pub(super) fn write_table(
        &self,
        out: &mut impl Write,
        screen: &Screen,
        group_by: GroupBy,
    ) -> io::Result<()> {
        let tools = match group_by {
            GroupBy::Call => Vec::new(),
            GroupBy::Tool => self.tools(),
        };
        let mut rows = match group_by {
            GroupBy::Call => self.sorted(),
            GroupBy::Tool => tools.iter().map(|(row, _)| row).collect(),
        };
        if rows.is_empty() {
            return writeln!(out, "no tool calls");
        }
        let layout = Layout::of(&rows, screen);
        // Four lines are left for the header, the line about hidden rows, the total and the shell's prompt.
        let max_rows = screen
            .height
            .map_or(usize::MAX, |height| height.saturating_sub(4).max(1));
        let hidden = rows.len().saturating_sub(max_rows);
        let sizes = (rows[0].bytes(), self.sum(CallRow::bytes));
        rows.truncate(max_rows);
        layout.write_header(out, screen, group_by)?;
        for row in rows {
            layout.write_row(out, screen, row, sizes)?;
        }
        if hidden > 0 {
            let rest = format!("{} smaller ones not shown", grouped(hidden));
            writeln!(
                out,
                "{}",
                paint(screen, DIM, &truncate_middle(&rest, screen.width))
            )?;
        }
        let calls = match self.rows.len() {
            1 => "1 call".to_owned(),
            calls => format!("{} calls", grouped(calls)),
        };
        let arguments = format_size(self.sum(|row| row.arguments_bytes));
        let output = format_size(self.sum(|row| row.output_bytes));
        let mut total = format!("{calls}: {arguments} bytes of arguments, {output} of output");
        match self.consumed_count() {
            0 => {}
            consumed => drop(write!(total, ", {} consumed", grouped(consumed))),
        }
        writeln!(
            out,
            "{}",
            paint(screen, BOLD, &truncate_middle(&total, screen.width))
        )
    }
}

impl CallRow {
    fn bytes(&self) -> u64 {
        self.arguments_bytes + self.output_bytes
    }

    /// The tool's name, with that of its MCP server before it.
    fn tool(&self) -> String {
        match &self.namespace {
            Some(namespace) => {
                let server = namespace.strip_prefix("mcp__").unwrap_or(namespace);
                format!("{server}.{}", self.name)
            }
            None => self.name.clone(),
        }
    }

    fn state(&self) -> &'static str {
        match self {
            CallRow {
                consumed: Some(Consumed::Light),
                ..
            } => "light",
            CallRow {
                consumed: Some(Consumed::Heavy),
                ..
            } => "heavy",
            CallRow {
                consumed: Some(Consumed::Cut),
                ..
            } => "consumed",
            CallRow {
                answered: false, ..
            } => "no output",
            CallRow { is_error: true, .. } => "error",
            CallRow { .. } => "",
        }
    }
}

/// The widths of the table's columns that depend on the screen; 0 where one is left out.
struct Layout {
    id: usize,
    tool: usize,
    bar: usize,
    state: usize,
    /// The preview of the arguments.
    arguments: usize,
}

/// The width of a size as [`format_size`] writes it.
const SIZE: usize = 6;
/// The width of `100.0%`.
const SHARE: usize = 6;
/// The widest bar.
const MAX_BAR: usize = 12;
/// A narrower preview of the arguments is left out.
const MIN_ARGUMENTS: usize = 12;
const GAP: &str = "  ";
/// The bar and the preview are left out on narrower screens.
const WIDE: usize = 72;
/// The table's minimum width: on narrower screens its lines wrap.
const MIN_WIDTH: usize = 56;

impl Layout {
    fn of(rows: &[&CallRow], screen: &Screen) -> Layout {
        let widest =
            |text: &dyn Fn(&CallRow) -> usize| rows.iter().map(|row| text(row)).max().unwrap_or(0);
        let state = widest(&|row| row.state().len());
        let id = widest(&|row| width(&row.id)).clamp(5, 32);
        let tool = widest(&|row| width(&row.tool())).clamp(4, 32);
        let rest = screen.width.max(MIN_WIDTH) - 2 * SIZE - SHARE - state - 6 * GAP.len();
        let id = id.min(rest - (4 + 8));
        let is_wide = screen.width >= WIDE;
        let tool = tool.min(rest - id - if is_wide { 4 } else { 0 });
        let bar = if is_wide {
            (rest - id - tool).min(MAX_BAR)
        } else {
            0
        };
        let arguments = (rest - id - tool - bar).saturating_sub(GAP.len());
        Layout {
            id,
            tool,
            bar,
            state,
            arguments: match arguments >= MIN_ARGUMENTS && is_wide {
                true => arguments,
                false => 0,
            },
        }
    }

    fn write_header(
        &self,
        out: &mut impl Write,
        screen: &Screen,
        group_by: GroupBy,
    ) -> io::Result<()> {
        let id = match group_by {
            GroupBy::Call => "call",
            GroupBy::Tool => "calls",
        };
        let header = format!(
            "{}{GAP}{}{GAP}{:>SIZE$}{GAP}{:>SIZE$}{GAP}{:>SHARE$}",
            pad_right(id, self.id),
            pad_right("tool", self.tool),
            "args",
            "output",
            "share"
        );
        writeln!(out, "{}", paint(screen, DIM, &header))
    }

    /// The last argument: the bytes of the biggest row, and of all rows.
    fn write_row(
        &self,
        out: &mut impl Write,
        screen: &Screen,
        row: &CallRow,
        (biggest, all): (u64, u64),
    ) -> io::Result<()> {
        let id = pad_right(&row.id, self.id);
        let tool = pad_right(&row.tool(), self.tool);
        let share = format!("{:.1}%", row.bytes() as f64 * 100.0 / all.max(1) as f64);
        let bar = match self.bar {
            0 => String::new(),
            columns => pad_right(&bar(row.bytes(), biggest, columns), columns) + GAP,
        };
        let bar = paint(screen, CYAN, &bar);
        let state = match self.state {
            0 => String::new(),
            columns => pad_right(row.state(), columns) + GAP,
        };
        let state = match row.state() {
            "error" => paint(screen, RED, &state),
            _ => paint(screen, DIM, &state),
        };
        let preview = match self.arguments {
            0 => String::new(),
            columns => columns::truncate(
                &row.arguments
                    .chars()
                    .map(columns::visible)
                    .collect::<String>(),
                columns,
            ),
        };
        let (arguments, output) = (
            format_size(row.arguments_bytes),
            format_size(row.output_bytes),
        );
        let line = format!(
            "{id}{GAP}{tool}{GAP}{arguments:>SIZE$}{GAP}{output:>SIZE$}{GAP}{share:>SHARE$}{GAP}{bar}{state}{}",
            paint(screen, DIM, &preview)
        );
        writeln!(out, "{}", line.trim_end())
    }
}

const DIM: &str = "2";
const BOLD: &str = "1";
const RED: &str = "31";
const CYAN: &str = "36";

/// Adds the escape sequences of a colour where the screen has colour.
fn paint(screen: &Screen, code: &str, text: &str) -> String {
    if screen.color && !text.trim().is_empty() {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

/// A size in binary units, to about three digits: `83`, `1.2K`, `613K`, `81.5M`.
fn format_size(bytes: u64) -> String {
    let mut size = bytes as f64;
    if bytes < 1000 {
        return bytes.to_string();
    }
    for unit in ["K", "M", "G", "T"] {
        size /= 1024.0;
        // A size that would be rounded to 100.0 is written without decimals.
        if size < 99.95 {
            return format!("{size:.1}{unit}");
        }
        if size < 999.5 {
            return format!("{size:.0}{unit}");
        }
    }
    format!("{size:.0}T")
}

/// A number with commas between the thousands.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A bar whose full length is `columns`, to an eighth of a column.
fn bar(part: u64, all: u64, columns: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (part as f64 / all.max(1) as f64 * columns as f64 * 8.0).round() as usize;
    // Anything but 0 is visible.
    let eighths = eighths.max(usize::from(part > 0));
    "█".repeat(eighths / 8) + EIGHTHS[eighths % 8]
}

/// Pads or truncates a text to exactly `columns`.
fn pad_right(text: &str, columns: usize) -> String {
    let mut text = truncate_middle(text, columns);
    text.extend(std::iter::repeat_n(
        ' ',
        columns.saturating_sub(width(&text)),
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_fits_every_width() {
        let row = |id: &str, name: &str, output_bytes| CallRow {
            id: id.to_owned(),
            name: name.to_owned(),
            namespace: None,
            arguments_bytes: 24,
            arguments: "{\"cmd\":\"wc -l poem.txt\"}".to_owned(),
            output_bytes,
            answered: true,
            is_error: false,
            consumed: Some(Consumed::Cut),
        };
        let summary = Summary {
            rows: vec![
                row("call_0123456789abcdefghijklmn", "exec_command", 81_500_000),
                row("call_1", "a_tool_with_a_name_that_is_rather_long", 0),
            ],
        };
        for columns in 0..200 {
            let screen = Screen {
                width: columns,
                height: None,
                color: false,
            };
            let mut out = Vec::new();
            summary
                .write_table(&mut out, &screen, GroupBy::Call)
                .unwrap();
            let table = String::from_utf8(out).unwrap();
            // The header, two calls, the total.
            assert_eq!(table.lines().count(), 4, "{columns}: {table}");
            for line in table.lines() {
                assert!(width(line) <= columns.max(MIN_WIDTH), "{columns}: {line}");
            }
            assert_eq!(table.contains('█'), columns >= WIDE, "{columns}: {table}");
        }
    }
}
