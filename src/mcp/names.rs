//! Maps codex's names of the tools to the daemon's.
//!
//! codex gives the model names of letters, digits and `_`: every other character becomes `_` (0.135 and 0.169). Names
//! that become equal, and in 0.135 those that are too long, are shortened and get twelve digits of a hash.

/// The tools of a turn, by codex's names.
#[derive(Debug, Default)]
pub(crate) struct ToolNames {
    /// codex's namespace of the server.
    namespace: String,
    /// The daemon's name and codex's name of each tool.
    names: Vec<(String, String)>,
}

impl ToolNames {
    /// The names of the tools of this server.
    pub(super) fn new<'a>(server: &str, tools: impl Iterator<Item = &'a str>) -> ToolNames {
        ToolNames {
            namespace: format!("mcp__{}", normalize(server)),
            names: tools
                .map(|name| (name.to_owned(), normalize(name)))
                .collect(),
        }
    }

    /// The daemon's name of the tool with this name in codex; `None` where there is none, where the names are equal, or
    /// where only codex's hash could tell two tools apart.
    pub(crate) fn own_name(&self, namespace: &str, name: &str) -> Option<&str> {
        const HASH: usize = 12;
        if namespace != self.namespace {
            return None;
        }
        // Code mode uses the daemon's name.
        if self
            .names
            .iter()
            .any(|(own, known)| own == name && own != known)
        {
            return None;
        }
        let whole = self.only(|known| known == name);
        let is_hash =
            |hash: &str| hash.len() == HASH && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        let shortened = || {
            let (start, hash) = name.rsplit_once('_')?;
            is_hash(hash).then(|| self.only(|known| known.starts_with(start)))?
        };
        whole.or_else(shortened)
    }

    /// The daemon's name of the only tool whose name in codex matches.
    fn only(&self, matches: impl Fn(&str) -> bool) -> Option<&str> {
        let mut found = self.names.iter().filter(|(_, known)| matches(known));
        let (own, _) = found.next()?;
        found.next().is_none().then_some(own.as_str())
    }
}

fn normalize(name: &str) -> String {
    name.chars()
        .map(|char| match char {
            'a'..='z' | 'A'..='Z' | '0'..='9' => char,
            _ => '_',
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_model_name_to_tool_name() {
        let long = "long-".repeat(16);
        let tools = ["x-y", "fabric.send", "fabric_send", "a b/c:d", &long];
        let names = ToolNames::new("plexum-host-alice", tools.into_iter());
        for (codex, own) in [
            ("x_y", Some("x-y")),
            ("x-y", None),
            ("a_b_c_d", Some("a b/c:d")),
            ("fabric_send_35032691fac8", None),
            (
                "long_long_long_long_long_lo_bf0b7f147ded",
                Some(long.as_str()),
            ),
            ("other", None),
        ] {
            assert_eq!(
                names.own_name("mcp__plexum_host_alice", codex),
                own,
                "{codex}"
            );
            assert_eq!(names.own_name("mcp__other", codex), None);
        }
    }
}
