//! The table of `parse-rollout --summary`: what fills a thread's context, the biggest call first.
//!
//! Sizes are bytes of JSON text as the rollout has it, without the quotes around a string.

use super::color;
use super::columns::{self, fit, width};
use super::flags::Parsed;
use crate::error::Result;
use crate::os;
use crate::rollout::calls::write_input;
use crate::rollout::record::{Call, Content};
use serde::Serialize;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

/// What a consumed output says; where it had to be cut to fit, the beginning of it.
const CONSUMED: [(&str, Consumed); 2] = [
    ("...(consumed)", Consumed::Light),
    ("...(tool called)", Consumed::Heavy),
];

/// What a line of the table stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sums {
    ByCall,
    ByTool,
}

/// How much of the arguments is kept, in bytes.
const BEGINNING: usize = 120;

/// The calls of one or more rollouts.
#[derive(Debug, Default)]
pub(super) struct Summary {
    rows: Vec<CallRow>,
}

/// One call.
#[derive(Debug, Serialize)]
struct CallRow {
    id: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    arguments_bytes: u64,
    /// Their beginning.
    arguments: String,
    output_bytes: u64,
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
    /// In either way: of the marker only the beginning fitted in, and that is the same for both.
    Cut,
}

/// Where the table goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Screen {
    /// In columns.
    pub(super) width: usize,
    /// In lines; without a limit where it is not a terminal.
    pub(super) height: Option<usize>,
    pub(super) color: bool,
}

impl Screen {
    /// stdout, and what `--color` says about it.
    ///
    /// # Errors
    /// [`crate::error::Kind::Usage`] for a word that `--color` does not know.
    pub(super) fn of_stdout(parsed: &Parsed) -> Result<Screen> {
        let terminal = io::stdout().is_terminal();
        let color = color::wanted(parsed, &io::stdout())?;
        let size = terminal.then(|| os::terminal_size(io::stdout())).flatten();
        Ok(Screen {
            width: columns::terminal_width(io::stdout()),
            height: size.map(|(_, rows)| rows).filter(|height| *height > 0),
            color,
        })
    }
}

impl Summary {
    /// Adds a call; the result is its place.
    pub(super) fn begin(&mut self, call: &Call<'_>) -> usize {
        let mut arguments = Vec::new();
        // A `Vec` takes everything.
        let _ = write_input(&mut arguments, &call.input);
        self.rows.push(CallRow {
            id: call.id.clone().into_owned(),
            name: call.name.clone().into_owned(),
            namespace: call
                .namespace
                .clone()
                .map(|namespace| namespace.into_owned()),
            arguments_bytes: size(&arguments),
            arguments: beginning(&arguments),
            output_bytes: 0,
            answered: false,
            is_error: false,
            consumed: None,
        });
        self.rows.len() - 1
    }

    /// Adds the output of the call at this place.
    pub(super) fn answer(&mut self, place: usize, content: &Content<'_>, is_error: bool) {
        let row = &mut self.rows[place];
        row.answered = true;
        row.is_error = is_error;
        row.output_bytes = content.bytes();
        row.consumed = consumed(content);
    }

    /// Leaves out the calls that have no output.
    pub(super) fn forget_unanswered(&mut self) {
        self.rows.retain(|row| row.answered);
    }
}

/// The length of a JSON text, without the quotes of a string.
fn size(json: &[u8]) -> u64 {
    let quotes = if json.first() == Some(&b'"') { 2 } else { 0 };
    json.len().saturating_sub(quotes) as u64
}

/// The beginning of a JSON text, without the quotes of a string.
fn beginning(json: &[u8]) -> String {
    let text = json.strip_prefix(b"\"").unwrap_or(json);
    let text = match text.len() < json.len() {
        true => text.strip_suffix(b"\"").unwrap_or(text),
        false => text,
    };
    let text = &text[..text.len().min(BEGINNING)];
    match str::from_utf8(text) {
        Ok(text) => text.to_owned(),
        // A character that was cut.
        Err(error) => String::from_utf8_lossy(&text[..error.valid_up_to()]).into_owned(),
    }
}

/// How an output was consumed that is this.
fn consumed(content: &Content<'_>) -> Option<Consumed> {
    let text = content.only_text()?;
    let fits = CONSUMED
        .map(|(marker, way)| (!text.is_empty() && marker.starts_with(&text)).then_some(way));
    match fits {
        [Some(_), Some(_)] => Some(Consumed::Cut),
        [light, heavy] => light.or(heavy),
    }
}

impl Summary {
    /// The calls, the biggest first; those of one size in the order in which they were made.
    fn sorted(&self) -> Vec<&CallRow> {
        let mut rows: Vec<&CallRow> = self.rows.iter().collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.bytes()));
        rows
    }

    /// The sum of a part of every call.
    fn sum(&self, part: impl Fn(&CallRow) -> u64) -> u64 {
        self.rows.iter().map(part).sum()
    }

    /// The sums of each tool, the biggest first, as rows whose id is the number of calls.
    fn tools(&self) -> Vec<(CallRow, usize)> {
        let mut tools: Vec<(CallRow, usize)> = Vec::new();
        let mut places = HashMap::new();
        for row in &self.rows {
            let place = *places.entry(row.tool()).or_insert_with(|| {
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
            let (sum, calls) = &mut tools[place];
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

    /// Writes one JSON object.
    pub(super) fn write_json(&self, out: &mut impl Write, sums: Sums) -> io::Result<()> {
        #[derive(Serialize)]
        struct JsonRow<'a> {
            #[serde(flatten)]
            row: &'a CallRow,
            /// Of all bytes, from 0 to 1.
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
        struct Whole<'a> {
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
        let is_by_tool = sums == Sums::ByTool;
        let whole = Whole {
            calls: (!is_by_tool).then(|| self.sorted().into_iter().map(call).collect()),
            tools: is_by_tool.then(|| self.tools().into_iter().map(tool).collect()),
            total: Total {
                calls: self.rows.len(),
                arguments_bytes: self.sum(|row| row.arguments_bytes),
                output_bytes: self.sum(|row| row.output_bytes),
                consumed: self.consumed(),
            },
        };
        serde_json::to_writer(&mut *out, &whole)?;
        out.write_all(b"\n")
    }

    fn consumed(&self) -> usize {
        self.rows
            .iter()
            .filter(|row| row.consumed.is_some())
            .count()
    }

    /// Writes the table for people.
    pub(super) fn write_table(
        &self,
        out: &mut impl Write,
        screen: &Screen,
        sums: Sums,
    ) -> io::Result<()> {
        let tools = match sums {
            Sums::ByCall => Vec::new(),
            Sums::ByTool => self.tools(),
        };
        let mut rows = match sums {
            Sums::ByCall => self.sorted(),
            Sums::ByTool => tools.iter().map(|(row, _)| row).collect(),
        };
        if rows.is_empty() {
            return writeln!(out, "no tool calls");
        }
        let layout = Layout::of(&rows, screen);
        // The head, the total, the line about the rest and the prompt after it stay on the screen too.
        let most = screen
            .height
            .map_or(usize::MAX, |height| height.saturating_sub(4).max(1));
        let hidden = rows.len().saturating_sub(most);
        let sizes = (rows[0].bytes(), self.sum(CallRow::bytes));
        rows.truncate(most);
        layout.write_head(out, screen, sums)?;
        for row in rows {
            layout.write_row(out, screen, row, sizes)?;
        }
        if hidden > 0 {
            let rest = format!("{} smaller ones not shown", grouped(hidden));
            writeln!(out, "{}", paint(screen, DIM, &fit(&rest, screen.width)))?;
        }
        let calls = match self.rows.len() {
            1 => "1 call".to_owned(),
            calls => format!("{} calls", grouped(calls)),
        };
        let arguments = short(self.sum(|row| row.arguments_bytes));
        let output = short(self.sum(|row| row.output_bytes));
        let mut total = format!("{calls}: {arguments} bytes of arguments, {output} of output");
        match self.consumed() {
            0 => {}
            consumed => drop(write!(total, ", {} consumed", grouped(consumed))),
        }
        writeln!(out, "{}", paint(screen, BOLD, &fit(&total, screen.width)))
    }
}

impl CallRow {
    fn bytes(&self) -> u64 {
        self.arguments_bytes + self.output_bytes
    }

    /// The tool as a person knows it: of a server's tool, the server before it.
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

/// How the columns share the screen.
struct Layout {
    id: usize,
    tool: usize,
    bar: usize,
    state: usize,
    /// For the beginning of the arguments.
    arguments: usize,
}

/// A size as [`short`] writes it.
const SIZE: usize = 6;
/// `100.0%`
const SHARE: usize = 6;
/// The widest bar, and the least that is of use of the arguments.
const BAR: usize = 12;
const LEAST_ARGUMENTS: usize = 12;
const GAP: &str = "  ";
/// Screens narrower than this have no bar.
const WIDE: usize = 72;
/// Screens narrower than this have lines that are too long for them.
const NARROWEST: usize = 56;

impl Layout {
    fn of(rows: &[&CallRow], screen: &Screen) -> Layout {
        let widest =
            |text: &dyn Fn(&CallRow) -> usize| rows.iter().map(|row| text(row)).max().unwrap_or(0);
        let state = widest(&|row| row.state().len());
        let id = widest(&|row| width(&row.id)).clamp(5, 32);
        let tool = widest(&|row| width(&row.tool())).clamp(4, 32);
        let rest = screen.width.max(NARROWEST) - 2 * SIZE - SHARE - state - 6 * GAP.len();
        let id = id.min(rest - (4 + 8));
        let is_wide = screen.width >= WIDE;
        let tool = tool.min(rest - id - if is_wide { 4 } else { 0 });
        let bar = if is_wide {
            (rest - id - tool).min(BAR)
        } else {
            0
        };
        let arguments = (rest - id - tool - bar).saturating_sub(GAP.len());
        Layout {
            id,
            tool,
            bar,
            state,
            arguments: match arguments >= LEAST_ARGUMENTS && is_wide {
                true => arguments,
                false => 0,
            },
        }
    }

    fn write_head(&self, out: &mut impl Write, screen: &Screen, sums: Sums) -> io::Result<()> {
        let id = match sums {
            Sums::ByCall => "call",
            Sums::ByTool => "calls",
        };
        let head = format!(
            "{}{GAP}{}{GAP}{:>SIZE$}{GAP}{:>SIZE$}{GAP}{:>SHARE$}",
            left(id, self.id),
            left("tool", self.tool),
            "args",
            "output",
            "share"
        );
        writeln!(out, "{}", paint(screen, DIM, &head))
    }

    /// `sizes`: the bytes of the biggest row, and of all.
    fn write_row(
        &self,
        out: &mut impl Write,
        screen: &Screen,
        row: &CallRow,
        (biggest, all): (u64, u64),
    ) -> io::Result<()> {
        let id = left(&row.id, self.id);
        let tool = left(&row.tool(), self.tool);
        let share = format!("{:.1}%", row.bytes() as f64 * 100.0 / all.max(1) as f64);
        let bar = match self.bar {
            0 => String::new(),
            columns => left(&bar(row.bytes(), biggest, columns), columns) + GAP,
        };
        let bar = paint(screen, CYAN, &bar);
        let state = match self.state {
            0 => String::new(),
            columns => left(row.state(), columns) + GAP,
        };
        let state = match row.state() {
            "error" => paint(screen, RED, &state),
            _ => paint(screen, DIM, &state),
        };
        let preview = match self.arguments {
            0 => String::new(),
            columns => columns::cut(
                &row.arguments
                    .chars()
                    .map(columns::visible)
                    .collect::<String>(),
                columns,
            ),
        };
        let (arguments, output) = (short(row.arguments_bytes), short(row.output_bytes));
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

/// Text in a colour, where there are colours.
fn paint(screen: &Screen, code: &str, text: &str) -> String {
    if screen.color && !text.trim().is_empty() {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

/// A size in three digits or so: `83`, `1.2K`, `613K`, `81.5M`.
fn short(bytes: u64) -> String {
    let mut size = bytes as f64;
    if bytes < 1000 {
        return bytes.to_string();
    }
    for unit in ["K", "M", "G", "T"] {
        size /= 1024.0;
        // What would be rounded to 100.0 needs no digit after the point any more.
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

/// A bar of so many columns for all, to an eighth of a column.
fn bar(part: u64, all: u64, columns: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (part as f64 / all.max(1) as f64 * columns as f64 * 8.0).round() as usize;
    // Something is never nothing.
    let eighths = eighths.max(usize::from(part > 0));
    "█".repeat(eighths / 8) + EIGHTHS[eighths % 8]
}

/// Text on exactly so many columns, cut in its middle where it is longer.
fn left(text: &str, columns: usize) -> String {
    let mut text = fit(text, columns);
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
                .write_table(&mut out, &screen, Sums::ByCall)
                .unwrap();
            let table = String::from_utf8(out).unwrap();
            // The head, a line a call, the total.
            assert_eq!(table.lines().count(), 4, "{columns}: {table}");
            for line in table.lines() {
                assert!(width(line) <= columns.max(NARROWEST), "{columns}: {line}");
            }
            assert_eq!(table.contains('█'), columns >= WIDE, "{columns}: {table}");
        }
    }
}
