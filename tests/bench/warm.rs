//! Turns of a plugin that keeps `codex app-server`, beside `codex exec resume` and beside a client of `codex app-server`
//! that does nothing but read.

use super::{Bench, Place, Result, Running, example, millis};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// How many turns of each kind are compared.
const ROUNDS: usize = 25;
/// How many agents are kept for the figure of memory.
const AGENTS: usize = 16;
/// How many deltas a long message has.
const DELTAS: usize = 30_000;

/// One turn: when its first text came, and its end.
#[derive(Clone, Copy)]
struct Timed {
    text: Duration,
    end: Duration,
}

fn median(turns: &[Timed], of: impl Fn(&Timed) -> Duration) -> Duration {
    let mut times: Vec<Duration> = turns.iter().map(of).collect();
    times.sort();
    times[times.len() / 2]
}

/// The median of what each turn took, to what the one took that ran beside it: the machine is not as quick in every
/// second as in the one before.
fn paired(ours: &[Timed], theirs: &[Timed], of: impl Fn(&Timed) -> Duration) -> f64 {
    let pairs = ours.iter().zip(theirs);
    let mut ratios: Vec<f64> = pairs
        .map(|(one, other)| of(one).as_secs_f64() / of(other).as_secs_f64())
        .collect();
    ratios.sort_by(f64::total_cmp);
    ratios[ratios.len() / 2]
}

/// A process that talks JSON lines.
struct Peer {
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    process: Running,
    last_id: u64,
}

impl Peer {
    fn start(command: &mut Command) -> Result<Peer> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Peer {
            stdin: child.stdin.take().expect("piped"),
            lines: BufReader::new(child.stdout.take().expect("piped")).lines(),
            process: Running(child),
            last_id: 0,
        })
    }

    fn send(&mut self, method: &str, params: &Value) -> Result<u64> {
        self.last_id += 1;
        let request =
            json!({"jsonrpc": "2.0", "id": self.last_id, "method": method, "params": params});
        writeln!(self.stdin, "{request}")?;
        Ok(self.last_id)
    }

    /// The next line, as it is.
    fn line(&mut self) -> Result<String> {
        Ok(self.lines.next().ok_or("it has ended")??)
    }

    /// Sends a request and waits for its result.
    fn call(&mut self, method: &str, params: &Value) -> Result<Value> {
        let id = self.send(method, params)?;
        loop {
            let message: Value = serde_json::from_str(&self.line()?)?;
            if message["id"] == id && message.get("method").is_none() {
                return match message.get("result") {
                    Some(result) => Ok(result.clone()),
                    None => Err(format!("{method}: {}", message["error"]).into()),
                };
            }
        }
    }

    /// Sends a request that runs a turn, and reads up to a line with `end`; the first line with `text` is noted.
    fn turn(&mut self, method: &str, params: &Value, text: &str, end: &str) -> Result<Timed> {
        let begun = Instant::now();
        self.send(method, params)?;
        let mut first = None;
        loop {
            let line = self.line()?;
            if first.is_none() && line.contains(text) {
                first = Some(begun.elapsed());
            }
            if line.contains(end) {
                let end = begun.elapsed();
                let text = first.unwrap_or(end);
                return Ok(Timed { text, end });
            }
        }
    }
}

/// The plugin, initialised.
fn plugin(place: &Place) -> Result<Peer> {
    let mut plugin = Peer::start(&mut place.command(super::PROGRAM))?;
    let client = json!({"name": "bench", "version": "1"});
    let params = json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client});
    plugin.call("initialize", &params)?;
    Ok(plugin)
}

fn stream(plugin: &mut Peer, workspace: &Path) -> Result<Timed> {
    let messages = json!([{"role": "user", "content": "hi"}]);
    let params = json!({"agent": {"workspace": workspace}, "request": {"messages": messages}});
    let timed = plugin.turn(
        "plexum/provider/stream",
        &params,
        "\"text_delta\"",
        "\"stop_reason\":\"end_turn\",\"thread_id\"",
    )?;
    Ok(timed)
}

/// A `codex app-server` with a thread, and what runs a turn in that.
fn app_server(place: &Place, codex: &Path) -> Result<(Peer, Value)> {
    let mut server =
        Peer::start(
            place
                .command(codex)
                .args(["app-server", "-c", "features.goals=false"]),
        )?;
    let client = json!({"name": "bench", "title": null, "version": "1"});
    let capabilities = json!({"experimentalApi": true});
    server.call(
        "initialize",
        &json!({"clientInfo": client, "capabilities": capabilities}),
    )?;
    let workspace = place.root.join("workspace");
    let params = json!({"cwd": workspace, "approvalPolicy": "never"});
    let thread = server.call("thread/start", &params)?["thread"]["id"].take();
    let params = json!({"threadId": thread, "input": [{"type": "text", "text": "hi"}]});
    Ok((server, params))
}

fn read_turn(server: &mut Peer, params: &Value) -> Result<Timed> {
    server.turn(
        "turn/start",
        params,
        "\"item/agentMessage/delta\"",
        "\"turn/completed\"",
    )
}

/// A `codex exec resume`, to its first text and its exit.
fn exec_resume(place: &Place, codex: &Path, thread: &str) -> Result<Timed> {
    let begun = Instant::now();
    let mut child = place
        .command(codex)
        .args(["exec", "--skip-git-repo-check"])
        .args(["--dangerously-bypass-approvals-and-sandbox", "--json"])
        .args(["resume", "--", thread, "hi"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut text = None;
    for line in BufReader::new(child.stdout.take().expect("piped")).lines() {
        if line?.contains("\"agent_message\"") {
            text.get_or_insert(begun.elapsed());
        }
    }
    child.wait()?;
    let end = begun.elapsed();
    let text = text.unwrap_or(end);
    Ok(Timed { text, end })
}

/// Starts a model with this script, and leads the place's codex to it.
pub(super) fn model(place: &Place, script: &Value) -> Result<Running> {
    let path = place.root.join("model.json");
    fs::write(&path, script.to_string())?;
    let mut model = Running(
        Command::new(example("loopback-model")?)
            .arg("--script")
            .arg(&path)
            .arg("--write-codex-home")
            .arg(place.root.join("codex"))
            .stdout(Stdio::piped())
            .spawn()?,
    );
    let mut listening = String::new();
    BufReader::new(model.0.stdout.take().expect("piped")).read_line(&mut listening)?;
    Ok(model)
}

/// Has the place's turns run by `codex app-server`, kept for so long.
fn keep(place: &Place, codex: &Path, seconds: u64) -> Result<()> {
    let config = place
        .root
        .join("profile/plugins/plexum-openai-provider/config.json");
    let keys =
        json!({"binary": codex, "backend": "app-server", "warm_secs": seconds, "warm_max": AGENTS});
    Ok(fs::write(config, keys.to_string())?)
}

impl Bench {
    pub(super) fn warm(&mut self, codex: &Path) -> Result<()> {
        self.head("a turn of a codex app-server that is kept, and of one that is started")?;
        let script = json!([{"text": "Hello, you.", "words": true}]);
        let places = ["exec", "warm", "cold", "bare"].map(|name| self.place(name, codex));
        let [exec, warm, cold, bare] = places;
        let (exec, warm, cold, bare) = (exec?, warm?, cold?, bare?);
        let mut models = Vec::new();
        for place in [&exec, &warm, &cold, &bare] {
            models.push(model(place, &script)?);
        }
        keep(&warm, codex, 600)?;
        keep(&cold, codex, 0)?;
        let thread = first_thread(&exec, codex)?;
        let (mut warm_plugin, mut cold_plugin) = (plugin(&warm)?, plugin(&cold)?);
        let (mut server, params) = app_server(&bare, codex)?;
        let workspace = |place: &Place| place.root.join("workspace");
        let (mut execs, mut warms, mut colds, mut bares) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            let turns = [
                exec_resume(&exec, codex, &thread)?,
                stream(&mut warm_plugin, &workspace(&warm))?,
                stream(&mut cold_plugin, &workspace(&cold))?,
                read_turn(&mut server, &params)?,
            ];
            // The first ones begin threads and find nothing in the caches.
            if round > 0 {
                execs.push(turns[0]);
                warms.push(turns[1]);
                colds.push(turns[2]);
                bares.push(turns[3]);
            }
        }
        let end = |turns: &[Timed]| median(turns, |it| it.end);
        let text = |turns: &[Timed]| median(turns, |it| it.text);
        self.row("kept: a turn", &millis(end(&warms)), "", true)?;
        self.row("its first text", &millis(text(&warms)), "", true)?;
        self.row("codex exec resume", &millis(end(&execs)), "", true)?;
        self.row("its first text", &millis(text(&execs)), "", true)?;
        self.ratio(
            "kept, to codex exec resume",
            paired(&warms, &execs, |it| it.end),
            0.28,
        )?;
        self.ratio(
            "first text, to its",
            paired(&warms, &execs, |it| it.text),
            0.25,
        )?;
        self.ratio(
            "started, to codex exec resume",
            paired(&colds, &execs, |it| it.end),
            0.95,
        )?;
        self.row("a bare client's turn", &millis(end(&bares)), "", true)?;
        self.row("its first delta", &millis(text(&bares)), "", true)?;
        let more = text(&warms).saturating_sub(text(&bares));
        let most = Duration::from_millis(5);
        self.row(
            "first text, over that",
            &millis(more),
            "< 5 ms",
            more < most,
        )?;
        for number in 0..AGENTS {
            stream(&mut warm_plugin, &warm.root.join(format!("agent{number}")))?;
        }
        let memory = resident(warm_plugin.process.0.id())? as f64 / 1024.0;
        let found = format!("{memory:.1} MiB");
        self.row(
            "memory with 16 of them kept",
            &found,
            "< 10 MiB",
            memory < 10.0,
        )?;
        drop((models, server, warm_plugin, cold_plugin));
        self.deltas(codex)
    }

    /// A message of very many deltas, beside a client that only reads it.
    fn deltas(&mut self, codex: &Path) -> Result<()> {
        let script = json!([{"text": "word ".repeat(DELTAS), "words": true}]);
        let (warm, bare) = (
            self.place("deltas", codex)?,
            self.place("deltas-bare", codex)?,
        );
        let _models = (model(&warm, &script)?, model(&bare, &script)?);
        keep(&warm, codex, 600)?;
        let mut plugin = plugin(&warm)?;
        let (mut server, params) = app_server(&bare, codex)?;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..7 {
            ours.push(stream(&mut plugin, &warm.root.join("workspace"))?);
            theirs.push(read_turn(&mut server, &params)?);
        }
        let ratio = paired(&ours, &theirs, |it| it.end);
        let (ours, theirs) = (median(&ours, |it| it.end), median(&theirs, |it| it.end));
        self.row("a turn with 30,000 deltas", &millis(ours), "", true)?;
        self.row("a bare client's", &millis(theirs), "", true)?;
        self.ratio("to that", ratio, 1.1)
    }
}

/// Begins a thread by `codex exec`; its id.
fn first_thread(place: &Place, codex: &Path) -> Result<String> {
    let output = place
        .command(codex)
        .args(["exec", "--skip-git-repo-check"])
        .args([
            "--dangerously-bypass-approvals-and-sandbox",
            "--json",
            "--",
            "hi",
        ])
        .stdin(Stdio::null())
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    let begun: Value = serde_json::from_str(text.lines().next().unwrap_or_default())?;
    let id = begun["thread_id"].as_str().ok_or("codex names no thread")?;
    Ok(id.to_owned())
}

/// What a process has in memory now, in KiB.
fn resident(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let line = line.ok_or("the kernel does not tell")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
