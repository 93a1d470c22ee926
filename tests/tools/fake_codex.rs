//! A codex that does what a script says, for the faults that the real one cannot be made to show.
//!
//! Without a script it is a small well-behaved codex: `exec` starts a thread and repeats the prompt, `exec
//! resume` goes on with one, both write rollouts, count a thread's tokens as codex does and hold the thread's
//! writer lock; `--version` and `login status` answer as codex does.
//!
//! `FAKE_CODEX_SCRIPT` names a JSON file: a list of [`Step`]s for every `exec`, or an object with `runs` (a
//! list of such lists, one for each `exec` in turn, the last one from then on), `new` and `resume` (for
//! threads that start and go on), `version`, `login`, `mcp` (for those subcommands). What a script does not
//! say goes as without one. In its strings `{thread}` is the thread's id, `{prompt}` the prompt (after
//! `read_stdin`, where it comes that way), `{cwd}` the directory, `{uuid}` a fresh UUID, `{now}` the time
//! and `{round}` how often the steps of a `repeat` were done before.
//!
//! `FAKE_CODEX_LOG` names a file that gets one JSON line for each start (arguments, directory, environment,
//! process ids) and one for each `read_stdin`.
//!
//! A script that is wrong ends it with status 98 and the reason on stderr, a wait over its limit with 99.

use rustix::fs::FlockOperation;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use rustix::process::Signal;
use serde::Deserialize;
use serde_json::{Value, json};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// No step waits longer, so that a failed test leaves nothing behind for long.
const LONGEST_WAIT: Duration = Duration::from_secs(120);

/// One thing to do.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Step {
    /// A line on stdout.
    Out(String),
    /// A line on stderr.
    Err(String),
    /// A line on stdout: this JSON.
    Event(Value),
    /// Bytes on stdout, no newline added. `\xff` is the byte 255 (`"\\xff"` in JSON), `\\` a backslash.
    Raw(String),
    /// The same on stderr.
    RawErr(String),
    /// So many bytes, in lines of 100.
    Flood {
        to: Stream,
        bytes: u64,
    },
    /// One line on stdout: so many times `x` between `prefix` and `suffix`.
    LongLine {
        #[serde(default)]
        prefix: String,
        bytes: u64,
        #[serde(default)]
        suffix: String,
    },
    /// The same event so many times, as fast as a pipe takes it; by default a short agent message.
    Events {
        count: u64,
        #[serde(default)]
        event: Value,
    },
    /// Read stdin to its end, as the prompt. A script without this step leaves stdin unread.
    ReadStdin,
    CloseStdin,
    CloseStdout,
    CloseStderr,
    SleepMs(u64),
    /// Wait until this file exists.
    WaitFor(String),
    /// Make this file.
    Touch(String),
    /// Start whatever `fake-codex --below SOCKET PROGRAM ARGUMENT…` asks for at this socket, with its streams and
    /// its environment, so that a test can have a process below codex.
    StartBelow(String),
    /// Do not end on these signals (`INT`, `TERM`, `HUP`).
    Ignore(Vec<String>),
    /// Leave a process behind.
    Grandchild(Grandchild),
    /// Append these lines to the thread's rollout, which is made where there is none. A string is a line as
    /// it stands, anything else is written as JSON.
    Rollout(Vec<Value>),
    /// Start the MCP server that the command line lends and call this tool of it. Where only its name is given, it gets
    /// the prompt, and its answer is said as a message.
    CallTool(CalledTool),
    /// Lock the thread as codex does, until the end or `release_lock`.
    HoldLock,
    ReleaseLock,
    /// All that the fake does without a script.
    Default,
    Repeat {
        times: u64,
        steps: Vec<Value>,
    },
    Exit(i32),
    /// End by this signal.
    Signal(String),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum CalledTool {
    Name(String),
    Call {
        name: String,
        arguments: Value,
        /// codex's own id of the call, as new versions tell it.
        call_id: String,
    },
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Stream {
    Stdout,
    Stderr,
}

#[derive(Clone, Copy, Debug, Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
struct Grandchild {
    seconds: u64,
    /// Lead a session of its own, as codex's shell tools do.
    setsid: bool,
    /// Lead a process group of its own.
    setpgid: bool,
    /// Keep stdout and stderr open.
    holds_pipes: bool,
    ignores_signals: bool,
}

impl Default for Grandchild {
    fn default() -> Grandchild {
        Grandchild {
            seconds: 60,
            setsid: false,
            setpgid: false,
            holds_pipes: false,
            ignores_signals: false,
        }
    }
}

/// Why the fake itself ends: its own failure, never a scripted one.
struct Failure {
    status: u8,
    message: String,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure {
            // codex panics when its stdout is closed.
            status: if error.kind() == io::ErrorKind::BrokenPipe {
                101
            } else {
                98
            },
            message: error.to_string(),
        }
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Failure {
        Failure {
            status: 98,
            message: error.to_string(),
        }
    }
}

impl From<rustix::io::Errno> for Failure {
    fn from(error: rustix::io::Errno) -> Failure {
        io::Error::from(error).into()
    }
}

fn wrong(message: impl Into<String>) -> Failure {
    Failure {
        status: 98,
        message: message.into(),
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    let done = match arguments.first().map(String::as_str) {
        Some("--below") => ask_below(&arguments[1], &arguments[2..]),
        Some("--grandchild") => be_grandchild(&arguments[1]).map(|()| 0),
        _ => Codex::new(arguments).and_then(|mut codex| codex.run()),
    };
    match done {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            // stderr may be closed by the script.
            let _ = writeln!(io::stderr(), "fake-codex: {}", failure.message);
            ExitCode::from(failure.status)
        }
    }
}

/// Has a codex start this program, and ends as it does. The end of this process ends the other.
fn ask_below(socket: &str, program: &[String]) -> Result<u8, Failure> {
    let mut stream = UnixStream::connect(socket)?;
    let streams = (io::stdin(), io::stdout(), io::stderr());
    let fds = [streams.0.as_fd(), streams.1.as_fd(), streams.2.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    let byte = [io::IoSlice::new(b"x")];
    rustix::net::sendmsg(&stream, &byte, &mut control, SendFlags::empty())?;
    let env: Vec<(String, String)> = std::env::vars().collect();
    let directory = std::env::current_dir()?;
    writeln!(
        stream,
        "{}",
        json!({"program": program, "env": env, "directory": directory})
    )?;
    let mut status = String::new();
    io::BufReader::new(stream).read_line(&mut status)?;
    Ok(status.trim().parse().unwrap_or(99))
}

/// The other side of [`ask_below`].
fn start_below(stream: &UnixStream) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut bytes = [io::IoSliceMut::new(&mut byte)];
    rustix::net::recvmsg(stream, &mut bytes, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds: Vec<OwnedFd> = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    #[derive(Deserialize)]
    struct Asked {
        program: Vec<String>,
        env: Vec<(String, String)>,
        directory: PathBuf,
    }
    let mut line = String::new();
    io::BufReader::new(stream).read_line(&mut line)?;
    let asked: Asked = serde_json::from_str(&line)?;
    let mut fds = fds.into_iter();
    let mut next = || fds.next().map_or_else(Stdio::null, Stdio::from);
    let mut child = Command::new(&asked.program[0])
        .args(&asked.program[1..])
        .env_clear()
        .envs(asked.env)
        .current_dir(asked.directory)
        .stdin(next())
        .stdout(next())
        .stderr(next())
        .spawn()?;
    let pid = rustix::process::Pid::from_child(&child);
    let mut asker = stream.try_clone()?;
    thread::spawn(move || {
        // Nothing is written here: this is the end of who asked.
        let _ = asker.read(&mut [0]);
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    });
    let status = child.wait()?;
    let mut stream = stream;
    writeln!(stream, "{}", status.code().unwrap_or(98))
}

/// What the command line asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    New,
    Resume,
    Version,
    Login,
    Mcp,
    Other,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Mode::New => "new",
            Mode::Resume => "resume",
            Mode::Version => "version",
            Mode::Login => "login",
            Mode::Mcp => "mcp",
            Mode::Other => "other",
        }
    }
}

/// The version that it says it is.
fn version() -> String {
    std::env::var("FAKE_CODEX_VERSION").unwrap_or_else(|_| "0.169.0".to_owned())
}

struct Codex {
    mode: Mode,
    arguments: Vec<String>,
    thread: String,
    /// The prompt as an argument, and then as it was read.
    prompt: String,
    home: Option<PathBuf>,
    lock: Option<(File, PathBuf)>,
    /// How often the steps of a `repeat` were done before.
    round: u64,
    /// While this is set, SIGINT ends the fake with 1, as it does codex.
    interruptible: Arc<AtomicBool>,
}

impl Codex {
    fn new(arguments: Vec<String>) -> Result<Codex, Failure> {
        let end_of_flags = arguments.iter().position(|argument| argument == "--");
        let (flags, operands) = match end_of_flags {
            Some(end) => (&arguments[..end], &arguments[end + 1..]),
            None => (&arguments[..], &[][..]),
        };
        let flag = |name: &str| flags.iter().any(|flag| flag == name);
        let mode = match flags.first().map(String::as_str) {
            _ if flag("--version") || flag("-V") => Mode::Version,
            Some("exec") if flag("resume") => Mode::Resume,
            Some("exec") => Mode::New,
            Some("login") => Mode::Login,
            Some("mcp") => Mode::Mcp,
            _ => Mode::Other,
        };
        let (thread, prompt) = match mode {
            Mode::Resume => (
                operands.first().cloned().unwrap_or_default(),
                operands.get(1).cloned(),
            ),
            _ => (fresh_uuid()?, operands.first().cloned()),
        };
        let interruptible = Arc::new(AtomicBool::new(true));
        signal_hook::flag::register_conditional_shutdown(
            signal_hook::consts::SIGINT,
            1,
            Arc::clone(&interruptible),
        )?;
        let home = std::env::var_os("CODEX_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".codex")));
        Ok(Codex {
            mode,
            thread,
            prompt: prompt.unwrap_or_else(|| "-".to_owned()),
            home,
            lock: None,
            round: 0,
            interruptible,
            arguments,
        })
    }

    fn run(&mut self) -> Result<u8, Failure> {
        self.record(&json!({
            "argv": self.arguments,
            "mode": self.mode.name(),
            "thread": self.thread,
            "cwd": std::env::current_dir()?.to_string_lossy(),
            "env": std::env::vars_os()
                .map(|(name, value)| (name.to_string_lossy().into_owned(), json!(value.to_string_lossy())))
                .collect::<serde_json::Map<_, _>>(),
            "stdin_is": kind_of_stdin()?,
            "pid": std::process::id(),
            "ppid": std::os::unix::process::parent_id(),
        }))?;
        match self.script()? {
            Some(steps) => self.steps(&steps)?,
            None => self.behave()?,
        }
        self.release_lock()?;
        Ok(0)
    }

    /// Appends a line to the log, where there is one: in one write, so that fakes side by side can share it.
    fn record(&self, line: &Value) -> Result<(), Failure> {
        if let Some(path) = std::env::var_os("FAKE_CODEX_LOG") {
            let mut log = File::options().create(true).append(true).open(path)?;
            log.write_all(format!("{line}\n").as_bytes())?;
        }
        Ok(())
    }

    /// The steps of this run; `None` where the script leaves it to us, or there is none.
    fn script(&self) -> Result<Option<Vec<Value>>, Failure> {
        let Some(path) = std::env::var_os("FAKE_CODEX_SCRIPT").map(PathBuf::from) else {
            return Ok(None);
        };
        let text = fs::read(&path)
            .map_err(|error| wrong(format!("script '{}': {error}", path.display())))?;
        let script: Value = serde_json::from_slice(&text)?;
        let is_exec = matches!(self.mode, Mode::New | Mode::Resume);
        let steps = match &script {
            Value::Array(steps) => return Ok(is_exec.then(|| steps.clone())),
            Value::Object(script) => match script.get("runs").and_then(Value::as_array) {
                Some(runs) if is_exec => {
                    let number = count_run(&path)?;
                    runs.get(number).or(runs.last())
                }
                _ => script.get(self.mode.name()),
            },
            _ => return Err(wrong("a script is a list or an object")),
        };
        match steps {
            None => Ok(None),
            Some(Value::Array(steps)) => Ok(Some(steps.clone())),
            Some(other) => Err(wrong(format!("{other} is not a list of steps"))),
        }
    }

    fn steps(&mut self, steps: &[Value]) -> Result<(), Failure> {
        for step in steps {
            // The inner steps of a repetition are filled in when it is their turn.
            let filled = if step.get("repeat").is_some() {
                step.clone()
            } else {
                self.filled(step)?
            };
            let step = serde_json::from_value(filled)
                .map_err(|error| wrong(format!("step {step}: {error}")))?;
            self.step(step)?;
        }
        Ok(())
    }

    fn step(&mut self, step: Step) -> Result<(), Failure> {
        match step {
            Step::Out(line) => write_stdout(format!("{line}\n").as_bytes())?,
            Step::Err(line) => write_stderr(format!("{line}\n").as_bytes())?,
            Step::Event(event) => write_stdout(format!("{}\n", as_codex(&event)).as_bytes())?,
            Step::Raw(text) => write_stdout(&unescaped(&text)?)?,
            Step::RawErr(text) => write_stderr(&unescaped(&text)?)?,
            Step::Flood { to, bytes } => {
                let line = [&[b'x'; 99][..], b"\n"].concat();
                match to {
                    Stream::Stdout => pour(&mut io::stdout().lock(), &line, bytes)?,
                    Stream::Stderr => pour(&mut io::stderr().lock(), &line, bytes)?,
                }
            }
            Step::LongLine {
                prefix,
                bytes,
                suffix,
            } => {
                write_stdout(prefix.as_bytes())?;
                pour(&mut io::stdout().lock(), b"x", bytes)?;
                write_stdout(format!("{suffix}\n").as_bytes())?;
            }
            Step::Events { count, event } => {
                let event = if event.is_null() {
                    json!({"type": "item.completed",
                        "item": {"id": "item_0", "type": "agent_message", "text": "hi"}})
                } else {
                    event
                };
                let line = format!("{}\n", as_codex(&event));
                let bytes = line.len() as u64 * count;
                pour(&mut io::stdout().lock(), line.as_bytes(), bytes)?;
            }
            Step::ReadStdin => self.read_stdin()?,
            Step::CloseStdin => rustix::stdio::dup2_stdin(null()?)?,
            Step::CloseStdout => rustix::stdio::dup2_stdout(null()?)?,
            Step::CloseStderr => rustix::stdio::dup2_stderr(null()?)?,
            Step::SleepMs(time) => thread::sleep(Duration::from_millis(time).min(LONGEST_WAIT)),
            Step::WaitFor(path) => wait_for(Path::new(&path))?,
            Step::StartBelow(path) => {
                let listener = UnixListener::bind(path)?;
                thread::spawn(move || {
                    for stream in listener.incoming().flatten() {
                        // What goes wrong shows in the status that is not written.
                        thread::spawn(move || start_below(&stream));
                    }
                });
            }
            Step::Touch(path) => {
                File::create(path)?;
            }
            Step::Ignore(names) => {
                for name in names {
                    let signal = signal(&name)?;
                    if signal == Signal::INT {
                        self.interruptible.store(false, Ordering::SeqCst);
                    }
                    // A handler that does nothing but set a flag which nobody reads.
                    signal_hook::flag::register(signal.as_raw(), Arc::default())?;
                }
            }
            Step::Grandchild(grandchild) => leave(grandchild)?,
            Step::Rollout(lines) => self.append(&lines)?,
            Step::CallTool(CalledTool::Name(name)) => {
                let arguments = json!({"prompt": self.prompt});
                let text = self.call_tool(&json!({"name": name, "arguments": arguments}))?;
                let message = json!({"type": "item.completed",
                    "item": {"id": "item_0", "type": "agent_message", "text": text}});
                write_stdout(format!("{}\n", as_codex(&message)).as_bytes())?;
            }
            Step::CallTool(CalledTool::Call {
                name,
                arguments,
                call_id,
            }) => {
                let meta = json!({"callId": call_id});
                self.call_tool(&json!({"name": name, "arguments": arguments, "_meta": meta}))?;
            }
            Step::HoldLock => self.hold_lock()?,
            Step::ReleaseLock => self.release_lock()?,
            Step::Default => self.behave()?,
            Step::Repeat { times, steps } => {
                for round in 0..times {
                    self.round = round;
                    self.steps(&steps)?;
                }
            }
            Step::Exit(status) => std::process::exit(status),
            Step::Signal(name) => {
                let signal = signal(&name)?;
                // Twice: Rust's own handler of SIGSEGV only restores the default action at first.
                for _ in 0..2 {
                    rustix::process::kill_process(rustix::process::getpid(), signal)?;
                }
                // A signal that ends the process does so before kill returns; one that is ignored is a
                // mistake in the script.
                return Err(wrong(format!("still alive after {name}")));
            }
        }
        Ok(())
    }

    /// What codex does when all is well, and what it says where it is not.
    fn behave(&mut self) -> Result<(), Failure> {
        match self.mode {
            Mode::Version => write_stdout(format!("codex-cli {}\n", version()).as_bytes())?,
            Mode::Login => write_stderr(b"Logged in using an API key - sk-fake\n")?,
            Mode::Mcp => {}
            Mode::Other => {
                write_stderr(b"fake-codex: no such subcommand\n")?;
                std::process::exit(2);
            }
            Mode::New | Mode::Resume => self.turn()?,
        }
        Ok(())
    }

    fn turn(&mut self) -> Result<(), Failure> {
        if self.prompt == "-" {
            self.read_stdin()?;
        }
        if self.mode == Mode::Resume && self.rollout()?.is_none() {
            write_stderr(
                format!(
                    "Error: thread/resume: thread/resume failed: no rollout found for thread id {} (code -32600)\n",
                    self.thread
                )
                .as_bytes(),
            )?;
            std::process::exit(1);
        }
        self.hold_lock()?;
        let text = self.prompt.clone();
        let usage = match self.usage_so_far()? {
            Value::Object(mut usage) => {
                for (name, tokens) in &mut usage {
                    *tokens = json!(tokens.as_u64().unwrap_or(0) + tokens_of_a_turn(name));
                }
                Value::Object(usage)
            }
            _ => json!({"input_tokens": 100, "cached_input_tokens": 10,
                "cache_write_input_tokens": 0, "output_tokens": 5, "reasoning_output_tokens": 1}),
        };
        let now = timestamp();
        self.append(&[
            json!({"timestamp": now, "type": "response_item", "payload": {"type": "message",
                "role": "user", "content": [{"type": "input_text", "text": text}]}}),
            json!({"timestamp": now, "type": "response_item", "payload": {"type": "message",
                "role": "assistant", "content": [{"type": "output_text", "text": text}]}}),
            json!({"timestamp": now, "type": "event_msg", "payload": {"type": "token_count",
                "info": {"total_token_usage": usage}}}),
        ])?;
        for event in [
            json!({"type": "thread.started", "thread_id": self.thread}),
            json!({"type": "turn.started"}),
            json!({"type": "item.completed",
                "item": {"id": "item_0", "type": "agent_message", "text": text}}),
            json!({"type": "turn.completed", "usage": usage}),
        ] {
            write_stdout(format!("{}\n", as_codex(&event)).as_bytes())?;
        }
        Ok(())
    }

    fn read_stdin(&mut self) -> Result<(), Failure> {
        let mut bytes = Vec::new();
        io::stdin().lock().read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        self.record(
            &json!({"pid": std::process::id(), "stdin": text, "stdin_bytes": bytes.len()}),
        )?;
        self.prompt = text;
        Ok(())
    }

    /// The value with its placeholders filled in.
    fn filled(&self, value: &Value) -> Result<Value, Failure> {
        Ok(match value {
            Value::String(text) if text.contains('{') => {
                let mut text = text
                    .replace("{thread}", &self.thread)
                    .replace("{cwd}", &std::env::current_dir()?.to_string_lossy())
                    .replace("{round}", &self.round.to_string())
                    .replace("{now}", &timestamp());
                while text.contains("{uuid}") {
                    text = text.replacen("{uuid}", &fresh_uuid()?, 1);
                }
                // Last: what stands in a prompt is not a placeholder.
                Value::String(text.replace("{prompt}", &self.prompt))
            }
            Value::Array(values) => Value::Array(
                values
                    .iter()
                    .map(|value| self.filled(value))
                    .collect::<Result<_, _>>()?,
            ),
            Value::Object(map) => Value::Object(
                map.iter()
                    .map(|(name, value)| Ok((name.clone(), self.filled(value)?)))
                    .collect::<Result<_, Failure>>()?,
            ),
            other => other.clone(),
        })
    }

    fn home(&self) -> Result<&Path, Failure> {
        self.home
            .as_deref()
            .ok_or_else(|| wrong("neither CODEX_HOME nor HOME is set"))
    }

    /// The thread's rollout, where it has one.
    fn rollout(&self) -> Result<Option<PathBuf>, Failure> {
        let mut directories = vec![
            self.home()?.join("archived_sessions"),
            self.home()?.join("sessions"),
        ];
        while let Some(directory) = directories.pop() {
            let Ok(entries) = fs::read_dir(&directory) else {
                continue;
            };
            for entry in entries {
                let path = entry?.path();
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                if path.is_dir() {
                    directories.push(path);
                } else if name.ends_with(&format!("-{}.jsonl", self.thread)) {
                    return Ok(Some(path));
                }
            }
        }
        Ok(None)
    }

    fn append(&self, lines: &[Value]) -> Result<(), Failure> {
        let (path, mut text) = match self.rollout()? {
            Some(path) => (path, String::new()),
            None => {
                let now = timestamp();
                let (date, time) = (&now[..10], now[11..19].replace(':', "-"));
                let directory = self.home()?.join("sessions").join(date.replace('-', "/"));
                fs::create_dir_all(&directory)?;
                let version = version();
                let meta = json!({"timestamp": now, "type": "session_meta", "payload": {
                    "id": self.thread, "timestamp": now, "cwd": std::env::current_dir()?.to_string_lossy(),
                    "originator": "codex_exec", "cli_version": version, "source": "exec"}});
                (
                    directory.join(format!("rollout-{date}T{time}-{}.jsonl", self.thread)),
                    format!("{}\n", as_codex(&meta)),
                )
            }
        };
        for line in lines {
            match line {
                Value::String(line) => text.push_str(line),
                other => text.push_str(&as_codex(other)),
            }
            text.push('\n');
        }
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        file.write_all(text.as_bytes())?;
        Ok(())
    }

    /// The thread's last total in its rollout; null where there is none.
    fn usage_so_far(&self) -> Result<Value, Failure> {
        let Some(path) = self.rollout()? else {
            return Ok(Value::Null);
        };
        let text = fs::read_to_string(path)?;
        Ok(text
            .lines()
            .rev()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .find(|line| line["payload"]["type"] == "token_count")
            .map_or(Value::Null, |line| {
                line["payload"]["info"]["total_token_usage"].clone()
            }))
    }

    /// Calls a tool with these parameters; the text that it gave.
    fn call_tool(&self, call: &Value) -> Result<String, Failure> {
        let lent = self
            .arguments
            .iter()
            .find(|argument| argument.starts_with("mcp_servers.") && argument.contains("args="))
            .ok_or_else(|| wrong("no MCP server is lent"))?;
        // TOML's strings and lists of them are JSON's, as far as they are used here.
        let value = |key: &str| {
            let (_, rest) = lent.split_once(key)?;
            serde_json::Deserializer::from_str(rest)
                .into_iter::<Value>()
                .next()?
                .ok()
        };
        let command = value("command=").unwrap_or_default();
        let arguments: Vec<String> = serde_json::from_value(value("args=").unwrap_or_default())?;
        let mut server = Command::new(command.as_str().unwrap_or_default())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (Some(mut stdin), Some(stdout)) = (server.stdin.take(), server.stdout.take()) else {
            return Err(wrong("both are pipes"));
        };
        for message in [
            json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {"protocolVersion":
                "2025-06-18", "capabilities": {}, "clientInfo": {"name": "fake", "version": "1"}}}),
            json!({"jsonrpc": "2.0", "method": "notifications/initialized"}),
            json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}),
        ] {
            writeln!(stdin, "{message}")?;
        }
        let mut text = String::new();
        for line in io::BufReader::new(stdout).lines() {
            let message: Value = serde_json::from_str(&line?)?;
            if message["id"] == 1 {
                let answer = message["result"]["content"][0]["text"].as_str();
                text = answer.unwrap_or("no answer").to_owned();
                break;
            }
        }
        drop(stdin);
        server.wait()?;
        Ok(text)
    }

    fn hold_lock(&mut self) -> Result<(), Failure> {
        if self.lock.is_some() {
            return Ok(());
        }
        let directory = self.home()?.join("thread-writer-locks");
        fs::create_dir_all(&directory)?;
        let coordination = coordinate(&directory)?;
        let path = directory.join(format!("{}.lock", self.thread));
        let lock = open_lock(&path)?;
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            write_stderr(
                format!(
                    "Error: thread/resume: thread/resume failed: thread {} already has an active writer (code -32600)\n",
                    self.thread
                )
                .as_bytes(),
            )?;
            std::process::exit(1);
        }
        drop(coordination);
        self.lock = Some((lock, path));
        Ok(())
    }

    fn release_lock(&mut self) -> Result<(), Failure> {
        if let Some((lock, path)) = self.lock.take() {
            let directory = self.home()?.join("thread-writer-locks");
            let coordination = coordinate(&directory)?;
            fs::remove_file(path)?;
            drop(lock);
            drop(coordination);
        }
        Ok(())
    }
}

fn coordinate(directory: &Path) -> Result<File, Failure> {
    let file = open_lock(&directory.join(".coordination.lock"))?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
    Ok(file)
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
}

/// The value as one line, with the members first that codex writes first: serde_json sorts them by name,
/// and a reader that is quick with codex's order should be measured with it.
fn as_codex(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let first = ["timestamp", "ordinal", "id", "type"];
            let mut members: Vec<_> = map.iter().collect();
            members.sort_by_key(|(name, _)| {
                first
                    .iter()
                    .position(|known| known == name)
                    .unwrap_or(first.len())
            });
            let members: Vec<String> = members
                .into_iter()
                .map(|(name, value)| format!("{}:{}", json!(name), as_codex(value)))
                .collect();
            format!("{{{}}}", members.join(","))
        }
        Value::Array(values) => {
            let values: Vec<String> = values.iter().map(as_codex).collect();
            format!("[{}]", values.join(","))
        }
        other => other.to_string(),
    }
}

fn tokens_of_a_turn(name: &str) -> u64 {
    match name {
        "input_tokens" => 100,
        "cached_input_tokens" => 10,
        "output_tokens" => 5,
        "reasoning_output_tokens" => 1,
        _ => 0,
    }
}

/// Which run of this script it is, from 0: the length of a file beside it, which grows by a byte a run.
fn count_run(script: &Path) -> Result<usize, Failure> {
    let mut path = script.as_os_str().to_owned();
    path.push(".runs");
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
    let number = file.metadata()?.len();
    file.write_all(b".")?;
    usize::try_from(number).map_err(|_| wrong("too many runs"))
}

fn write_stdout(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

fn write_stderr(bytes: &[u8]) -> io::Result<()> {
    io::stderr().lock().write_all(bytes)
}

/// Writes `bytes` bytes of `pattern` over and over, in big blocks.
fn pour(to: &mut dyn Write, pattern: &[u8], bytes: u64) -> io::Result<()> {
    // A bigger pipe is fewer switches between the two processes; where it is none, or the limit is reached,
    // it is only slower.
    let _ = rustix::pipe::fcntl_setpipe_size(io::stdout(), 1 << 20);
    let block = pattern.repeat((1 << 20) / pattern.len() + 1);
    let mut left = bytes;
    while left > 0 {
        let part = usize::try_from(left)
            .unwrap_or(block.len())
            .min(block.len());
        to.write_all(&block[..part])?;
        left -= part as u64;
    }
    to.flush()
}

fn null() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/null")
}

fn kind_of_stdin() -> io::Result<&'static str> {
    let stdin = File::from(rustix::io::dup(io::stdin())?);
    let kind = stdin.metadata()?.file_type();
    Ok(if kind.is_fifo() || kind.is_socket() {
        "pipe"
    } else if kind.is_char_device() {
        "device"
    } else {
        "file"
    })
}

fn wait_for(path: &Path) -> Result<(), Failure> {
    let start = Instant::now();
    while !path.exists() {
        if start.elapsed() > LONGEST_WAIT {
            return Err(Failure {
                status: 99,
                message: format!("'{}' did not come", path.display()),
            });
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn signal(name: &str) -> Result<Signal, Failure> {
    Ok(match name {
        "INT" => Signal::INT,
        "TERM" => Signal::TERM,
        "HUP" => Signal::HUP,
        "KILL" => Signal::KILL,
        "ABRT" => Signal::ABORT,
        "SEGV" => Signal::SEGV,
        "USR1" => Signal::USR1,
        other => return Err(wrong(format!("unknown signal {other}"))),
    })
}

fn unescaped(text: &str) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match (first, rest) {
            (b'\\', [b'\\', after @ ..]) => {
                bytes.push(b'\\');
                rest = after;
            }
            (b'\\', [b'x', high, low, after @ ..]) => {
                let digits = [*high, *low];
                let digits = std::str::from_utf8(&digits).unwrap_or_default();
                bytes.push(
                    u8::from_str_radix(digits, 16)
                        .map_err(|_| wrong("two hex digits after \\x"))?,
                );
                rest = after;
            }
            _ => bytes.push(*first),
        }
    }
    Ok(bytes)
}

/// Starts a process that outlives us, and waits until it is as it was asked to be.
fn leave(grandchild: Grandchild) -> Result<(), Failure> {
    let (mut ready, theirs) = UnixStream::pair()?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("--grandchild")
        .arg(serde_json::to_string(&grandchild)?)
        .stdin(Stdio::from(OwnedFd::from(theirs)));
    if grandchild.setpgid {
        command.process_group(0);
    }
    if !grandchild.holds_pipes {
        command.stdout(Stdio::null()).stderr(Stdio::null());
    }
    command.spawn()?;
    // `Command` holds a copy of their end.
    drop(command);
    // The end of its stdin is its word that it is ready.
    ready.read_to_end(&mut Vec::new())?;
    Ok(())
}

fn be_grandchild(how: &str) -> Result<(), Failure> {
    let how: Grandchild = serde_json::from_str(how)?;
    if how.ignores_signals {
        for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
            signal_hook::flag::register(signal.as_raw(), Arc::default())?;
        }
    }
    if how.setsid {
        rustix::process::setsid()?;
    }
    rustix::stdio::dup2_stdin(null()?)?;
    thread::sleep(Duration::from_secs(how.seconds).min(LONGEST_WAIT));
    Ok(())
}

/// A UUID of version 7, as codex's thread ids are.
fn fresh_uuid() -> Result<String, Failure> {
    let mut random = [0; 10];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    let millis = u64::try_from(since_epoch().as_millis()).unwrap_or(0);
    let hex: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!(
        "{:08x}-{:04x}-7{}-a{}-{}",
        millis >> 16,
        millis & 0xffff,
        &hex[..3],
        &hex[3..6],
        &hex[6..18]
    ))
}

fn since_epoch() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// The time in UTC, as codex writes it.
fn timestamp() -> String {
    let now = since_epoch();
    let (days, seconds) = (now.as_secs() / 86_400, now.as_secs() % 86_400);
    // Count from a March, so that the leap day ends a year; 146,097 days are 400 years.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = match month {
        0..=9 => (era * 400 + year, month + 3),
        _ => (era * 400 + year + 1, month - 9),
    };
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        seconds / 3_600,
        seconds / 60 % 60,
        seconds % 60,
        now.subsec_millis()
    )
}
