//! The supported versions of MCP.

/// The supported versions of MCP, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ProtocolVersion {
    V2024_11_05,
    V2025_03_26,
    V2025_06_18,
    V2025_11_25,
}

impl ProtocolVersion {
    pub(super) const ALL: [ProtocolVersion; 4] = [
        ProtocolVersion::V2024_11_05,
        ProtocolVersion::V2025_03_26,
        ProtocolVersion::V2025_06_18,
        ProtocolVersion::V2025_11_25,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            ProtocolVersion::V2024_11_05 => "2024-11-05",
            ProtocolVersion::V2025_03_26 => "2025-03-26",
            ProtocolVersion::V2025_06_18 => "2025-06-18",
            ProtocolVersion::V2025_11_25 => "2025-11-25",
        }
    }

    /// The version for a client that requests `requested`: that one if it is supported, else the newest.
    pub(crate) fn negotiated(requested: &str) -> ProtocolVersion {
        ProtocolVersion::ALL
            .into_iter()
            .find(|version| version.name() == requested)
            .unwrap_or(ProtocolVersion::V2025_11_25)
    }
}
