//! The daemon's own names of the tools that codex calls by names of its own.
//!
//! codex gives the model names of letters, digits and `_`: every other character becomes a `_` (0.135 and 0.169).
//! Names that become equal so, and in 0.135 those that are too long, get twelve digits of a hash behind what is left
//! of them.

/// The tools of a turn, as codex calls them.
#[derive(Debug, Default)]
pub(crate) struct ToolNames {
    /// codex's namespace of the server that lends them.
    namespace: String,
    /// Each as it is and as codex has it.
    names: Vec<(String, String)>,
}

impl ToolNames {
    /// The names of the tools that the server lends.
    pub(super) fn new<'a>(server: &str, tools: impl Iterator<Item = &'a str>) -> ToolNames {
        ToolNames {
            namespace: format!("mcp__{}", normalize(server)),
            names: tools
                .map(|name| (name.to_owned(), normalize(name)))
                .collect(),
        }
    }

    /// The daemon's name of the tool that codex calls so; `None` where it has none, or the same, or where codex's
    /// hash alone could tell which of two it is.
    pub(crate) fn own_name(&self, namespace: &str, name: &str) -> Option<&str> {
        const HASH: usize = 12;
        if namespace != self.namespace {
            return None;
        }
        // Within code mode it is not changed.
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

    /// The only name that codex has so.
    fn only(&self, is_so: impl Fn(&str) -> bool) -> Option<&str> {
        let mut found = self.names.iter().filter(|(_, known)| is_so(known));
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
