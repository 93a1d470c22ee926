//! Turns by `codex app-server`, for what no other backend does: servers that are kept, deltas, words of the user into a
//! running turn. Everything that both do is tested on both where it stands (`real_codex!`).

use crate::support::codex::{self, APP_SERVER, CHANGED, real_codex_by, run_at_once, run_on};
use crate::support::daemon::check_turn;
use crate::support::ps;
use crate::support::{Cli, Daemon, Lab, method, wait_until, write_program};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Command;
use std::time::{Duration, Instant};

/// The parameters of a turn in another workspace.
fn in_workspace(lab: &Lab, name: &str) -> Value {
    let mut params = Daemon::prompt(lab, "hi");
    params["agent"]["workspace"] = json!(lab.path(name));
    params
}

fn words(count: usize) -> String {
    let words: Vec<String> = (0..count).map(|number| format!("word{number}")).collect();
    words.join(" ")
}

/// A message of the user for a running turn.
fn steer(daemon: &mut Daemon, stream: i64, text: &str) -> i64 {
    let messages = json!([{"role": "user", "content": [{"type": "text", "text": text}]}]);
    let params = json!({"stream": stream, "request": {"messages": messages}});
    daemon.request(method::STEER, params)
}

real_codex_by! { APP_SERVER,
    fn streams_text_as_it_is_written(codex: &Path) {
        let text = words(100);
        let lab = Lab::real(codex, json!([{"text": text, "words": true, "event_delay_ms": 10}]));
        let mut turn = Cli::new(&lab, ["turn", "--json", "hi"]).spawn();
        drop(turn.stdin.take());
        let mut deltas = Vec::new();
        for line in BufReader::new(turn.stdout.take().unwrap()).lines() {
            let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
            if event["type"] == "text_delta" {
                assert_eq!(event["message"], 0);
                deltas.push((Instant::now(), event["text"].as_str().unwrap().to_owned()));
            }
        }
        assert!(turn.wait().unwrap().success());
        assert!(deltas.len() >= 90, "{} deltas", deltas.len());
        let spread = deltas[deltas.len() - 1].0 - deltas[0].0;
        assert!(spread > Duration::from_millis(500), "all within {spread:?}");
        let told: String = deltas.into_iter().map(|(_, text)| text).collect();
        assert_eq!(told, text);
    }
}

real_codex_by! { APP_SERVER,
    fn streams_text_to_pipe(codex: &Path) {
        let lab = Lab::real(codex, json!([
            {"text": "\n\n I look. \n", "words": true, "calls": [{"name": "exec_command", "arguments": {"cmd": "true"}}]},
            {"text": "It is\n\ndone.", "words": true},
        ]));
        let output = Cli::new(&lab, ["turn", "hi"]).run();
        assert_eq!((output.status, output.stdout.as_str()), (0, "I look.\n\nIt is\n\ndone.\n"), "{output:?}");
        let last = Cli::new(&lab, ["turn", "--last", "hi"]).run();
        assert_eq!(last.stdout, "It is\n\ndone.\n", "{last:?}");
        lab.assert_quiet();
    }
}

real_codex_by! { APP_SERVER,
    fn continues_or_discards_message_of_dropped_stream(codex: &Path) {
        let lab = Lab::real_with_retries(codex, json!([
            {"match": "same", "times": 1, "text": "One two three", "words": true, "drop_after": 4},
            {"match": "same", "text": "One two three four", "words": true},
            {"match": "other", "times": 1, "text": "One two three", "words": true, "drop_after": 4},
            {"match": "other", "text": "Else", "words": true},
        ]), 2);
        let mut daemon = Daemon::start(&lab);
        let turn = daemon.turn(Daemon::prompt(&lab, "same"));
        assert_eq!(turn.text(), "One two three four");
        assert!(turn.of("text_delta").all(|event| event["message"] == 0), "{turn:?}");
        let turn = daemon.turn(Daemon::prompt(&lab, "other"));
        assert_eq!(turn.text(), "One two\n\nElse");
        let discarded = turn.of("status").find_map(|event| event.get("discarded_message"));
        assert_eq!(discarded, Some(&json!(0)), "{turn:?}");
        assert_eq!(turn.of("text_delta").last().unwrap()["message"], 1);
    }
}

real_codex_by! { APP_SERVER,
    fn streams_reasoning(codex: &Path) {
        let lab = Lab::real(codex, json!([{"reasoning": "I think so", "text": "Yes", "words": true}]));
        lab.config(json!({"reasoning_events": true}));
        let turn = Daemon::start(&lab).turn(Daemon::prompt(&lab, "hi"));
        let thoughts: Vec<_> = turn.of("thinking_delta").map(|event| event["text"].as_str().unwrap()).collect();
        assert_eq!(thoughts, ["I ", "think ", "so"]);
        assert_eq!(turn.text(), "Yes");
    }
}

real_codex_by! { APP_SERVER,
    fn replaces_server_when_its_inputs_change(codex: &Path) {
        let lab = Lab::real(codex, json!([{"text": "ok"}]));
        let config = lab.codex_home().join("config.toml");
        let mut daemon = Daemon::start(&lab);
        let thread = daemon.turn(Daemon::prompt(&lab, "hi")).thread().to_owned();
        let mut server = lab.servers();
        assert_eq!(server.len(), 1, "{server:?}");
        let mut next = |what: &str, is_same: bool, params: Value| {
            let turn = daemon.turn(params);
            assert_eq!((turn.text().as_str(), turn.thread()), ("ok", thread.as_str()), "{what}: {turn:?}");
            let now = lab.servers();
            assert_eq!((now.len(), now == server), (1, is_same), "{what}: {now:?}");
            server = now;
        };
        let prompt = || Daemon::prompt(&lab, "hi");
        next("nothing is new", true, prompt());
        let trusted = format!("{}\n[projects.\"/x\"]\ntrust_level = \"trusted\"\n", fs::read_to_string(&config).unwrap());
        fs::write(&config, trusted).unwrap();
        next("a directory is trusted", true, prompt());
        let other = format!("hide_agent_reasoning = true\n{}", fs::read_to_string(&config).unwrap());
        fs::write(&config, other).unwrap();
        next("the config is another", false, prompt());
        fs::write(lab.workspace().join("AGENTS.md"), "Say please.").unwrap();
        next("there are instructions", false, prompt());
        let reached = lab.model().requests().last().unwrap().body["input"].to_string();
        if codex::is_at_least(codex, (0, 148, 0)) {
            assert!(reached.contains("Say please."), "{reached}");
        }
        fs::write(lab.codex_home().join("auth.json"), r#"{"OPENAI_API_KEY":"k"}"#).unwrap();
        next("the login is another", false, prompt());
        let mut system = prompt();
        system["request"]["system"] = json!("Be brief.");
        next("the system text is another", false, system);
        next("the system text is gone", false, prompt());
        // As a sync of files does it.
        let rollout = &lab.rollouts(&thread)[0];
        let copy = rollout.with_extension("copy");
        fs::copy(rollout, &copy).unwrap();
        fs::rename(&copy, rollout).unwrap();
        next("the rollout is another file", false, prompt());
        ps::signal(lab.servers()[0], Signal::KILL);
        wait_until("the server to be gone", || lab.servers().is_empty());
        next("the server has died", false, prompt());
        drop(daemon);
        lab.assert_quiet();
    }
}

real_codex_by! { APP_SERVER,
    fn keeps_servers_up_to_warm_max_and_warm_secs(codex: &Path) {
        let lab = Lab::real(codex, json!([{"text": "ok"}]));
        lab.config(json!({"warm_max": 2}));
        let mut daemon = Daemon::start(&lab);
        for name in ["a", "b", "c"] {
            daemon.turn(in_workspace(&lab, name));
        }
        wait_until("the oldest to be ended", || lab.servers().len() == 2);
        let kept = lab.servers();
        daemon.turn(in_workspace(&lab, "c"));
        assert_eq!(lab.servers(), kept);
        lab.config(json!({"warm_secs": 1}));
        daemon.init();
        for name in ["b", "c"] {
            daemon.turn(in_workspace(&lab, name));
        }
        wait_until("all to be ended", || lab.servers().is_empty());
        lab.config(json!({"warm_secs": 0}));
        daemon.init();
        daemon.turn(in_workspace(&lab, "a"));
        wait_until("it to be ended", || lab.servers().is_empty());
        for _ in 0..3 {
            // Each waits for the end of the one before.
            assert_eq!(daemon.turn(in_workspace(&lab, "a")).stop_reason(), "end_turn");
        }
    }
}

real_codex_by! { APP_SERVER,
    fn cancel_keeps_server_and_ends_commands(codex: &Path) {
        let command = "setsid sleep 601 & touch ../started; sleep 600";
        let lab = Lab::real(codex, json!([
            {"match": "command", "times": 1, "calls": [{"name": "exec_command", "arguments": {"cmd": command, "yield_time_ms": 60_000}}]},
            {"match": "stream", "text": words(100), "words": true, "event_delay_ms": 50},
            {"text": "next"},
        ]));
        let mut daemon = Daemon::start(&lab);
        daemon.turn(Daemon::prompt(&lab, "hi"));
        let server = lab.servers();
        let cancelled = |daemon: &mut Daemon, id: i64| {
            let begun = Instant::now();
            daemon.cancel(id);
            let turn = daemon.finish(id);
            assert_eq!(turn.stop_reason(), "cancelled", "{turn:?}");
            assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
            assert_eq!(lab.servers(), server);
        };
        let id = daemon.request(method::STREAM, Daemon::prompt(&lab, "a command"));
        wait_until("the command to start", || lab.path("started").exists());
        cancelled(&mut daemon, id);
        let left = ps::of(lab.root());
        assert!(left.iter().all(|process| !process.command.contains("sleep 60")), "{left:?}");
        assert_eq!(daemon.turn(Daemon::prompt(&lab, "hi")).text(), "next");
        let id = daemon.request(method::STREAM, Daemon::prompt(&lab, "a stream"));
        daemon.event(id, "a piece of text", |event| event["type"] == "text_delta");
        cancelled(&mut daemon, id);
        // At once, and whenever the turn is about to begin.
        for _ in 0..5 {
            let id = daemon.request(method::STREAM, Daemon::prompt(&lab, "hi"));
            daemon.event(id, "the beginning", |event| event["type"] == "message_start");
            cancelled(&mut daemon, id);
        }
        let turn = daemon.turn(Daemon::prompt(&lab, "hi"));
        assert_eq!((turn.text().as_str(), lab.servers()), ("next", server));
    }
}

real_codex_by! { APP_SERVER,
    fn dead_or_stopped_server_fails_only_its_turn(codex: &Path) {
        let lab = Lab::real(codex, json!([
            {"match": "command", "times": 1, "calls": [{"name": "exec_command", "arguments": {"cmd": "touch ../started; sleep 600", "yield_time_ms": 60_000}}]},
            {"text": "next"},
        ]));
        let mut daemon = Daemon::start(&lab);
        let id = daemon.request(method::STREAM, Daemon::prompt(&lab, "a command"));
        wait_until("the command to start", || lab.path("started").exists());
        ps::signal(lab.servers()[0], Signal::KILL);
        let turn = daemon.finish(id);
        assert_eq!(turn.error_code(), Some("codex_failed"), "{turn:?}");
        check_turn(&turn.events);
        assert_eq!(daemon.turn(Daemon::prompt(&lab, "hi")).text(), "next");
        // The next turn gives it up when it has not answered for a while.
        ps::signal(lab.servers()[0], Signal::STOP);
        let turn = daemon.turn(Daemon::prompt(&lab, "hi"));
        assert_eq!((turn.text().as_str(), turn.result()["thread_state"].as_str()), ("next", Some("resumed")));
        daemon.signal(Signal::KILL);
        daemon.exit(Duration::from_secs(5));
        lab.assert_quiet();
    }
}

real_codex_by! { APP_SERVER,
    fn releases_thread_between_turns(codex: &Path) {
        let lab = Lab::real(codex, json!([
            {"times": 1, "calls": [{"name": "exec_command", "arguments": {"cmd": "seq 1000"}}]},
            {"text": "ok"},
        ]));
        let mut daemon = Daemon::start(&lab);
        let thread = daemon.turn(Daemon::prompt(&lab, "one")).thread().to_owned();
        let quickly = |what: &str, arguments: &[&str]| {
            let begun = Instant::now();
            let output = Cli::new(&lab, arguments.iter().copied()).directory(lab.workspace()).run();
            assert_eq!(output.status, 0, "{what}: {output:?}");
            assert!(!output.stderr.contains("another process"), "{what}: {output:?}");
            (begun.elapsed(), output)
        };
        quickly("exec", &["turn", "--backend", "exec", "two"]);
        assert_eq!(daemon.turn(Daemon::prompt(&lab, "three")).thread(), thread);
        quickly("app-server", &["turn", "four"]);
        assert_eq!(daemon.turn(Daemon::prompt(&lab, "five")).thread(), thread);
        let (took, _) = quickly("mutate", &["mutate", "-w", ".", "call_1"]);
        assert!(took < Duration::from_millis(1500), "{took:?}");
        let turn = daemon.turn(Daemon::prompt(&lab, "six"));
        assert_eq!(turn.thread(), thread);
        let (_, doctor) = quickly("doctor", &["doctor", "-w", "."]);
        assert!(doctor.stdout.contains("thread lock") && doctor.stdout.contains("free"), "{doctor:?}");
        let input = lab.model().requests().last().unwrap().body["input"].to_string();
        for part in ["one", "two", "three", "four", "five", "six", "consumed"] {
            assert!(input.contains(part), "{part}: {input}");
        }
    }
}

real_codex_by! { APP_SERVER,
    fn model_sees_calls_consumed_between_turns(codex: &Path) {
        let lab = Lab::real(codex, json!([
            {"times": 1, "calls": [{"name": "exec_command", "arguments": {"cmd": "seq 1000"}}]},
            {"text": "ok"},
        ]));
        let mut daemon = Daemon::start(&lab);
        daemon.turn(Daemon::prompt(&lab, "one"));
        let mutations = json!([{"block_id": "call_1", "op": "consume-light"}]);
        let outcome = daemon.call(method::MUTATE, json!({"agent_id": "alice", "workspace": lab.workspace(), "mutations": mutations}));
        assert_eq!(outcome["result"]["touched"], 1, "{outcome}");
        // Another server is started at once, and not by the next turn.
        wait_until("a server to be started", || lab.servers().len() == 1);
        let server = lab.servers();
        let turn = daemon.turn(Daemon::prompt(&lab, "two"));
        assert_eq!(turn.result()["thread_state"], "resumed");
        assert_eq!(lab.servers(), server);
        let input = lab.model().requests().last().unwrap().body["input"].clone();
        let outputs: Vec<&Value> = input.as_array().unwrap().iter().filter(|item| item["type"] == "function_call_output").collect();
        assert_eq!(outputs.len(), 1, "{input}");
        assert_eq!(outputs[0]["output"], "...(consumed)");
        assert!(!input.to_string().contains(r"\n999\n"), "{input}");
    }
}

real_codex_by! { APP_SERVER,
    fn steers_running_turn_exactly_once(codex: &Path) {
        let lab = Lab::real(codex, json!([
            {"match": "tool", "times": 1, "calls": [{"name": "exec_command", "arguments": {"cmd": "touch ../started; sleep 0.5"}}]},
            {"match": "stream", "times": 1, "text": words(20), "words": true, "event_delay_ms": 50},
            {"echo": true},
        ]));
        let mut daemon = Daemon::start(&lab);
        let id = daemon.request(method::STREAM, Daemon::prompt(&lab, "a tool"));
        wait_until("the command to start", || lab.path("started").exists());
        let said = steer(&mut daemon, id, "words in a call");
        assert_eq!(daemon.answer(said)["result"], json!({"steered": true}));
        assert_eq!(daemon.finish(id).text(), "words in a call");
        let id = daemon.request(method::STREAM, Daemon::prompt(&lab, "a stream"));
        daemon.event(id, "a piece of text", |event| event["type"] == "text_delta");
        let said = steer(&mut daemon, id, "words in a stream");
        assert_eq!(daemon.answer(said)["result"], json!({"steered": true}));
        let turn = daemon.finish(id);
        assert!(turn.text().ends_with("\n\nwords in a stream"), "{turn:?}");
        if codex::is_at_least(codex, (0, 169, 0)) {
            let discarded = turn.of("status").find_map(|event| event.get("discarded_message"));
            assert_eq!(discarded, Some(&json!(0)), "{turn:?}");
        }
        let said = steer(&mut daemon, id, "too late");
        assert_eq!(daemon.answer(said)["result"], json!({"steered": false}));
        // Whenever they come: whoever is told that they were given can rely on it, and on the contrary.
        let mut expected = Vec::new();
        for number in 0..12 {
            let text = format!("<late {number}>");
            let id = daemon.request(method::STREAM, Daemon::prompt(&lab, "quick"));
            let wanted = ["message_start", "text_delta", "message_end"][number % 3];
            daemon.event(id, wanted, |event| event["type"] == wanted);
            let said = steer(&mut daemon, id, &text);
            let is_given = daemon.answer(said)["result"]["steered"] == true;
            let turn = daemon.finish(id);
            assert_eq!(turn.text().contains(&text), is_given, "{turn:?}");
            expected.extend(is_given.then_some(text));
        }
        daemon.turn(Daemon::prompt(&lab, "the end"));
        let input = lab.model().requests().last().unwrap().body["input"].clone();
        let said = input.as_array().unwrap().iter().filter(|item| item["role"] == "user");
        let texts = said.flat_map(|item| item["content"].as_array().unwrap());
        let late: Vec<&str> = texts.filter_map(|part| part["text"].as_str()).filter(|text| text.starts_with("<late")).collect();
        assert_eq!(late, expected);
    }
}

real_codex_by! { APP_SERVER,
    fn makes_no_requests_of_its_own(codex: &Path) {
        let goal = json!([{"name": "create_goal", "arguments": {"objective": "go on"}}]);
        let lab = Lab::real(codex, json!([
            {"match": "server", "times": 1, "calls": goal},
            {"match": "exec", "times": 1, "calls": goal},
            {"text": "ok"},
        ]));
        let mut daemon = Daemon::start(&lab);
        assert_eq!(daemon.turn(Daemon::prompt(&lab, "by the server")).text(), "ok");
        let output = Cli::new(&lab, ["turn", "--backend", "exec", "by exec"]).directory(lab.workspace()).run();
        assert_eq!(output.stdout, "ok\n", "{output:?}");
        assert_eq!(daemon.turn(Daemon::prompt(&lab, "hi")).text(), "ok");
        let asked = lab.model().requests().len();
        assert_eq!(lab.model().wait_for_requests(asked + 1, Duration::from_secs(2)), asked);
    }
}

real_codex_by! { APP_SERVER,
    fn ignores_config_of_workspace(codex: &Path) {
        let lab = Lab::real(codex, json!([{"text": "ok"}]));
        let git = Command::new("git").arg("init").arg("-q").arg(lab.workspace()).status();
        assert!(git.unwrap().success());
        fs::create_dir(lab.workspace().join(".codex")).unwrap();
        let server = format!("[mcp_servers.evil]\ncommand = \"/usr/bin/touch\"\nargs = ['{}']\n", lab.path("evil").display());
        fs::write(lab.workspace().join(".codex/config.toml"), server).unwrap();
        let config = lab.codex_home().join("config.toml");
        let before = fs::read(&config).unwrap();
        let mut daemon = Daemon::start(&lab);
        daemon.turn(in_workspace(&lab, "other"));
        let other = lab.servers();
        for _ in 0..2 {
            assert_eq!(daemon.turn(Daemon::prompt(&lab, "hi")).text(), "ok");
        }
        assert!(!lab.path("evil").exists());
        assert_eq!(fs::read(&config).unwrap(), before);
        daemon.turn(in_workspace(&lab, "other"));
        assert!(lab.servers().contains(&other[0]), "one workspace's first turn replaces another's server");
    }
}

real_codex_by! { APP_SERVER,
    fn falls_back_to_exec(codex: &Path) {
        let lab = Lab::real(codex, json!([{"text": "ok"}]));
        let script = format!("#!/bin/sh\n[ \"$1\" = app-server ] && {{ echo no such command >&2; exit 2; }}\nexec '{}' \"$@\"\n", codex.display());
        let without = lab.path("without");
        write_program(&without, &script);
        lab.config(json!({"binary": without}));
        let mut daemon = Daemon::start(&lab);
        for _ in 0..2 {
            assert_eq!(daemon.turn(Daemon::prompt(&lab, "hi")).text(), "ok");
        }
        let warned = daemon.logs().iter().filter(|log| {
            let message = log["data"]["message"].as_str().unwrap();
            log["level"] == "warning" && message.contains("codex app-server cannot be used")
        });
        let warned: Vec<&Value> = warned.collect();
        assert_eq!(warned.len(), 1, "{warned:?}");
        assert!(warned[0].to_string().contains("no such command"), "{warned:?}");
        let doctor = Cli::new(&lab, ["doctor"]).run();
        assert!(doctor.stdout.contains("codex app-server cannot be used") && doctor.stdout.contains("no such command"), "{doctor:?}");
        lab.config(json!({}));
        let doctor = Cli::new(&lab, ["doctor"]).run();
        assert!(doctor.stdout.contains("ok    backend") && doctor.stdout.contains("models"), "{doctor:?}");
        // What only `codex exec` takes.
        lab.config(json!({"extra_args": ["--color", "never"]}));
        let doctor = Cli::new(&lab, ["doctor"]).run();
        assert!(doctor.stdout.contains("'--color'"), "{doctor:?}");
        daemon.init();
        assert_eq!(daemon.turn(Daemon::prompt(&lab, "hi")).text(), "ok");
        assert_eq!(lab.servers(), [0; 0]);
    }
}

/// What differs most between versions, on those between the oldest and the newest.
#[test]
fn backends_agree_on_versions_between() {
    for run in [
        cancel_keeps_server_and_ends_commands::run,
        model_sees_calls_consumed_between_turns::run,
        releases_thread_between_turns::run,
        ignores_config_of_workspace::run,
        steers_running_turn_exactly_once::run,
    ] {
        run_at_once(&[("0.148.0", APP_SERVER, run), (CHANGED, APP_SERVER, run)]);
    }
}

/// Servers that start at the same time in a codex home that has no databases yet disturb each other there.
#[test]
fn starts_servers_at_once_in_new_home() {
    run_on(CHANGED, APP_SERVER, |codex| {
        let lab = Lab::real(codex, json!([{"text": "ok"}]));
        let mut daemon = Daemon::start(&lab);
        let names: Vec<String> = (0..8).map(|number| format!("agent{number}")).collect();
        let ids: Vec<i64> = names
            .iter()
            .map(|name| daemon.request(method::STREAM, in_workspace(&lab, name)))
            .collect();
        for id in ids {
            assert_eq!(daemon.finish(id).text(), "ok");
        }
        assert_eq!(lab.servers().len(), 8);
    });
}

/// A token that says these things, and is signed by nobody.
fn token(claims: &Value) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let encoded = |text: &str| -> String {
        let digits = text.as_bytes().chunks(3).flat_map(|bytes| {
            let padded = [0, 1, 2].map(|at| u32::from(*bytes.get(at).unwrap_or(&0)));
            let group = padded[0] << 16 | padded[1] << 8 | padded[2];
            [18, 12, 6, 0]
                .into_iter()
                .map(move |shift| char::from(DIGITS[(group >> shift) as usize & 63]))
                .take(bytes.len() + 1)
        });
        digits.collect()
    };
    let head = encoded(r#"{"alg":"none","typ":"JWT"}"#);
    format!("{head}.{}.c2ln", encoded(&claims.to_string()))
}

/// A login of ChatGPT's, as codex stores it.
fn login(number: u64) -> String {
    let account =
        json!({"chatgpt_account_id": "acc", "chatgpt_plan_type": "pro", "chatgpt_user_id": "u"});
    let claims =
        json!({"exp": 4_000_000_000_u64, "number": number, "https://api.openai.com/auth": account});
    json!({"OPENAI_API_KEY": null, "auth_mode": "chatgpt", "last_refresh": "2999-01-01T00:00:00Z", "tokens": {
        "id_token": token(&json!({"email": "a@example.org", "https://api.openai.com/auth": account})),
        "access_token": token(&claims), "refresh_token": format!("r{number}"), "account_id": "acc"}})
    .to_string()
}

real_codex_by! { APP_SERVER,
    /// Of several that renew a login at once all but one are told that they came too late.
    fn survives_login_renewed_by_another_codex(codex: &Path) {
        let expired = json!({"error": {"message": "expired", "code": "token_expired"}});
        let reused = json!({"error": {"message": "used", "code": "refresh_token_reused"}});
        let mut lab = Lab::real(codex, json!([
            {"match": "first", "text": "ok"},
            {"match": "second", "times": 2, "status": 401, "body": expired},
            {"match": "second", "text": "renewed"},
            {"status": 401, "body": reused},
        ]));
        let base_url = lab.model().base_url();
        let provider = format!(
            "model = \"gpt-5\"\nmodel_provider = \"p\"\n[analytics]\nenabled = false\n[model_providers.p]\nname = \"p\"\nbase_url = \"{base_url}\"\nwire_api = \"responses\"\nrequires_openai_auth = true\nrequest_max_retries = 0\nstream_max_retries = 0\n"
        );
        fs::write(lab.codex_home().join("config.toml"), provider).unwrap();
        let auth = lab.codex_home().join("auth.json");
        fs::write(&auth, login(1)).unwrap();
        // The model answers there, too.
        lab.set_env("CODEX_REFRESH_TOKEN_URL_OVERRIDE", format!("{base_url}/responses"));
        let mut daemon = Daemon::start(&lab);
        assert_eq!(daemon.turn(Daemon::prompt(&lab, "first")).text(), "ok");
        let id = daemon.request(method::STREAM, Daemon::prompt(&lab, "second"));
        wait_until("codex to try to renew it", || {
            lab.model().requests().iter().any(|request| request.body.get("refresh_token").is_some())
        });
        // The other one writes down what it has got.
        fs::write(&auth, login(2)).unwrap();
        let turn = daemon.finish(id);
        assert_eq!((turn.text().as_str(), turn.error_code()), ("renewed", None), "{turn:?}");
        let requests = lab.model().requests();
        let said = requests[requests.len() - 1].body["input"].to_string();
        assert_eq!(said.matches("second").count(), 1, "{said}");
    }
}

real_codex_by! { APP_SERVER,
    /// What an agent starts has no say in what the plugin keeps of others.
    fn agent_cannot_end_server_of_another(codex: &Path) {
        let program = env!("CARGO_BIN_EXE_plexum-openai");
        let command = format!("'{program}' mutate --thread $(cat ../thread) call_x; '{program}' doctor -w ../b; touch ../done");
        let lab = Lab::real(codex, json!([
            {"match": "ask", "times": 1, "calls": [{"name": "exec_command", "arguments": {"cmd": command, "yield_time_ms": 30_000}}]},
            {"text": "ok"},
        ]));
        let mut daemon = Daemon::start(&lab);
        let kept = daemon.turn(in_workspace(&lab, "b"));
        fs::write(lab.path("thread"), kept.thread()).unwrap();
        let server = lab.servers();
        let mut params = in_workspace(&lab, "a");
        params["request"]["messages"][0]["content"] = json!("ask for it");
        assert_eq!(daemon.turn(params).text(), "ok");
        assert!(lab.path("done").exists());
        assert!(lab.servers().contains(&server[0]), "{server:?}");
        // Whoever is no agent has.
        let output = Cli::new(&lab, ["mutate", "--thread", kept.thread(), "call_x"]).run();
        assert!(output.stderr.contains("nothing was consumed"), "{output:?}");
        assert!(!lab.servers().contains(&server[0]), "{server:?}");
    }
}
