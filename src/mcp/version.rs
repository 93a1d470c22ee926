//! The versions of MCP that are spoken.

/// The versions of MCP that are spoken, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    V2024_11_05,
    V2025_03_26,
    V2025_06_18,
    V2025_11_25,
}

impl Version {
    pub(super) const ALL: [Version; 4] = [
        Version::V2024_11_05,
        Version::V2025_03_26,
        Version::V2025_06_18,
        Version::V2025_11_25,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Version::V2024_11_05 => "2024-11-05",
            Version::V2025_03_26 => "2025-03-26",
            Version::V2025_06_18 => "2025-06-18",
            Version::V2025_11_25 => "2025-11-25",
        }
    }

    /// The version to answer a client with that asks for `wanted`: that one, or else the newest.
    pub(crate) fn negotiated(wanted: &str) -> Version {
        Version::ALL
            .into_iter()
            .find(|version| version.name() == wanted)
            .unwrap_or(Version::V2025_11_25)
    }
}
