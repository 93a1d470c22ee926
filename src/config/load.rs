//! Reading and parsing the config file.

use super::keys::{Config, ConfigVisitor, KEYS};
use crate::error::{Error, Kind, Result, reason};
use crate::os;
use serde::de::Deserializer;
use std::cell::Cell;
use std::fmt;
use std::io::{self, Read};
use std::path::Path;

/// The maximum size of the config file in bytes; a real one has a few hundred.
const MAX_SIZE: u64 = 1 << 20;

/// A config file's values and warnings.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) config: Config,
    /// A sentence each, with the file's path.
    pub(crate) warnings: Vec<String>,
    /// Whether the file exists.
    pub(crate) found: bool,
}

/// Reads and parses the config file at `path`.
///
/// # Errors
/// [`Kind::Config`]: the file exists, but cannot be read, is not a regular file, is too large, is not UTF-8 or JSON, or
/// has an invalid value.
pub(crate) fn load(path: &Path) -> Result<Loaded> {
    let Some(bytes) = read(path)? else {
        return Ok(Loaded {
            config: Config::default(),
            warnings: Vec::new(),
            found: false,
        });
    };
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let column = before
            .iter()
            .rev()
            .take_while(|byte| **byte != b'\n')
            .count()
            + 1;
        Error::new(
            Kind::Config,
            format!("{}:{line}:{column}: not valid UTF-8", path.display()),
        )
    })?;
    let (config, warnings) = parse(text)
        .map_err(|error| Error::new(Kind::Config, format!("{}:{error}", path.display())))?;
    Ok(Loaded {
        config,
        warnings: warnings
            .into_iter()
            .map(|warning| format!("{}: {warning}", path.display()))
            .collect(),
        found: true,
    })
}

/// The bytes of a regular file of at most [`MAX_SIZE`]; `None` if it is missing.
fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    let unreadable = |what: &dyn fmt::Display| {
        Error::new(
            Kind::Config,
            format!("cannot read the config file '{}': {what}", path.display()),
        )
    };
    let file = match os::open_options().read(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return match path.is_symlink() {
                true => Err(unreadable(&"it is a dangling symbolic link")),
                false => Ok(None),
            };
        }
        Err(error) => return Err(unreadable(&reason(&error))),
    };
    let metadata = file
        .metadata()
        .map_err(|error| unreadable(&reason(&error)))?;
    if !metadata.is_file() {
        let what = if metadata.is_dir() {
            "it is a directory"
        } else {
            "it is not a regular file"
        };
        return Err(unreadable(&what));
    }
    let mut bytes = Vec::new();
    (&file)
        .take(MAX_SIZE + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| unreadable(&reason(&error)))?;
    if bytes.len() as u64 > MAX_SIZE {
        return Err(unreadable(
            &"it is larger than 1 MiB, which is too large for a config file",
        ));
    }
    Ok(Some(bytes))
}

/// Parses the text of a config file into its values and warnings. An error begins with `LINE:COLUMN: `.
pub(crate) fn parse(text: &str) -> std::result::Result<(Config, Vec<String>), String> {
    if text.trim().is_empty() {
        return Ok((Config::default(), Vec::new()));
    }
    let key = Cell::new(None);
    let mut json = serde_json::Deserializer::from_str(text);
    let mut unknown = Vec::new();
    let config = json
        .deserialize_map(ConfigVisitor {
            key: &key,
            unknown: &mut unknown,
        })
        .and_then(|config| json.end().map(|()| config))
        .map_err(|error| {
            // If the text is not an object, serde_json reports the position before it, column 0.
            let position = format!("{}:{}: ", error.line(), error.column().max(1));
            let message = error.to_string();
            let message = match message.rfind(" at line ") {
                Some(end) => &message[..end],
                None => &message,
            };
            match key.take() {
                Some(name) if error.is_data() => format!("{position}'{name}': {message}"),
                _ => format!("{position}{message}"),
            }
        })?;
    let warnings = unknown
        .into_iter()
        .map(|name| {
            let warning = format!("unknown key '{name}' is ignored");
            match nearest(&name, KEYS.iter().map(|key| key.name)) {
                Some(near) => format!("{warning}; did you mean '{near}'?"),
                None => warning,
            }
        })
        .collect();
    Ok((config, warnings))
}

/// The known name that `name` is probably a misspelling of: the closest one within an edit distance of a third of the
/// length, or one that `name` is a prefix of.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (edit_distance(name, candidate), candidate))
        .filter(|(distance, candidate)| {
            *distance <= (candidate.len().max(name.len()) / 3).max(1)
                || (name.len() >= 3 && candidate.starts_with(name))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// The edit distance (optimal string alignment) of the first 64 characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(64).collect();
    let b: Vec<char> = b.chars().take(64).collect();
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let mut best = (rows[i][j] + usize::from(x != y))
                .min(rows[i][j + 1] + 1)
                .min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                best = best.min(rows[i - 1][j - 1] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::super::keys::{
        BackendChoice, LostThread, McpRegistration, ModelArgs, PromptVia, Sandbox,
    };
    use super::*;
    use std::time::Duration;

    #[track_caller]
    fn check_error(text: &str, message: &str) {
        assert_eq!(parse(text).unwrap_err(), message, "{text}");
    }

    #[test]
    fn reads_every_key() {
        let (config, warnings) = parse(
            r#"{"binary":"~/bin/codex","backend":"app-server","warm_secs":60,"warm_max":2,"extra_args":["-c","x=1"],"sandbox":"read-only","supported_models":["a","b"],
               "model_args":{"a":"gpt-5","b":{"reasoning_effort":"high","service_tier":"fast"}},"tool_timeout_secs":9,"mcp_registration":"off","prompt_via":"arg","lost_thread":"error",
               "replay_new":false,"busy_wait_secs":3,"reasoning_events":true,"tool_events":false,"idle_timeout_secs":0,"turn_timeout_secs":7,
               "codex_home":"/c","env":{"A":"b"}}"#,
        )
        .unwrap();
        assert_eq!(warnings, Vec::<String>::new());
        assert_eq!(
            config,
            Config {
                binary: "~/bin/codex".into(),
                backend: BackendChoice::AppServer,
                warm: Duration::from_secs(60),
                warm_max: 2,
                extra_args: vec!["-c".into(), "x=1".into()],
                supported_models: vec!["a".into(), "b".into()],
                sandbox: Sandbox::ReadOnly,
                model_args: [
                    (
                        "a".to_owned(),
                        ModelArgs {
                            model: Some("gpt-5".to_owned()),
                            ..ModelArgs::default()
                        },
                    ),
                    (
                        "b".to_owned(),
                        ModelArgs {
                            model: None,
                            reasoning_effort: Some("high".to_owned()),
                            service_tier: Some("fast".to_owned()),
                        },
                    ),
                ]
                .into(),
                tool_timeout: Duration::from_secs(9),
                mcp_registration: McpRegistration::Off,
                prompt_via: PromptVia::Arg,
                lost_thread: LostThread::Error,
                replay_new: false,
                busy_wait: Duration::from_secs(3),
                reasoning_events: true,
                tool_events: false,
                idle_timeout: None,
                turn_timeout: Some(Duration::from_secs(7)),
                codex_home: Some("/c".into()),
                env: [("A".to_owned(), "b".to_owned())].into(),
            }
        );
        for key in KEYS {
            let text = format!("{{\"{}\": null}}", key.name);
            assert!(parse(&text).is_err(), "{} takes null", key.name);
        }
    }

    // fault: 63
    #[test]
    fn empty_config_is_the_defaults() {
        for text in ["", "  \n", "{}"] {
            assert_eq!(parse(text).unwrap().0, Config::default(), "{text:?}");
        }
    }

    #[test]
    fn errors_have_line_and_column() {
        check_error("{", "1:1: EOF while parsing an object");
        check_error(
            "{\n  \"binary\": 3\n}",
            "2:13: 'binary': invalid type: integer `3`, expected a string that is not empty",
        );
        check_error(
            "{\"binary\":\"\"}",
            "1:12: 'binary': invalid value: string \"\", expected a string that is not empty",
        );
        check_error(
            "{\"extra_args\":\"-x\"}",
            "1:18: 'extra_args': invalid type: string \"-x\", expected a list of strings",
        );
        check_error(
            "{\"extra_args\":[1]}",
            "1:16: 'extra_args': invalid type: integer `1`, expected a string",
        );
        check_error(
            "{\"env\":{\"A\":true}}",
            "1:16: 'env': invalid type: boolean `true`, expected a string",
        );
        check_error(
            "{\"idle_timeout_secs\":-5}",
            "1:23: 'idle_timeout_secs': invalid type: integer `-5`, expected a whole number of seconds, 0 for never",
        );
        check_error(
            "{\"prompt_via\":\"pipe\"}",
            "1:20: 'prompt_via': invalid value: string \"pipe\", expected one of \"stdin\", \"arg\"",
        );
        check_error(
            "{\"tool_events\":\"yes\"}",
            "1:20: 'tool_events': invalid type: string \"yes\", expected true or false",
        );
        check_error(
            "{\"binary\":\"a\",\n\"binary\":\"b\"}",
            "2:8: duplicate key 'binary'",
        );
        check_error(
            "[]",
            "1:1: invalid type: sequence, expected an object of config keys",
        );
        check_error("{} x", "1:4: trailing characters");
        check_error(
            "{\"env\":{\"A=B\":\"\"}}",
            "1:18: 'env': 'A=B' cannot be the name of an environment variable",
        );
        check_error(
            &format!("{{\"x\":{}", "[".repeat(10_000)),
            "1:10005: EOF while parsing a list",
        );
    }

    // fault: 64
    #[test]
    fn warns_of_unknown_key_with_suggestion() {
        let (_, warnings) = parse("{\"binry\":\"x\",\"zzz\":[1]}").unwrap();
        assert_eq!(
            warnings,
            [
                "unknown key 'binry' is ignored; did you mean 'binary'?",
                "unknown key 'zzz' is ignored",
            ]
        );
    }

    #[test]
    fn reads_only_regular_files() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        assert!(!load(&path).unwrap().found);
        std::fs::write(&path, b"\xef\xbb\xbf{}").unwrap();
        assert!(load(&path).unwrap().found);
        std::fs::write(&path, b"{\n\"a\xff").unwrap();
        let message = load(&path).unwrap_err().message().to_owned();
        assert!(
            message.ends_with("config.json:2:3: not valid UTF-8"),
            "{message}"
        );
        std::fs::write(&path, vec![b' '; 2 << 20]).unwrap();
        assert!(
            load(&path)
                .unwrap_err()
                .message()
                .contains("larger than 1 MiB")
        );
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(
            load(&path)
                .unwrap_err()
                .message()
                .ends_with("it is a directory")
        );
        std::fs::remove_dir(&path).unwrap();
        os::make_fifo(&path);
        assert!(
            load(&path)
                .unwrap_err()
                .message()
                .ends_with("not a regular file")
        );
    }
}
