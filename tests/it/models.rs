//! The models that codex has, as the daemon is told of them.

use crate::support::codex::real_codex_by;
use crate::support::{Daemon, Lab, method, ps, wait_until, write_program};
use serde_json::{Value, json};
use std::fs;
use std::time::{Duration, Instant};

real_codex_by! { EXEC,
    /// Without an account codex lists the models that it came with.
    fn lists_models_of_codex(codex: &Path) {
        let lab = Lab::real(codex, json!([]));
        let mut daemon = Daemon::start(&lab);
        let answer = daemon.call(method::MODELS, json!({}));
        let models = answer["result"]["models"].as_array().expect("a list");
        assert!(models.len() >= 3, "{answer}");
        for model in models {
            assert!(model["id"].as_str().is_some_and(|id| !id.is_empty()), "{model}");
            assert!(model["name"].as_str().is_some_and(|name| !name.is_empty()), "{model}");
            assert!(model["default"].is_boolean(), "{model}");
            let efforts = model["efforts"].as_array().expect("a list");
            assert!(efforts.iter().all(Value::is_string), "{model}");
            assert_eq!(model.as_object().unwrap().len(), 4, "{model}");
        }
        let default: Vec<&Value> = models.iter().filter(|model| model["default"] == true).collect();
        assert_eq!(default.len(), 1, "{answer}");
        assert!(default[0]["efforts"].as_array().unwrap().contains(&json!("high")), "{answer}");
        assert_eq!(ps::of(lab.root()).len(), 1, "{:?}", ps::of(lab.root()));
        // It is told of codex, and not of the config.
        assert_eq!(daemon.call(method::MODELS, Value::Null)["result"], answer["result"]);
    }
}

/// A plugin whose codex is a shell script.
fn start(lab: &Lab, script: &str) -> Daemon {
    let codex = lab.path("codex.sh");
    write_program(&codex, &format!("#!/bin/sh\n{script}\n"));
    lab.config(json!({"binary": codex}));
    Daemon::start(lab)
}

#[test]
fn reports_why_models_cannot_be_listed() {
    let lab = Lab::fake(Value::Null);
    let answers = |list: &str| {
        format!(
            r#"read line; echo '{{"id":1,"result":{{}}}}'; read line; read line; echo '{list}'; cat >&2"#
        )
    };
    for (script, part) in [
        (
            "echo 'error: unrecognized subcommand' >&2; exit 2".to_owned(),
            "ended before it listed its models: error: unrecognized subcommand",
        ),
        ("exit 0".to_owned(), "nothing on stderr"),
        (
            answers(r#"{"id":2,"error":{"code":-32600,"message":"unknown variant"}}"#),
            "codex rejects model/list: unknown variant",
        ),
        (
            answers(r#"{"id":2,"result":{"models":[]}}"#),
            "the list of models cannot be read: missing field `data`",
        ),
        (format!("yes {}", "x".repeat(4000)), "within 4.5 s"),
    ] {
        let mut daemon = start(&lab, &script);
        let answer = daemon.call(method::MODELS, json!({}));
        assert_eq!(answer["error"]["code"], -32010, "{script}: {answer}");
        assert_eq!(answer["error"]["data"]["code"], "codex_failed", "{answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(part), "{script}: {message}");
        assert_eq!(ps::of(lab.root()).len(), 1, "{script}");
    }
    lab.config(json!({"binary": "/nowhere/codex"}));
    let mut daemon = Daemon::start(&lab);
    let answer = daemon.call(method::MODELS, json!({}));
    assert_eq!(answer["error"]["data"]["code"], "codex_not_found");
    let answer = daemon.call(method::MODELS, json!([]));
    assert_eq!(answer["error"]["code"], -32602, "{answer}");
}

/// What codex lists in parts, and what it would not show to people.
#[test]
fn lists_models_of_every_page_except_hidden() {
    let lab = Lab::fake(Value::Null);
    let script = r#"read line; echo '{"id":1,"result":{}}'; read line
read line; echo 'noise'; echo '{"id":2,"method":"x/request","params":{}}'
echo '{"id":2,"result":{"data":[{"model":"a","displayName":"A","isDefault":true,"supportedReasoningEfforts":[{"reasoningEffort":"low"}]},{"model":"h","hidden":true}],"nextCursor":"more"}}'
read line; case $line in *-32601*) ;; *) exit 3;; esac
read line; case $line in *'"cursor":"more"'*) echo '{"id":3,"result":{"data":[{"model":"b"}],"nextCursor":null}}';; esac
cat >&2"#;
    let mut daemon = start(&lab, script);
    assert_eq!(
        daemon.call(method::MODELS, json!({}))["result"],
        json!({"models": [
            {"id": "a", "name": "A", "default": true, "efforts": ["low"]},
            {"id": "b", "name": "b", "default": false, "efforts": []},
        ]})
    );
}

#[test]
fn ends_hanging_codex() {
    let lab = Lab::fake(Value::Null);
    let started = lab.path("started");
    let script = format!(
        "trap '' TERM INT\ntouch {}\nsleep 600 & sleep 600",
        started.display()
    );
    let mut daemon = start(&lab, &script);
    let start = Instant::now();
    let answer = daemon.call(method::MODELS, json!({}));
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("within 4.5 s"), "{answer}");
    assert!(start.elapsed() < Duration::from_secs(10));
    wait_until("what was killed to be gone", || {
        ps::of(lab.root()).len() == 1
    });
    for cancel in [true, false] {
        fs::remove_file(&started).unwrap();
        let id = daemon.request(method::MODELS, json!({}));
        wait_until("codex to start", || started.exists());
        // It goes on with everything else.
        daemon.ping();
        let start = Instant::now();
        if cancel {
            daemon.cancel(id);
        } else {
            daemon.close_stdin();
        }
        let answer = daemon.answer(id);
        assert!(
            answer["error"]["message"]
                .as_str()
                .unwrap()
                .contains("was cancelled"),
            "{answer}"
        );
        assert!(start.elapsed() < Duration::from_secs(3));
        wait_until("codex to be gone", || ps::of(lab.root()).len() <= 1);
    }
}
