//! How fast and how small the program is, beside what does a part of the same work: `make bench`.
//!
//! Every figure is a ratio to something that runs on the same machine in the same minute, the two in turn. Of
//! several runs the quickest ones are compared, which other work on the machine disturbs least, and of turns
//! the medians, since a turn's time has a spread of its own. A row whose goal is missed makes the run fail; what
//! is not installed is told and left out. Reading is done on two threads: a machine with two processors that
//! are otherwise idle is what the goals are for.
//!
//! `PLEXUM_BENCH_BYTES` is the size of the rollout (300 MB), `PLEXUM_BENCH_LARGE` of the large one (1 GB; 0 is
//! none). Files are made below the build's directory and removed at the end.

use rollout::{Sum, Truth};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::error::Error;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

mod rollout;
mod warm;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const PROGRAM: &str = env!("CARGO_BIN_EXE_plexum-openai");

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let result = match arguments.iter().position(|it| it == "--full-parse") {
        Some(at) => full_parse(&arguments[at + 1]).map(|()| true),
        None => Bench::run(),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // Nobody is left to tell where even stderr is gone.
            let _ = writeln!(io::stderr(), "bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What `parse-rollout` does, the plain way: every line parsed by serde_json.
fn full_parse(path: &str) -> Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    let mut open: HashMap<String, Value> = HashMap::new();
    for line in BufReader::with_capacity(1 << 20, File::open(path)?).lines() {
        let mut record: Value = serde_json::from_str(&line?)?;
        if record["type"] != "response_item" {
            continue;
        }
        let payload = &mut record["payload"];
        let Some(id) = payload["call_id"].as_str().map(str::to_owned) else {
            continue;
        };
        let output = payload["output"].take();
        if output.is_null() {
            let input = match payload["arguments"].as_str() {
                Some(arguments) => serde_json::from_str(arguments)?,
                None => payload["input"].take(),
            };
            let event =
                json!({"type": "tool_use", "id": id, "name": payload["name"], "input": input});
            open.insert(id, event);
        } else if let Some(used) = open.remove(&id) {
            let event =
                json!({"type": "tool_result", "id": id, "content": output, "is_error": false});
            writeln!(out, "{used}\n{event}")?;
        }
    }
    Ok(out.flush()?)
}

/// What does the same with jq.
const JQ: &str = r#"
foreach (inputs | select(.type == "response_item") | .payload | select(.call_id)) as $it ({open: {}};
  if $it.output then
    .told = [.open[$it.call_id], {type: "tool_result", id: $it.call_id, content: $it.output, is_error: false}]
    | del(.open[$it.call_id])
  else
    .told = null
    | .open[$it.call_id] = {type: "tool_use", id: $it.call_id, name: $it.name,
        input: (if $it.arguments then ($it.arguments | fromjson) else $it.input end)}
  end;
  .told | select(.) | .[])
"#;

/// One run of something.
#[derive(Clone, Copy, Debug)]
struct Run {
    time: Duration,
    /// The most memory that it had at once, in KiB.
    memory: u64,
}

struct Bench {
    directory: PathBuf,
    kept: bool,
}

impl Drop for Bench {
    fn drop(&mut self) {
        // What is left over is below target, which `cargo clean` empties.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Bench {
    /// Runs everything; `false` where a goal was missed.
    fn run() -> Result<bool> {
        let directory =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        let mut bench = Bench {
            directory,
            kept: true,
        };
        bench.start()?;
        let size = |name: &str, default: u64| {
            let given = std::env::var(name)
                .ok()
                .and_then(|bytes| bytes.parse().ok());
            given.unwrap_or(default)
        };
        let rollout = bench.directory.join("rollout.jsonl");
        let truth = rollout::make(&rollout, size("PLEXUM_BENCH_BYTES", 300_000_000))?;
        bench.parse_rollout(&rollout, &truth)?;
        bench.mutate(&rollout, &truth)?;
        let large = size("PLEXUM_BENCH_LARGE", 1_000_000_000);
        if large > 0 {
            let truth = rollout::make(&rollout, large)?;
            bench.parse_large(&rollout, &truth)?;
        }
        fs::remove_file(&rollout)?;
        bench.pump()?;
        bench.turn()?;
        Ok(bench.kept)
    }

    fn say(&self, text: &str) -> Result<()> {
        Ok(writeln!(io::stdout(), "{text}")?)
    }

    fn head(&self, text: &str) -> Result<()> {
        self.say(&format!("\n{text}"))
    }

    fn row(&mut self, what: &str, found: &str, goal: &str, met: bool) -> Result<()> {
        self.kept &= met;
        let mark = match (goal, met) {
            ("", _) => "",
            (_, true) => "ok",
            (_, false) => "MISSED",
        };
        let row = format!("  {what:<44} {found:>12}  {goal:<10} {mark}");
        self.say(row.trim_end())
    }

    fn ratio(&mut self, what: &str, ratio: f64, most: f64) -> Result<()> {
        self.row(
            what,
            &format!("{ratio:.2}x"),
            &format!("<= {most}x"),
            ratio <= most,
        )
    }

    fn memory(&mut self, what: &str, runs: &[Run], most: u64) -> Result<()> {
        let memory = runs.iter().map(|run| run.memory).max().unwrap_or(0) as f64 / 1024.0;
        let goal = if most > 0 {
            format!("< {most} MiB")
        } else {
            String::new()
        };
        self.row(
            what,
            &format!("{memory:.1} MiB"),
            &goal,
            most == 0 || memory < most as f64,
        )
    }

    fn start(&mut self) -> Result<()> {
        self.head("start")?;
        for (flag, most) in [("--version", 3.0), ("--help", 5.0)] {
            let mut runs = Vec::new();
            for _ in 0..41 {
                runs.push(run(Command::new(PROGRAM).arg(flag))?);
            }
            let time = quickest(&runs).as_secs_f64() * 1e3;
            self.row(
                flag,
                &format!("{time:.2} ms"),
                &format!("< {most} ms"),
                time < most,
            )?;
        }
        let size = fs::metadata(PROGRAM)?.len() as f64 / 1e6;
        self.row(
            "the program",
            &format!("{size:.2} MB"),
            "< 2 MB",
            size < 2.0,
        )
    }

    fn parse_rollout(&mut self, file: &Path, truth: &Truth) -> Result<()> {
        let bytes = fs::metadata(file)?.len();
        self.head(&format!(
            "parse-rollout, {} MB with {} pairs",
            bytes / 1_000_000,
            truth.pairs
        ))?;
        self.right(file, truth)?;
        let (mut ours, mut wc) = (Vec::new(), Vec::new());
        for _ in 0..31 {
            wc.push(run(Command::new("wc").arg("-l").arg(file))?);
            ours.push(run(Command::new(PROGRAM).arg("parse-rollout").arg(file))?);
        }
        self.row("parse-rollout", &millis(quickest(&ours)), "", true)?;
        self.row("wc -l", &millis(quickest(&wc)), "", true)?;
        self.ratio("to wc -l", quotient(&ours, &wc), 2.0)?;
        self.memory("memory", &ours, 24)?;
        let myself = std::env::current_exe()?;
        let mut full = Vec::new();
        for _ in 0..3 {
            full.push(run(Command::new(&myself).arg("--full-parse").arg(file))?);
        }
        self.row("a serde_json loop", &millis(quickest(&full)), "", true)?;
        self.row(
            "times as fast as it",
            &format!("{:.1}x", quotient(&full, &ours)),
            "",
            true,
        )?;
        self.memory("memory of that", &full, 0)?;
        match run(Command::new("jq").args(["-nc", JQ]).arg(file)) {
            Ok(jq) => {
                let times = quotient(&[jq], &ours);
                self.row("jq", &millis(quickest(&[jq])), "", true)?;
                self.row(
                    "times as fast as jq",
                    &format!("{times:.0}x"),
                    ">= 50x",
                    times >= 50.0,
                )?;
                self.memory("memory of that", &[jq], 0)
            }
            Err(error) => self.say(&format!("  jq: skipped: {error}")),
        }
    }

    fn parse_large(&mut self, file: &Path, truth: &Truth) -> Result<()> {
        let bytes = fs::metadata(file)?.len();
        self.head(&format!("parse-rollout, {} MB", bytes / 1_000_000))?;
        self.right(file, truth)?;
        let ours = run(Command::new(PROGRAM).arg("parse-rollout").arg(file))?;
        self.row("parse-rollout", &millis(quickest(&[ours])), "", true)?;
        self.memory("memory", &[ours], 24)
    }

    /// Sees that every pair comes out as it went in.
    fn right(&mut self, file: &Path, truth: &Truth) -> Result<()> {
        let mut child = Command::new(PROGRAM)
            .arg("parse-rollout")
            .arg(file)
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines =
            BufReader::with_capacity(1 << 20, child.stdout.take().expect("piped")).lines();
        let (mut sum, mut pairs) = (Sum::default(), 0);
        while let Some(used) = lines.next() {
            let used: Value = serde_json::from_str(&used?)?;
            let result: Value = serde_json::from_str(&lines.next().ok_or("a call alone")??)?;
            let text = |name: &str| used[name].as_str().unwrap_or_default();
            if used["id"] == result["id"] && result["is_error"] == false {
                sum.add(text("id"), text("name"), &used["input"], &result["content"]);
                pairs += 1;
            }
        }
        child.wait()?;
        let right = sum == truth.sum && pairs == truth.pairs;
        self.row("pairs that are right", &pairs.to_string(), "all", right)
    }

    fn mutate(&mut self, file: &Path, truth: &Truth) -> Result<()> {
        self.head("mutate, 20 calls in the same file")?;
        let copy = self.directory.join("copy.jsonl");
        let step = truth.ids.len() / 20;
        let (mut ours, mut plain) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            plain.push(run(Command::new("sh")
                .args(["-c", "cp \"$1\" \"$2\" && sync \"$2\"", "sh"])
                .args([file, &copy]))?);
            let ids = truth.ids.iter().step_by(step).take(20);
            let done = run(Command::new(PROGRAM)
                .arg("mutate")
                .arg("--rollout")
                .arg(&copy)
                .args(ids))?;
            ours.push(done);
        }
        fs::remove_file(&copy)?;
        self.row("mutate", &millis(quickest(&ours)), "", true)?;
        self.row("cp and fsync", &millis(quickest(&plain)), "", true)?;
        self.ratio("to cp and fsync", quotient(&ours, &plain), 1.5)?;
        self.memory("memory", &ours, 24)
    }

    /// A place for turns: the command that runs one in it.
    fn place(&self, name: &str, codex: &Path) -> Result<Place> {
        let root = self.directory.join(name);
        for directory in [
            "home",
            "codex",
            "tmp",
            "workspace",
            "profile/plugins/plexum-openai-provider",
        ] {
            fs::create_dir_all(root.join(directory))?;
        }
        let config = root.join("profile/plugins/plexum-openai-provider/config.json");
        fs::write(config, json!({"binary": codex}).to_string())?;
        Ok(Place { root })
    }

    fn pump(&mut self) -> Result<()> {
        let fake = example("fake-codex")?;
        let place = self.place("pump", &fake)?;
        let thread = json!({"event": {"type": "thread.started", "thread_id": "{thread}"}});
        let end = json!({"event": {"type": "turn.completed", "usage": {"input_tokens": 1, "output_tokens": 1}}});
        let turn = |steps: Value| -> Result<Run> {
            let script =
                json!(["read_stdin", thread, {"event": {"type": "turn.started"}}, steps, end]);
            fs::write(place.root.join("script.json"), script.to_string())?;
            run(place
                .command(PROGRAM)
                .args(["turn", "--fresh", "--json", "hi"]))
        };
        self.head("a turn of a scripted codex")?;
        const EVENTS: u64 = 1_000_000;
        let (mut many, mut none) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            none.push(turn(json!({"events": {"count": 1}}))?);
            many.push(turn(json!({"events": {"count": EVENTS}}))?);
        }
        let time = quickest(&many)
            .saturating_sub(quickest(&none))
            .as_secs_f64();
        let rate = EVENTS as f64 / time / 1e6;
        self.row(
            "small events",
            &format!("{rate:.2} M/s"),
            ">= 1.5 M/s",
            rate >= 1.5,
        )?;
        self.memory("memory", &many, 24)?;
        let long = turn(
            json!({"long_line": {"prefix": "{\"type\":\"x\",\"text\":\"", "bytes": 200_000_000, "suffix": "\"}"}}),
        )?;
        self.row("a line of 200 MB", &millis(quickest(&[long])), "", true)?;
        self.memory("memory", &[long], 64)
    }

    fn turn(&mut self) -> Result<()> {
        self.head("a turn of the real codex against a model on loopback")?;
        let Some(codex) = std::env::var_os("PLEXUM_BENCH_CODEX").map(PathBuf::from) else {
            return self.say("  skipped: PLEXUM_BENCH_CODEX names no codex; 'make bench' sets it");
        };
        if !codex.is_file() {
            return self.say(&format!("  skipped: '{}' is not there", codex.display()));
        }
        let codex = fs::canonicalize(codex)?;
        let place = self.place("turn", &codex)?;
        let model = warm::model(&place, &json!([{"text": "Hello."}]))?;
        // What the program itself gives to codex.
        let bare = [
            "exec",
            "--skip-git-repo-check",
            "--dangerously-bypass-approvals-and-sandbox",
            "--json",
            "-c",
            "features.unbounded_connection_retries=false",
            "--",
            "hi",
        ];
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..40 {
            let one = run(place.command(&codex).args(bare))?;
            let other = run(place
                .command(PROGRAM)
                .args(["turn", "--fresh", "--json", "hi"]))?;
            // The first ones find nothing in the caches.
            if round > 0 {
                theirs.push(one);
                ours.push(other);
            }
        }
        self.row("turn", &millis(median(&ours)), "", true)?;
        self.row("codex exec", &millis(median(&theirs)), "", true)?;
        let ratio = median(&ours).as_secs_f64() / median(&theirs).as_secs_f64();
        self.ratio("to codex exec", ratio, 1.03)?;
        self.memory("memory", &ours, 24)?;
        drop(model);
        self.warm(&codex)
    }
}

struct Place {
    root: PathBuf,
}

impl Place {
    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("LOOPBACK_KEY", "any")
            .env("HOME", self.root.join("home"))
            .env("TMPDIR", self.root.join("tmp"))
            .env("CODEX_HOME", self.root.join("codex"))
            .env("PLEXUM_PROFILE_ROOT", self.root.join("profile"))
            .env("FAKE_CODEX_SCRIPT", self.root.join("script.json"))
            .current_dir(self.root.join("workspace"));
        command
    }
}

/// A child that does not outlive the run.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An example of this package, which `make bench` has built.
fn example(name: &str) -> Result<PathBuf> {
    let path = Path::new(PROGRAM).with_file_name("examples").join(name);
    if path.is_file() {
        Ok(path)
    } else {
        Err(format!("'{}' is missing: run 'make bench'", path.display()).into())
    }
}

/// Runs a command to its end, its output to nowhere.
fn run(command: &mut Command) -> Result<Run> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let program = command.get_program().to_string_lossy().into_owned();
    let start = Instant::now();
    let mut child = Running(
        command
            .spawn()
            .map_err(|error| format!("{program}: {error}"))?,
    );
    let status = format!("/proc/{}/status", child.0.id());
    let mut memory = 0;
    // The kernel keeps the most that there was until the process is waited for, but not in here: looked at
    // every other millisecond, it lacks at most the last one's.
    let looker = std::thread::spawn(move || {
        while let Some(now) = peak(&status) {
            memory = now;
            std::thread::sleep(Duration::from_millis(2));
        }
        memory
    });
    let ended = child.0.wait()?;
    let time = start.elapsed();
    let memory = looker.join().expect("the looker does not panic");
    if !ended.success() {
        return Err(format!("{program}: {ended}").into());
    }
    Ok(Run { time, memory })
}

/// The most memory that a process had so far, in KiB; `None` once it is over.
fn peak(status: &str) -> Option<u64> {
    let text = fs::read_to_string(status).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

fn median(runs: &[Run]) -> Duration {
    let mut times: Vec<Duration> = runs.iter().map(|run| run.time).collect();
    times.sort();
    times[times.len() / 2]
}

fn quickest(runs: &[Run]) -> Duration {
    let times = runs.iter().map(|run| run.time);
    times.min().expect("one run at least")
}

fn quotient(ours: &[Run], theirs: &[Run]) -> f64 {
    quickest(ours).as_secs_f64() / quickest(theirs).as_secs_f64()
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}
